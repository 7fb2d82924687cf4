"""The forms in which images go out to be labelled and labels come back: CSV, Label Studio's JSON, FiftyOne's JSON.

Knows the three formats. Does not know a store, nor which images there are: an image has the name that a file gives it.
A prediction is never written where a label belongs: one that nobody looked at would come back as a person's.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from drivetrain.errors import SettingError

Form = Literal["csv", "labelstudio", "fiftyone"]
Chosen = Literal["moved", "unsure", "flipped", "random"]
FORMS: tuple[Form, ...] = get_args(Form)
COLUMNS = ("fname", "label", "predicted", "confidence", "chosen")
# Of these the first one that no class has in its name joins the labels of an image, as fastai's label_delim.
DELIMITERS = (";", "|", ",", "\t")
# What stands for the empty set of labels, where nothing means that nobody has looked.
NO_CLASS = "(none)"
# Spreadsheets of half the world save these as CSV.
SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class ToLabel:
    """An image that waits for a label. ``label``: the true one where it is known already, else None.

    ``predicted``: what the learner says, several of a multi-label learner, numbers as text of a regression.
    ``chosen``: because it moved, because the learner is least sure of it, because two learners call it otherwise, or
    drawn at random.
    """

    uri: str
    label: str | None
    predicted: tuple[str, ...]
    confidence: float | None
    moved: float | None = None
    chosen: Chosen = "moved"


@dataclass(frozen=True)
class Labels:
    """What a file says: the labels of each image by the name that it has there. One label, or several of multi-label.

    ``none``: the images of which people say that no class is there, which is an answer of multi-label alone; without it
    these have what else was said of them, or nothing.
    ``unlabelled``: images in the file without a label. ``stems``: names may lack their suffix, as FiftyOne has it.
    """

    form: Form
    by_name: dict[str, tuple[str, ...]]
    unlabelled: int = 0
    stems: bool = False
    none: frozenset[str] = frozenset()


def delimiter_of(vocab: Sequence[str]) -> str:
    """What joins the labels of one image: fastai's label_delim for this vocab."""
    return next((each for each in DELIMITERS if not any(each in word for word in vocab)), DELIMITERS[0])


def to_csv(images: Sequence[ToLabel], delimiter: str = ";") -> bytes:
    """The CSV that ``ImageDataLoaders.from_df`` takes once a person has filled in ``label``.

    A name or a label is written as it is, also one that a spreadsheet takes for a formula: a mark before it would come
    back as another label.
    """
    sink = io.StringIO(newline="")
    # With \r\n at the ends of lines a name that holds a bare \r is quoted too.
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for each in images:
        confidence = "" if each.confidence is None else f"{each.confidence:.4g}"
        writer.writerow([each.uri, each.label or "", delimiter.join(each.predicted), confidence, each.chosen])
    return sink.getvalue().encode()


def to_label_studio(images: Sequence[ToLabel], model_id: str, task: str) -> bytes:
    """Label Studio's tasks, each with the learner's prediction, in the order in which they are to be labelled."""
    kind = "choices" if task != "regression" else "textarea"
    tasks: list[dict[str, Any]] = []
    for each in images:
        value = {"choices": list(each.predicted)} if kind == "choices" else {"text": list(each.predicted)}
        result = {"from_name": "label", "to_name": "image", "type": kind, "value": value}
        prediction = {"model_version": model_id, "score": each.confidence, "result": [result]}
        about = {"image": each.uri, "chosen": each.chosen, "moved": each.moved}
        tasks.append({"data": about, "predictions": [prediction] if each.predicted else []})
    return json.dumps(tasks, ensure_ascii=False, indent=1).encode()


def label_studio_config(vocab: Sequence[str], task: str) -> str:
    """The labelling interface that fits these tasks, to be pasted into Label Studio's settings."""
    if task == "regression":
        asked = '  <TextArea name="label" toName="image" placeholder="a number" maxSubmissions="1"/>\n'
    else:
        choice = "multiple" if task == "multi_label" else "single"
        words = "".join(f"    <Choice value={quoteattr(word)}/>\n" for word in vocab)
        asked = f'  <Choices name="label" toName="image" choice="{choice}" showInline="true">\n{words}  </Choices>\n'
    return f'<View>\n  <Image name="image" value="$image"/>\n{asked}</View>'


def to_fiftyone(images: Sequence[ToLabel], vocab: Sequence[str], task: str) -> bytes:
    """The labels.json of a FiftyOneImageClassificationDataset: predictions, with their rank as an attribute.

    FiftyOne finds an image by an absolute path, or by a path without its suffix below its ``data_path``: of a bucket's
    image that is its key, so that a copy of the bucket is its ``data_path``.
    Raises SettingError for a regression, for which that format has no place.
    """
    if task == "regression":
        raise SettingError("FiftyOne's format of classifications holds no numbers: --to csv or --to labelstudio")
    labels: dict[str, Any] = {}
    for rank, each in enumerate(images, start=1):
        attributes = {"rank": rank, "moved": each.moved, "chosen": each.chosen}
        found = [{"label": word, "confidence": each.confidence, "attributes": attributes} for word in each.predicted]
        name = without_suffix(each.uri.split("://", 1)[1].split("/", 1)[-1]) if "://" in each.uri else each.uri
        labels[name] = found if task == "multi_label" else next(iter(found), None)
    return json.dumps({"classes": list(vocab), "labels": labels}, ensure_ascii=False, indent=1).encode()


def without_suffix(name: str) -> str:
    """A path without the suffix of its file, as FiftyOne names images."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rsplit('.', 1)[0] or last}"


def read_labels_of_people(data: bytes, where: str) -> Labels:
    """Read a file of labels; its content says which of the three forms it has.

    Raises SettingError, with the line or task, for a file that has none of them or that contradicts itself.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(f"{where} is no UTF-8 text ({error}). Save it as CSV UTF-8, or as JSON.") from error
    if not text.strip():
        raise SettingError(
            f"{where} is empty. Expected a CSV with fname,label, or an export of Label Studio or FiftyOne."
        )
    if text.lstrip()[0] not in "[{":
        return _read_csv(text, where)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{where} begins like JSON, and is none: {error}") from error
    if isinstance(found, list):
        return _read_label_studio(found, where)
    if isinstance(found.get("labels"), dict):
        return _read_fiftyone(found, where)
    keys = ", ".join(map(repr, list(found)[:5])) or "none"
    raise SettingError(
        f"{where}: expected a list of tasks (Label Studio's JSON or JSON-MIN) or an object with labels (FiftyOne's "
        f"labels.json), found an object with the keys {keys}."
    )


def _read_csv(text: str, where: str) -> Labels:
    header = text.lstrip("\r\n").splitlines()[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    labels: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    names: set[str] = set()
    columns: list[str] = []
    for number, row in _numbered(reader, where):
        if not columns:
            columns = [name.strip() for name in row]
            _need_columns(columns, where)
            continue
        if len(row) != len(columns):
            raise SettingError(f"{where}, line {number}: expected {len(columns)} columns, found {len(row)}.")
        name, label = row[columns.index("fname")], row[columns.index("label")].strip()
        if not name:
            raise SettingError(f"{where}, line {number}: expected the name of an image in fname, found nothing.")
        names.add(name)
        if not label:
            continue
        if labels.setdefault(name, (label,)) != (label,):
            raise SettingError(
                f"{where}, line {number}: {name} is {label!r}, and {labels[name][0]!r} in line {lines[name]}. "
                "Expected one label an image: keep the right line."
            )
        lines.setdefault(name, number)
    none = frozenset(name for name, words in labels.items() if words == (NO_CLASS,))
    return Labels("csv", labels, len(names) - len(labels), none=none)


def _numbered(reader: Any, where: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line that it ends on."""
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise SettingError(f"{where}, line {reader.line_num}: no CSV: {error}") from error


def _need_columns(columns: list[str], where: str) -> None:
    if missing := [name for name in ("fname", "label") if columns.count(name) != 1]:
        raise SettingError(
            f"{where}, line 1: expected the columns fname,label, each once; found {', '.join(columns)[:200]!r} "
            f"({', '.join(missing)} is missing or there twice)."
        )


def _read_label_studio(tasks: list[Any], where: str) -> Labels:
    """An export as JSON or JSON-MIN. Of several annotators the majority counts, and the newest where there is none."""
    said: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for number, task in enumerate(tasks, start=1):
        if not isinstance(task, dict):
            raise SettingError(f"{where}, task {number}: expected an object, found {str(task)[:80]!r}.")
        whole = isinstance(task.get("data"), dict)
        name = (task["data"] if whole else task).get("image")
        if not isinstance(name, str) or not name:
            raise SettingError(
                f"{where}, task {number}: expected the image's uri as {'data.image' if whole else 'image'}, found the "
                f"keys {', '.join(map(str, task['data'] if whole else task))[:200]}."
            )
        found = _annotations(task) if whole else _minimal(task)
        said.setdefault(_local_name(name), []).extend(found)
    given = {name: found for name, found in said.items() if found}
    labels = {name: _agreed([each for each in found if each[1]] or found) for name, found in given.items()}
    none = frozenset(name for name, found in given.items() if not _agreed(found))
    return Labels("labelstudio", labels, len(said) - len(labels), none=none)


def _annotations(task: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """What the annotators of a task said, and when. One that is marked as the ground truth counts alone."""
    there = [each for each in task.get("annotations") or task.get("completions") or [] if isinstance(each, dict)]
    there = [each for each in there if not each.get("was_cancelled")]
    there = [each for each in there if each.get("ground_truth")] or there
    said = ((_when(each), _values(each.get("result") or [])) for each in there)
    # What was submitted without any choice says that no class is there; an unknown control says nothing.
    empty = [not (each.get("result") or []) for each in there]
    return [(when, values) for (when, values), none in zip(said, empty, strict=True) if values or none]


def _values(results: list[Any]) -> tuple[str, ...]:
    words: list[str] = []
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        for key in ("choices", "text", "number"):
            words += _words(value.get(key)) if isinstance(value, dict) else ()
    return tuple(words)


def _minimal(task: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """JSON-MIN has one object an annotation, and what was said under the name of the control: ours is ``label``."""
    value = next((task[key] for key in ("label", "choice", "choices") if task.get(key)), None)
    words = _words(value.get("choices") if isinstance(value, dict) else value)
    # Only what was submitted has an id of its own.
    return [(_when(task), words)] if words or "annotation_id" in task else []


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(word for each in values if isinstance(each, str | int | float) and (word := str(each).strip()))


def _when(each: dict[str, Any]) -> str:
    return str(each.get("updated_at") or each.get("created_at") or "")


def _agreed(said: list[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    votes = Counter(frozenset(values) for _, values in said)
    most = max(votes.values())
    return max((each for each in said if votes[frozenset(each[1])] == most), key=lambda each: each[0])[1]


def _local_name(name: str) -> str:
    """Label Studio serves files of its own disk as /data/local-files/?d=PATH."""
    return unquote(name.split("?d=", 1)[1]) if name.startswith("/data/local-files/?d=") else name


def _read_fiftyone(found: dict[str, Any], where: str) -> Labels:
    """A labels.json. What carries a confidence is a model's word, and left out as not labelled."""
    classes = found.get("classes") or []
    labels: dict[str, tuple[str, ...]] = {}
    for name, target in found["labels"].items():
        targets = target if isinstance(target, list) else [] if target is None else [target]
        words = []
        for each in targets:
            about = each if isinstance(each, dict) else {"label": each}
            if about.get("label") is None or about.get("confidence") is not None:
                continue
            words.append(_class_name(about["label"], classes, f"{where}, image {name!r}"))
        if words:
            labels[name] = tuple(words)
    none = frozenset(name for name, words in labels.items() if words == (NO_CLASS,))
    return Labels("fiftyone", labels, len(found["labels"]) - len(labels), stems=True, none=none)


def _class_name(label: Any, classes: list[Any], where: str) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < len(classes):
            raise SettingError(f"{where}: expected a class below {len(classes)}, found the number {label}.")
        return str(classes[label])
    if not isinstance(label, str):
        raise SettingError(f"{where}: expected a label as text or a class's number, found {str(label)[:80]!r}.")
    return label.strip()
