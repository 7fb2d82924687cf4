"""A folder of images with the label that each must get: the cases that somebody insists on.

Knows the folder's two forms (a subfolder for each label, or a labels.csv) and what a label is for each kind of learner.
Does not know what a learner says. A case without a label, or a label without its image, is an error: a case that is
passed over in silence would never fail.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.config import nearest
from drivetrain.errors import SettingError
from drivetrain.export import LearnerInfo, Task
from drivetrain.manifest import list_images, why_no_image
from drivetrain.store import Store

LABELS_FILE = "labels.csv"
# Between the labels of a multi-label case, and between the values of a regression's.
SEPARATOR = ";"

# What a learner says of an image: one label, its set of labels in order, or its values.
Answer = tuple[str, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """An image and what a learner must say of it, as somebody wrote it."""

    uri: str
    etag: str
    expected: str

    def answer(self, task: Task) -> Answer:
        """What must come: values of a regression, the set of labels in order, or the one label.

        Raises ValueError for a value that is no number.
        """
        words = tuple(word for each in self.expected.split(SEPARATOR) if (word := each.strip()))
        if task == "regression":
            return tuple(float(word) for word in words)
        return tuple(sorted(words)) if task == "multi_label" else (self.expected,)


def read_cases(store: Store, folder: str) -> tuple[Case, ...]:
    """The cases of a folder, in the order of their uris.

    Raises SettingError for a folder without an image, an image without a label, one in a hidden place, or a labels.csv
    that names other files.
    """
    listing = list_images(store, folder)
    images = [(each.uri, each.etag) for each in listing.images]
    if listing.skipped.get("hidden"):
        _refuse_hidden(store, folder)
    if not images:
        raise SettingError(f"No image below {folder}. Expected a subfolder for each label, or a {LABELS_FILE} there.")
    where = f"{folder}/{LABELS_FILE}"
    keys = [uri.removeprefix(f"{folder}/") for uri, _ in images]
    labels = _of_file(store, where, keys) if store.exists(where) else _of_folders(folder, keys)
    return tuple(Case(uri, etag, labels[key]) for (uri, etag), key in zip(images, keys, strict=True))


def _refuse_hidden(store: Store, folder: str) -> None:
    """Raise SettingError for a case in a place that no listing of images looks into.

    A file with a dot before its own name is no case to anybody: systems leave such ones behind.
    """
    for batch in store.listed(folder):
        for uri in batch["uri"].to_pylist():
            key = uri.removeprefix(f"{folder}/")
            last = key.rsplit("/", 1)[-1]
            if why_no_image(key) == "hidden" and not last.startswith(".") and why_no_image(last.lstrip("_")) is None:
                raise SettingError(
                    f"The case {uri} would be passed over: names that begin with _ or . are hidden. Rename the folder "
                    f"or the file; a label that begins so can be given in a {LABELS_FILE} (fname,label) in {folder}."
                )


def _of_folders(folder: str, keys: Sequence[str]) -> dict[str, str]:
    for key in keys:
        if "/" not in key:
            raise SettingError(
                f"The case {folder}/{key} has no label: it lies in no subfolder named by one, and there is no "
                f"{LABELS_FILE} (fname,label) in {folder}."
            )
    return {key: key.split("/", 1)[0] for key in keys}


def _of_file(store: Store, where: str, keys: Sequence[str]) -> dict[str, str]:
    try:
        reader = csv.DictReader(io.StringIO(store.read(where).decode("utf-8-sig")))
        labels = {row["fname"]: row["label"] for row in reader}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"{where}: expected the columns fname,label, and it can't be read so: {error}.") from error
    there = dict.fromkeys(keys)
    for fname, label in labels.items():
        if fname not in there:
            raise SettingError(f"The case {fname!r} of {where} is not there. {nearest(fname, there)}")
        if label is None:
            raise SettingError(f"{where}: the case {fname!r} has no label.")
    for key in keys:
        if key not in labels:
            raise SettingError(f"The case {key!r} has no line in {where}: add its label, or take the image away.")
    return labels


def check_cases(cases: Sequence[Case], infos: Sequence[LearnerInfo]) -> None:
    """Raises SettingError for a case whose label no learner can give. One that only the other learner knows may be
    asked for: a learner that lost a class fails there."""  # fmt: skip
    known = {word: None for info in infos for word in info.vocab}
    for case in cases:
        if infos[0].task == "regression":
            try:
                fits = len(case.answer("regression")) == infos[0].outputs
            except ValueError:
                fits = False
            if not fits:
                raise SettingError(
                    f"The case {case.uri} must get {case.expected!r}; expected {infos[0].outputs} numbers, separated "
                    f"by {SEPARATOR!r}."
                )
            continue
        for word in case.answer(infos[0].task):
            if word not in known:
                raise SettingError(f"The case {case.uri} must get {word!r}, no label. {nearest(str(word), known)}")
