"""The round trip of labels: a run's review queue goes out to people, their labels come back and are counted.

Knows the order of both ways. Does not know a format, nor how accuracy is counted. A file that is there is never written
over: somebody may have put labels into it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.errors import SettingError
from drivetrain.flips import flips_to_label
from drivetrain.judge import judge_labelled
from drivetrain.labelfiles import (
    NO_CLASS,
    Chosen,
    Labels,
    ToLabel,
    delimiter_of,
    label_studio_config,
    read_labels_of_people,
    to_csv,
    to_fiftyone,
    to_label_studio,
    without_suffix,
)
from drivetrain.labels import keep_drawn, keep_labels, people_labels
from drivetrain.layout import Layout
from drivetrain.manifest import find_plan, manifest_images
from drivetrain.nights import latest_record
from drivetrain.planruns import committed_runs, counting_run, known_of
from drivetrain.realised import draw, rows_of
from drivetrain.reference import tail_of
from drivetrain.review import chosen_as, predicted_of
from drivetrain.root import from_json, open_root
from drivetrain.run import Run
from drivetrain.store import Store

PlanName = tuple[str, str]
# Instead of a number of parts: the whole key.
WHOLE = 0
SUFFIX = {"csv": "csv", "labelstudio": "json", "fiftyone": "json"}


def export_queue(config: Config) -> dict[str, Any]:
    """Write a run's images to be labelled as a file, without those that have labels already.

    Needs ``root``, ``run``. The images are the review queue of a measured run; with ``flips``, the id of another run
    over the same images, those whose label the two runs don't share, ``review_size`` at most. ``to`` says the form,
    ``output`` the file (``queue-RUN.csv`` or ``flips-RUN.csv`` here by default), ``sample`` how many images drawn at
    random come with it, so that labels tell the night's accuracy; it draws from a run that was not measured too.
    Returns the job's result: ``queue``, and how many ``images``. Raises SettingError when the run has not been measured
    and neither flips nor a sample is wanted, and when the file is there and holds something else.
    """
    _, run_id = config.need("root", "run")
    store, layout = open_root(config, existing=True)
    run = Run.find(store, layout, run_id).newest()
    people = people_labels(store, layout, run.record.source)
    queue = _flips(run, config, people) if config.flips else _review(run, config)
    drawn = draw(run, config.sample) if config.sample else []
    images = _to_label(run, queue, drawn, people)
    file = store.normalise(config.output or f"{queue.name}-{run_id}.{SUFFIX[config.to]}")
    data = _as_file(run, images, config)
    _refuse_other(store, file, data)
    if drawn:
        # Before the file: labels of one whose draw is not known would be taken for those of images that moved.
        keep_drawn(store, layout, run.record.source, run.record.kind, run.record.name, drawn)
    if not store.create(file, data):
        _refuse_other(store, file, data)
    chosen = Counter(each.chosen for each in images)
    left_out = {uri for uri in (*queue.moved, *drawn) if uri in people} | queue.labelled
    result = {
        "run_id": run.record.run_id, "queue": file, "to": config.to, "images": len(images),
        "moved": chosen["moved"], "unsure": chosen["unsure"], "flipped": chosen["flipped"], "random": chosen["random"],
        "labelled_before": len(left_out),
    }  # fmt: skip
    if config.to == "labelstudio":
        result["interface"] = label_studio_config(run.record.vocab, run.record.task)
    return result


@dataclass(frozen=True)
class _Queue:
    """Images in their order, each with how far it moved where that is known. ``labelled``: those left out before."""

    name: str
    chosen: Chosen
    moved: Mapping[str, float | None]
    labelled: frozenset[str] = frozenset()


def _review(run: Run, config: Config) -> _Queue:
    """The review queue of a run; nothing of one that was not measured, where images are drawn at random."""
    done = latest_record(run.store, run.layout, run) if run.committed() else None
    if done is None and not (config.sample and run.committed()):
        where = f"--root {run.layout.root} --run {run.record.run_id}"
        raise SettingError(
            f"Run {run.record.run_id} has not been measured: it has no queue. First: drivetrain drift measure {where}\n"
            "Or label images drawn at random (--sample 100), or those that another run calls otherwise (--flips RUN)."
        )
    rows = run.store.read_table(done[0].review).to_pylist() if done else []
    chosen = chosen_as(rows[0]["moved"]) if rows else "moved"
    return _Queue("queue", chosen, {row["uri"]: row["moved"] for row in rows})


def _flips(run: Run, config: Config, people: Mapping[str, str]) -> _Queue:
    """The images on which a run and another one disagree. Raises RunError where one of them is not committed."""
    other = Run.find(run.store, run.layout, str(config.flips)).newest()
    found = flips_to_label(other, run, config.review_size, people.keys())
    return _Queue("flips", "flipped", dict.fromkeys(found.uris), found.labelled)


def _to_label(run: Run, queue: _Queue, drawn: list[str], people: Mapping[str, str]) -> list[ToLabel]:
    """The queue in its order, then what was drawn; each image once, and none that people have labelled."""
    uris = [uri for uri in dict.fromkeys([*queue.moved, *drawn]) if uri not in people]
    rows = rows_of(run, uris, ["label", "labels", "values", "confidence", "true_label"])
    at_random = set(drawn)
    return [
        ToLabel(
            uri=uri,
            label=rows[uri]["true_label"],
            predicted=predicted_of(run.record.task, rows[uri]),
            confidence=rows[uri]["confidence"],
            moved=queue.moved.get(uri),
            chosen="random" if uri in at_random else queue.chosen,
        )
        for uri in uris
        if uri in rows
    ]


def _as_file(run: Run, images: list[ToLabel], config: Config) -> bytes:
    vocab, task = run.record.vocab, run.record.task
    if config.to == "labelstudio":
        return to_label_studio(images, run.record.model_id, task)
    if config.to == "fiftyone":
        return to_fiftyone(images, vocab, task)
    return to_csv(images, delimiter_of(vocab))


def _refuse_other(store: Store, file: str, data: bytes) -> None:
    """Raise SettingError where a file is there and holds something else."""
    if store.exists(file) and store.read(file) != data:
        raise SettingError(
            f"{file} is there and holds something else: labels, perhaps. Nothing was written.\n"
            "Name another file with --output, or remove this one."
        )


@dataclass
class _Found:
    """What a walk over a source's plans found. ``plans``: of each image that some name fits, the plans it is in."""

    plans: dict[str, set[PlanName]] = field(default_factory=dict)
    by_end: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    example: str = ""

    def add(self, uri: str, plan: PlanName) -> None:
        """An image of a plan that a name may mean."""
        self.plans.setdefault(uri, set()).add(plan)


def import_labels(config: Config, file: str) -> dict[str, Any]:
    """Take in the labels that people gave a source's images, and count how often the learner was right.

    Needs ``root``, and ``source`` or ``images``, which name it. ``file``: a CSV with fname and label, Label Studio's
    JSON or JSON-MIN, or FiftyOne's labels.json. Returns the job's result: how many ``labels``, ``new`` ones among them,
    and of each of the ``nights`` the realised accuracy. The same file again changes nothing. Raises SettingError for a
    file that is none of these, and when no image fits.
    """
    config.need("root")
    source = config.the_source()
    store, layout = open_root(config, existing=True)
    where = store.normalise(file)
    try:
        read = read_labels_of_people(store.read(where), where)
    except OSError as error:
        raise SettingError(f"The labels file {where} can't be read: {error}") from error
    if not read.by_name:
        _say_no_label(where, read.unlabelled)
    with busy(f"Looking for the images of {len(read.by_name):,} labels"):
        names, found = _matched(store, layout, source, read)
    unknown = [name for name in read.by_name if name not in names]
    if not names:
        _say_no_image(where, source, unknown[0], found.example)
    if unknown:
        say(f"{len(unknown):,} labelled images are in no plan of {source}, or fit several; e.g. {unknown[0]!r}.")
    runs = _runs_of(store, layout, source, found, set(names.values()))
    nights = {plan: counting for plan, (counting, _) in runs.items()}
    run = next((run for run in nights.values() if run), None)
    labels = {uri: text for name, uri in names.items() if (text := _kept(read, name, run)) is not None}
    unlabelled = read.unlabelled + len(names) - len(labels)
    if not labels:
        _say_no_label(where, unlabelled)
    _say_foreign(labels, nights)
    new = keep_labels(store, layout, source, labels)
    if not new:
        say(f"All of these {len(labels):,} labels are known already.")
    for _, others in runs.values():
        for run in others:
            judge_labelled(store, layout, run, config)
    return {
        "labels": len(labels), "new": new, "unknown": len(unknown), "unlabelled": unlabelled,
        "form": read.form, "source": source, "kept": layout.labels(source),
        "nights": [_judged(store, layout, *each, found, labels, config) for each in nights.items()],
    }  # fmt: skip


def _kept(read: Labels, name: str, run: Run | None) -> str | None:
    """An image's labels as one text, empty for the empty set of a multi-label learner; None without any."""
    vocab = run.record.vocab if run else ()
    if run and run.record.task == "multi_label" and name in read.none and NO_CLASS not in vocab:
        return ""
    return delimiter_of(vocab).join(read.by_name[name]) or None


def _say_no_label(where: str, images: int) -> NoReturn:
    raise SettingError(f"{where} holds {images:,} images and no label: fill them in first.")


def _say_no_image(where: str, source: str, name: str, example: str) -> None:
    there = f"the first image of {source} is {example!r}" if example else f"{source} has no plan"
    raise SettingError(f"{where}: no image fits. The first name in the file is {name!r}, {there}.")


def _matched(store: Store, layout: Layout, source: str, read: Labels) -> tuple[dict[str, str], _Found]:
    """The uri that each name means: itself, else the image of that key, else the one with the longest end of its path.

    A name that is a whole uri means nothing else. Plan by plan and file by file: only what fits is kept in memory.
    """
    names = pa.array(list(read.by_name), pa.string())
    ends = _ends_of_names([_own(name, read) for name in read.by_name if "://" not in name])
    found = _Found()
    for plan, batch in _images(store, layout, source):
        uris = batch["uri"]
        found.example = found.example or uris[0].as_py()
        for uri in uris.filter(pc.is_in(uris, names)).to_pylist():
            found.add(uri, plan)
        if any(ends.values()):
            _note_ends(uris.to_pylist(), plan, ends, read, found)
    matched = {name: name for name in read.by_name if name in found.plans}
    taken = set(matched)
    for depth in ends:
        for name in read.by_name:
            end = _end(_own(name, read), depth)
            fits = found.by_end.get((depth, end), set())
            if name not in matched and end in ends[depth] and len(fits) == 1 and not fits & taken:
                (matched[name],) = fits
                taken |= fits
    return matched, found


def _ends_of_names(names: Sequence[str]) -> dict[int, set[str]]:
    """By depth, from the whole key down to the last part: the ends that one name alone has."""
    deepest = max((len(_end(name, WHOLE).split("/")) for name in names), default=0)
    counted = {depth: Counter(_end(name, depth) for name in names) for depth in (WHOLE, *range(deepest, 0, -1))}
    return {depth: {end for end, number in ends.items() if number == 1} for depth, ends in counted.items()}


def _end(path: str, depth: int) -> str:
    """The last ``depth`` parts of a path or uri; of WHOLE its key, which is all but the bucket."""
    if depth != WHOLE:
        return tail_of(path, depth)
    return (path.split("://", 1)[1].partition("/")[2] if "://" in path else path).replace("\\", "/").lstrip("/")


def _note_ends(uris: list[str], plan: PlanName, ends: dict[int, set[str]], read: Labels, found: _Found) -> None:
    # Most images have a file name that nobody named: the longer ends of these are never made.
    lasts = {tail_of(_own(name, read), 1) for name in read.by_name}
    for uri in uris:
        path = without_suffix(uri) if read.stems else uri
        if tail_of(path, 1) not in lasts:
            continue
        for depth, wanted in ends.items():
            end = _end(path, depth)
            if end not in wanted:
                continue
            fits = found.by_end.setdefault((depth, end), set())
            # A second one says already that the name means none of them.
            if uri in fits or len(fits) < 2:
                fits.add(uri)
                found.add(uri, plan)


def _own(name: str, read: Labels) -> str:
    """A name as it is held against those of images: of a file of stems an absolute path alone has its suffix still."""
    return without_suffix(name) if read.stems and Path(name).is_absolute() else name


def _images(store: Store, layout: Layout, source: str) -> Iterator[tuple[PlanName, pa.RecordBatch]]:
    """The images of all plans of a source, nights first, batch by batch."""
    for kind in ("night", "plan"):
        for name in store.names(layout.plan(source, kind, "x").folder.rsplit("/", 1)[0]):
            if plan := find_plan(store, layout, source, kind, name):
                for batch in manifest_images(store, plan.paths(layout).manifest(plan.digest)):
                    yield (kind, name), batch


def _runs_of(
    store: Store, layout: Layout, source: str, found: _Found, uris: Iterable[str]
) -> dict[PlanName, tuple[Run | None, list[Run]]]:
    """The plans that hold images with labels, each with the run that counts, None where none is committed, and others.

    The others are the newest of each further learner: one of them may be promoted, and then counts with these labels.
    """
    plans = sorted({plan for uri in uris for plan in found.plans[uri]})
    known = known_of(store, layout, source)
    runs: dict[PlanName, tuple[Run | None, list[Run]]] = {}
    for plan in plans:
        counting = counting_run(store, layout, source, *plan, known)
        newest = {run.record.model_id: run for run in committed_runs(store, layout, source, *plan, known.runs)}
        mine = counting.record.model_id if counting else None
        runs[plan] = counting, [run for model_id, run in newest.items() if model_id != mine]
    return runs


def _say_foreign(labels: Mapping[str, str], nights: Mapping[PlanName, Run | None]) -> None:
    """A class that the learner lacks is what may come: kept, and said."""
    run = next((run for run in nights.values() if run and run.record.vocab), None)
    if run is None:
        return
    delimiter = delimiter_of(run.record.vocab) if run.record.task == "multi_label" else None
    words = Counter(
        word.strip() for label in labels.values() for word in (label.split(delimiter) if delimiter else [label])
    )
    foreign = [(word, number) for word, number in words.most_common() if word and word not in run.record.vocab]
    if foreign:
        few = ", ".join(f"{word!r} ({number:,})" for word, number in foreign[:3])
        say(f"{len(foreign):,} labels are no classes of the learner: {few}{', …' * (len(foreign) > 3)}. They are kept.")


def _judged(
    store: Store, layout: Layout, plan: PlanName, run: Run | None, found: _Found, labels: Mapping[str, str],
    config: Config,
) -> dict[str, Any]:  # fmt: skip
    """Make the page of one night anew, and say what the labels say of it."""
    about = {"kind": plan[0], "night": plan[1], "labels": sum(plan in found.plans[uri] for uri in labels)}
    result = judge_labelled(store, layout, run, config) if run else None
    if run is None or result is None:
        missing = "is not scored"
        if run:
            missing = f"is not measured: drivetrain drift measure --root {layout.root} --run {run.record.run_id}"
        return about | {"realised": [], "why": f"{plan[1]} {missing}"}
    closed = from_json(store, result["report"].replace("report.html", "verdict.json")) or {}
    return about | {
        "run_id": run.record.run_id,
        "report": result["report"],
        "realised": closed["numbers"].get("realised_accuracy", []),
        "estimated": closed["numbers"].get("accuracy"),
    }
