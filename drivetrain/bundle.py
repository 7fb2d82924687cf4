"""A reference made ready for nights: its lens, a sample of its images, and what its self-test found.

Knows the files of a bundle, and how rows become scores in groups. Does not know what a night is. A bundle is derived
from a committed run and may be made again at any time; it lies in that run's folder and is keyed by nothing else.
"""

import io
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain import cluster, pool
from drivetrain.config import Config
from drivetrain.console import busy
from drivetrain.errors import RunError, SettingError
from drivetrain.findings import Seen, SelfTest
from drivetrain.groups import by_pattern, names_column, near_duplicates
from drivetrain.layout import Layout, view_of
from drivetrain.lens import Indices, Lens, Matrix, Scores, from_arrays, learn
from drivetrain.reference import MOST_ROWS, SCORE_COLUMNS, Reference, scores_of
from drivetrain.run import Run
from drivetrain.schema import parquet_bytes
from drivetrain.selftest import self_test
from drivetrain.sketch import Totals, candidates, chosen_by_hash, merged, totals_of
from drivetrain.store import Store

TOTALS = b"drivetrain-totals"
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Bundle:
    """What nights need of a reference. ``rows`` and ``scores`` are the same images, at most 20,000, in one order."""

    reference: Reference
    run: Run
    lens: Lens
    rows: pa.Table
    scores: Scores
    totals: Totals
    grouped_by: str
    self_test: SelfTest | None

    @property
    def uris(self) -> list[str]:
        """The images' uris."""
        uris: list[str] = self.rows["uri"].to_pylist()
        return uris


@dataclass(frozen=True)
class Looked:
    """A run seen through a reference's lens: totals over all images, and a sample of rows with its scores.

    ``drawn``: the places of the rows that were drawn by hash; the others are candidates for the review queue, which
    lie far out and must not enter a test.
    """

    rows: pa.Table
    scores: Scores
    totals: Totals | None
    drawn: Indices


def open_bundle(store: Store, layout: Layout, reference: Reference, config: Config) -> Bundle | None:
    """The bundle of a reference, made now if there is none; None for a reference of fewer than 2 scored images."""
    run = Run.find(store, layout, reference.run_id)
    assert run.record.model_id == reference.model_id, "embeddings of two learners can't be compared"
    rows = _reference_rows(run, reference, config.seed)
    if len(rows) < 2:
        return None
    plain = scores_of(rows, run.record.vocab)
    lens = _lens(run, rows, plain, config)
    groups, grouped_by = groups_of(rows, _looks(lens, plain), config.group_by)
    scores = plain.grouped(groups)
    found = _read_self_test(run, _view(config))
    return Bundle(reference, run, lens, rows, scores, totals_of(lens, scores), grouped_by, found)


def _view(config: Config) -> str:
    return view_of(config.seed, config.group_by)


def _reference_rows(run: Run, reference: Reference, seed: int) -> pa.Table:
    """The scored rows that nights are compared with: held-out images, or all where none is marked so."""
    only = {"split": "held_out"} if reference.held_out else {}
    return run.rows(SCORE_COLUMNS, most=MOST_ROWS, seed=seed, only=only)


def _lens(run: Run, rows: pa.Table, scores: Scores, config: Config) -> Lens:
    """The lens that lies in the bundle, so that all machines see the same; learnt and put there at first use.

    It is learnt twice: near-duplicates are found through the first one, and the second one knows how many groups there
    are to learn from.
    """
    path = run.paths.lens(_view(config))
    if run.store.exists(path):
        with np.load(io.BytesIO(run.store.read(path))) as arrays:
            return from_arrays(arrays)
    sink = io.BytesIO()
    groups, _ = groups_of(rows, _looks(learn(scores, config.seed), scores), config.group_by)
    np.savez(sink, **learn(scores.grouped(groups), config.seed).arrays())
    run.store.create(path, sink.getvalue())
    with np.load(io.BytesIO(run.store.read(path))) as arrays:
        return from_arrays(arrays)


def _looks(lens: Lens, scores: Scores) -> Matrix | None:
    """What near-duplicates are told by: embeddings. Outputs are alike for all images that a learner is sure of."""
    return lens.whiten_wide(scores) if lens.of_embeddings else None


def groups_of(rows: pa.Table, whitened: Matrix | None, group_by: str | None) -> tuple[Indices, str]:
    """The groups of some images, and how they were found, in words.

    ``group_by`` is the name of a column or a regular expression on the uri; images in which either says nothing are
    groups of their own. Without it near-duplicates are groups, where there are embeddings to find them by. Raises
    SettingError when ``group_by`` says nothing of any image.
    """
    if group_by is None:
        return (np.arange(len(rows)), "") if whitened is None else (near_duplicates(whitened), "near-duplicates")
    if names_column(group_by):
        values = rows[group_by].to_pylist()
        if all(value is None for value in values):
            raise SettingError(f"group_by = {group_by!r}: the column {group_by} is empty.")
        names = [f"\0{place}" if value is None else str(value) for place, value in enumerate(values)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64), f"the column {group_by}"
    return by_pattern(rows["uri"].to_pylist(), group_by), f"group_by = {group_by!r}"


def look(run: Run, bundle: Bundle | None, config: Config) -> Looked:
    """See a committed run through a reference's lens.

    A run of up to 20,000 images is read as it is. Of a larger one each part is sketched, on actors where there are any,
    and the sketches are merged; those that are there already are not made again. Without a reference there are rows
    alone, and nothing is counted. Raises RunError for a run of another learner than the reference's: their embeddings
    can't be compared.
    """
    if bundle is not None and run.record.model_id != bundle.reference.model_id:
        raise RunError(
            f"{run.record.run_id} was scored by {run.record.model_id}, the reference {bundle.reference.run_id} by "
            f"{bundle.reference.model_id}: embeddings of two learners can't be compared."
        )
    if bundle is None or run.record.images <= MOST_ROWS:
        rows = run.rows(SCORE_COLUMNS, most=MOST_ROWS, seed=config.seed)
        scores, drawn = scores_of(rows, run.record.vocab), np.arange(len(rows))
    else:
        rows, totals = _merged_sketches(run, bundle, config)
        scores = scores_of(rows, run.record.vocab)
        drawn = np.flatnonzero(~rows[CANDIDATE].to_numpy(zero_copy_only=False))
    if bundle is None or len(rows) < 2:
        return Looked(rows, scores, None, drawn)
    if run.record.images <= MOST_ROWS:
        totals = totals_of(bundle.lens, scores)
    groups, _ = groups_of(rows, _looks(bundle.lens, scores), config.group_by)
    return Looked(rows, scores.grouped(groups), totals, drawn)


def _merged_sketches(run: Run, bundle: Bundle, config: Config) -> tuple[pa.Table, Totals]:
    view = _view(config)
    folder = run.paths.sketches(bundle.reference.run_id, view)
    there = set(run.store.names(folder))
    missing = [shard for shard in range(run.record.shards) if run.paths.part_name(shard) not in there]
    if missing:
        make = partial(Sketcher, run.store.options, run.layout.root, run.record.run_id, bundle.reference.run_id,
                       view)  # fmt: skip
        with busy(f"Sketching {len(missing):,} parts"), cluster.connected(config.ray_address, config.actors):
            for _ in pool.run_tasks(make, missing, actors=config.actors):
                pass
    tables, totals = [], []
    for shard in range(run.record.shards):
        table = run.store.read_table(run.paths.sketch(bundle.reference.run_id, shard, view))
        totals.append(Totals.from_json(table.schema.metadata[TOTALS]))
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables), merged(totals)


class Sketcher:
    """Sketches parts of one run: what each actor holds."""

    def __init__(self, options: Any, root: str, run_id: str, reference_id: str, view: str) -> None:
        store, layout = Store(options), Layout(root)
        self._run, self._reference_id, self._view = Run.find(store, layout, run_id), reference_id, view
        with np.load(io.BytesIO(store.read(layout.run(reference_id).lens(view)))) as arrays:
            self._lens = from_arrays(arrays)

    def run(self, task: int, upcoming: int | None = None) -> None:
        """Sketch one part and keep it: totals over all its images; of the images a share, and those far out."""
        run = self._run
        table = run.store.read_table(run.paths.part(task), [*SCORE_COLUMNS, "status"])
        table = table.filter(pa.array([status == "ok" for status in table["status"].to_pylist()]))
        table = table.drop_columns(["status"])
        scores = scores_of(table, run.record.vocab)
        drawn = chosen_by_hash(table["uri"].to_pylist(), MOST_ROWS / run.record.images)
        far = np.setdiff1d(candidates(self._lens, scores), drawn) if len(table) else np.zeros(0, np.int64)
        kept = table.take(pa.array(np.concatenate([drawn, far])))
        marks = pa.array([False] * len(drawn) + [True] * len(far), pa.bool_())
        kept = kept.append_column(CANDIDATE, marks)
        sketch = kept.replace_schema_metadata({TOTALS: totals_of(self._lens, scores).to_json().encode()})
        run.store.replace(run.paths.sketch(self._reference_id, task, self._view), parquet_bytes(sketch))

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Any:
        """One step: a part is not looked into further."""
        yield 0, None
        self.run(task)
        yield None, None


def plant_and_test(bundle: Bundle, alpha: float, config: Config) -> SelfTest | None:
    """Run the self-test of a bundle on actors, and keep what it found with the bundle."""
    from drivetrain.plant import DAMAGES, PLANTED, Planter, Planting, PlantSettings

    record = bundle.run.record
    uris = tuple(np.random.default_rng(config.seed).permutation(bundle.uris)[:PLANTED].tolist())
    settings = PlantSettings(
        bundle.run.store.options, bundle.run.layout.root, record.sha256, record.settings, record.embedding_size,
        tuple(Planting(uris, damage) for damage in DAMAGES.values()),
        vouched=record.sha256 in config.trust, one_thread=config.actors != 0,
    )  # fmt: skip
    planted = {}
    with busy("Self-test"), cluster.connected(config.ray_address, config.actors):
        names = list(DAMAGES)
        for task, rows in pool.run_tasks(
            partial(Planter, settings), range(len(names)), actors=config.actors, gpus_per_actor=config.gpus_per_actor
        ):
            scored = rows.filter(pc.equal(rows["status"], "ok"))
            if len(scored):
                planted[names[task]] = scores_of(scored, record.vocab)
        ordered = {name: planted[name] for name in names if name in planted}
        found = self_test(bundle.scores, bundle.lens, ordered, alpha=alpha, seed=config.seed)
    if found:
        bundle.run.store.replace(
            bundle.run.paths.self_test(_view(config)), json.dumps(asdict(found), indent=1).encode()
        )
    return found


def _read_self_test(run: Run, view: str) -> SelfTest | None:
    path = run.paths.self_test(view)
    if not run.store.exists(path):
        return None
    found = json.loads(run.store.read(path))
    return SelfTest(**found | {"seen": tuple(Seen(**each) for each in found["seen"])})
