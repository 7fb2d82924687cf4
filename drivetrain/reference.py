"""The training set as the yardstick: scored the same road, each image marked as trained, held out or unknown.

Knows splits and true labels, and how the rows of a run become the arrays that drift takes. Does not know what a night
is. Nights are compared with held-out images: on images that the learner was trained on it is too sure of itself, and
nights held against those alarm without drift.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.admit import admit_learner
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.drift import REFERENCE_PER_IMAGE, SMALLEST_TEST
from drivetrain.errors import SettingError
from drivetrain.images import Images
from drivetrain.layout import Layout
from drivetrain.lens import PROPERTIES, Matrix, Scores
from drivetrain.manifest import Label, Plan, digest_of, freeze, list_images, manifest_images, with_labels
from drivetrain.planruns import reference_name
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.schema import column, matrix
from drivetrain.score import begin_run, check_groups, finish_run, result_of
from drivetrain.store import Store
from drivetrain.trained import keep_trained

TRAINED_FOLDERS = {"train", "training"}
HELD_OUT_FOLDERS = {"valid", "val", "validation", "test", "held_out", "holdout"}
DEEPEST_TAIL = 4
# More rows than that on either side change no decision: the test looks at 1,000 images of a night against 5,000.
MOST_ROWS = 20_000
SCORE_COLUMNS = (
    "uri", "embedding", "probs", "values", "confidence", "energy", "label", "label_index", "true_label", "group",
    "size", "width", "height", "brightness", "contrast", "sharpness", "content_hash",
)  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """What is said of some images. ``of``: the split and the true label of a uri, or None.

    ``elsewhere``: names of images that the learner was trained on, and that are none of these.
    """

    of: Callable[[str], Label | None]
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """Which run is the reference of a model under some settings, and how many of its images are of which split.

    ``leaked``: held-out images with the very bytes of images that were trained on.
    """

    run_id: str
    model_id: str
    settings: dict[str, Any]
    splits: dict[str, int]
    labelled: int
    created: str
    leaked: int = 0

    @property
    def held_out(self) -> bool:
        """Whether any image is marked as held out; without one, nights are compared with all of them."""
        return self.splits.get("held_out", 0) > 0


def build_reference(config: Config) -> dict[str, Any]:
    """Score the images that the learner was trained on and validated with, and make them its reference.

    Needs ``root``, ``learner``, ``images``; ``labels`` says which images are held out. Returns the job's result. The
    same config again resumes, or finds the reference there.
    """
    config.need("root", "learner", "images")
    check_first(config)
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    prefix = store.normalise(config.images_of(config.the_night()))
    listing = list_images(store, prefix)
    if not listing.images:
        raise SettingError(
            f"No image below {prefix}. Is the prefix right? Passed over: {listing.skipped or 'nothing'}."
        )
    marks = _marks(store, config, prefix, listing.images, info.vocab)
    images = with_labels(listing.images, marks.of)
    if info.task == "single_label":
        _say_foreign_labels(images, info.vocab)
    plan = _frozen(store, layout, images, config.the_source(), prefix, listing.skipped)
    check_groups(store, layout, plan, config)
    run = begin_run(store, layout, plan, info, config)
    if run.committed():
        say(f"Reference {run.record.run_id} is committed already; nothing to do.")
    finish_run(run, config)
    reference = register(store, layout, run, marks.elsewhere)
    return result_of(run) | {"reference": run.record.run_id, "splits": reference.splits, "labelled": reference.labelled}


def relabelled(
    store: Store, layout: Layout, config: Config, plan: Plan, vocab: Sequence[str]
) -> tuple[Plan, tuple[str, ...]]:
    """The very images of a reference's plan with splits and labels of the config's labels file: a plan of its own.

    Beside it the names that the file marks as trained and that are none of these images.
    """
    known = Images(manifest_images(store, plan.paths(layout).manifest(plan.digest)))
    marks = _marks(store, config, plan.prefix, known, vocab)
    images = with_labels(known, marks.of)
    return _frozen(store, layout, images, plan.source, plan.prefix, plan.skipped), marks.elsewhere


def _frozen(store: Store, layout: Layout, images: Images, source: str, prefix: str, skipped: dict[str, int]) -> Plan:
    name = reference_name(digest_of(images))
    return freeze(store, layout, images, source=source, kind="plan", name=name, prefix=prefix, skipped=skipped)


def register(store: Store, layout: Layout, run: Run, elsewhere: Iterable[str] | None = None) -> Reference:
    """Make a committed run a reference of its model, or find that it is one.

    ``elsewhere``: names of other images that the learner was trained on, as its owner says; None where the splits are
    not of its owner's saying.
    """
    marks = run.manifest(["split", "true_label"])
    counts = marks["split"].fill_null("unknown").value_counts().to_pylist()
    splits = Counter({each["values"]: each["counts"] for each in counts})
    labelled = len(marks) - marks["true_label"].null_count
    # Of two references the newest counts, and one may follow the other within a second.
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    record, leaked = run.record, _leaked(run)
    reference = Reference(record.run_id, record.model_id, record.settings, dict(splits), labelled, now, leaked)
    if elsewhere is not None and (splits["trained"] or elsewhere):
        # First: whoever finds the reference finds what was said with it.
        keep_trained(store, layout, record.model_id, record.run_id, elsewhere)
    store.create(f"{layout.references(record.model_id)}/{record.run_id}.json", to_json(asdict(reference)))
    if leaked:
        say(
            f"{leaked:,} held-out images have the very bytes of images that were trained on. The learner is too "
            "sure of these: take them out of the held-out ones, or nights look drifted when they are not."
        )
    if not reference.held_out:
        say(
            "No image of this reference is marked as held out. A learner is surer of images that it was trained on, so "
            "nights will look drifted when they are not. Give --labels (fname,label,is_valid) or train/, valid/."
        )
    least = SMALLEST_TEST * REFERENCE_PER_IMAGE
    there = splits["held_out"] if reference.held_out else len(marks)
    if there < least:
        say(f"Nights can't be judged by this reference: it has {there} images to compare with; {least} are needed.")
    return reference


def _leaked(run: Run) -> int:
    """How many contents of held-out images were trained on, under whatever name: the learner is too sure of these."""
    seen: dict[str, set[str]] = {"trained": set(), "held_out": set()}
    for shard in range(run.record.shards):
        rows = run.store.read_table(run.paths.part(shard), ["split", "content_hash"]).to_pylist()
        for row in rows:
            if row["content_hash"] and row["split"] in seen:
                seen[row["split"]].add(row["content_hash"])
    return len(seen["trained"] & seen["held_out"])


def find_reference(store: Store, layout: Layout, run: Run) -> Reference | None:
    """The newest reference made by the same model with the same settings as a run, or None."""
    return reference_under(store, layout, run.record.model_id, run.record.settings)


def named_reference(store: Store, layout: Layout, run: Run, run_id: str | None) -> Reference | None:
    """The reference of a run's model that is the run of that id, or None."""
    found = from_json(store, f"{layout.references(run.record.model_id)}/{run_id}.json") if run_id else None
    return Reference(**found) if found else None


def reference_under(store: Store, layout: Layout, model_id: str, settings: dict[str, Any]) -> Reference | None:
    """The newest reference made by a model with such settings, or None."""
    found = references_of(store, layout, model_id)
    wanted = comparable(settings)
    same = [reference for reference in found if comparable(reference.settings) == wanted]
    return _newest(same)


def newest_reference(store: Store, layout: Layout, model_id: str) -> Reference | None:
    """The newest reference of a model, whatever its settings, or None."""
    return _newest(references_of(store, layout, model_id))


def _newest(found: list[Reference]) -> Reference | None:
    return max(found, key=lambda reference: (reference.created, reference.run_id), default=None)


def references_of(store: Store, layout: Layout, model_id: str) -> list[Reference]:
    """All references of a model, whatever their settings."""
    folder = layout.references(model_id)
    return [Reference(**record) for name in store.names(folder) if (record := from_json(store, f"{folder}/{name}"))]


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what makes no difference between a night and its reference.

    OpenVINO is used only where it gives what torch gives, and a head alone only where it gives what the images give.
    """
    told = {key: value for key, value in settings.items() if key != "head_of"}
    return told | ({"engine": "exact"} if settings["engine"] in ("torch", "openvino") else {})


def scores_of(rows: pa.Table, vocab: Sequence[str]) -> Scores:
    """Rows with status ok as arrays; each image is a group of its own. ``vocab`` is empty for a regression."""
    probs = rows["probs"] if rows["probs"].null_count == 0 else rows["values"]
    has_embeddings = len(rows) > 0 and rows["embedding"].null_count == 0
    labels = rows["label_index"]
    places = {word: place for place, word in enumerate(vocab)}
    return Scores(
        embeddings=(matrix(rows["embedding"]) if has_embeddings else np.zeros((len(rows), 0))).astype(np.float64),
        outputs=matrix(probs).astype(np.float64) if len(rows) else np.zeros((0, len(vocab) or 1)),
        confidence=column(rows, "confidence"),
        energy=column(rows, "energy"),
        labels=labels.to_numpy().astype(np.int64) if labels.null_count == 0 else np.zeros(0, np.int64),
        groups=np.arange(len(rows)),
        truth=np.array([places.get(word, -1) for word in rows["true_label"].to_pylist()], np.int64),
        properties=_properties(rows),
    )


def _properties(rows: pa.Table) -> Matrix:
    """`lens.PROPERTIES` of each image; sizes as powers of two, since twice as large is as far as half."""
    width, height, size = (column(rows, name) for name in ("width", "height", "size"))
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.log2(width * height)
        sizes = [pixels, np.log2(width / height), np.log2(size) - pixels]
    looks = [column(rows, name) for name in ("brightness", "contrast", "sharpness")]
    found = np.stack([*looks, *sizes], axis=1) if len(rows) else np.zeros((0, len(PROPERTIES)))
    return np.where(np.isfinite(found), found, np.nan)


def _marks(store: Store, config: Config, prefix: str, images: Images, vocab: Sequence[str]) -> Marks:
    """What the labels file says of some images, or the folders that they lie in."""
    if config.labels is None:
        return Marks(lambda uri: label_of_folders(uri.removeprefix(prefix), vocab))
    where = store.normalise(config.labels)
    try:
        text = store.read(where).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The labels file {where} can't be read: {error}") from error
    return match_labels(read_labels(text, where), [image.uri for image in images], where)


def _say_foreign_labels(images: Images, vocab: Sequence[str]) -> None:
    labels = Counter(label for batch in images.batches() for label in batch["true_label"].drop_null().to_pylist())
    foreign = Counter({label: number for label, number in labels.items() if label not in vocab})
    if foreign:
        few = ", ".join(repr(label) for label, _ in foreign.most_common(3))
        known = ", ".join(repr(word) for word in vocab[:5])
        many = f"{sum(foreign.values()):,} images have labels that the learner does not know"
        say(f"{many} ({few}); it knows {known}{', …' if len(vocab) > 5 else ''}.")


def label_of_folders(key: str, vocab: Sequence[str]) -> Label:
    """Split and true label of an image from the folders it lies in: ``train/`` or ``valid/``, and a class's name."""
    folders = key.strip("/").split("/")[:-1]
    lower = {folder.lower() for folder in folders}
    split = "trained" if lower & TRAINED_FOLDERS else "held_out" if lower & HELD_OUT_FOLDERS else "unknown"
    return split, next((folder for folder in reversed(folders) if folder in vocab), None)


def read_labels(text: str, where: str) -> dict[str, Label]:
    """A labels file with the columns fname, label, is_valid: split and label by fname.

    Raises SettingError for missing columns, an empty file, or an is_valid that is neither true nor false.
    """
    reader = csv.DictReader(io.StringIO(text))
    needed = {"fname", "is_valid"}
    if not needed <= set(reader.fieldnames or ()):
        raise SettingError(
            f"{where}: expected the columns fname,label,is_valid, found {reader.fieldnames or 'nothing'}."
        )
    truth = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    labels: dict[str, Label] = {}
    for number, row in enumerate(reader, start=2):
        if None in row.values():
            raise SettingError(f"{where}, line {number}: expected {len(row)} columns, found fewer.")
        valid = truth.get((row["is_valid"] or "").strip().lower())
        if valid is None:
            raise SettingError(f"{where}, line {number}: is_valid is {row['is_valid']!r}; expected True or False.")
        labels[row["fname"]] = ("held_out" if valid else "trained", row.get("label") or None)
    return labels


def match_labels(labels: dict[str, Label], uris: Sequence[str], where: str) -> Marks:
    """Find each image's label: by its uri, else by the longest end of its path that one fname alone and it share.

    Training machines name their files otherwise than the bucket does, so only ends of paths are compared. Images that
    no fname fits are marked unknown. Raises SettingError when none fits.
    """
    matched = _matched(labels, uris)
    if not matched:
        example = next(iter(labels), "(no line)")
        raise SettingError(
            f"{where}: no fname fits an image. The first fname is {example!r}, the first image {uris[0]!r}."
        )
    if len(matched) < len(uris):
        say(f"{len(uris) - len(matched):,} of {len(uris):,} images are not in {where}; they are marked unknown.")
    fit = set(matched.values())
    elsewhere = tuple(name for name, (split, _) in labels.items() if split == "trained" and name not in fit)
    if elsewhere:
        say(
            f"{len(elsewhere):,} lines of {where} are marked as trained on and fit no image here, e.g. "
            f"{elsewhere[0]!r}. Where learners are compared, images of such names count as trained on."
        )
    return Marks(lambda uri: labels[matched[uri]] if uri in matched else ("unknown", None), elsewhere)


def _matched(labels: Collection[str], uris: Sequence[str]) -> dict[str, str]:
    """The fname that means each image, of those that one means."""
    matched = {uri: uri for uri in uris if uri in labels}
    for depth in range(DEEPEST_TAIL, 0, -1):
        fnames, images = by_tail(labels, depth), by_tail(uris, depth)
        for tail in fnames.keys() & images.keys():
            matched.setdefault(images[tail], fnames[tail])
    return matched


def perhaps_meant(names: Collection[str], uris: Iterable[str]) -> list[str]:
    """The images that one of the names may mean: for each name the uri itself, else all that share its longest end.

    For who must not miss one, so that several images may be meant by a name. A name with ``://`` means itself alone.
    """
    ends = {tail_of(name, 1) for name in names}
    there = {uri for uri in uris if tail_of(uri, 1) in ends}
    by_end: dict[tuple[int, str], list[str]] = {}
    for uri in there:
        for depth in range(1, DEEPEST_TAIL + 1):
            by_end.setdefault((depth, tail_of(uri, depth)), []).append(uri)
    meant = there & set(names)
    for name in (name for name in names if name not in there and "://" not in name):
        depths = range(DEEPEST_TAIL, 0, -1)
        meant.update(next((by_end[key] for depth in depths if (key := (depth, tail_of(name, depth))) in by_end), ()))
    return sorted(meant)


def tail_of(path: str, depth: int) -> str:
    """The last ``depth`` parts of a path, however it separates them."""
    return "/".join(path.replace("\\", "/").split("/")[-depth:])


def by_tail(paths: Iterable[str], depth: int) -> dict[str, str]:
    """Paths by their end, without ends that several share."""
    ends = [(tail_of(path, depth), path) for path in paths]
    seen = Counter(end for end, _ in ends)
    return {end: path for end, path in ends if seen[end] == 1}
