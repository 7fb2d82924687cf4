"""What scoring some runs would take, said beforehand: images, parts, minutes, and what they cost.

Knows runs that were begun over a store that writes nothing (`overlay`), and counts what is new of their images. Does
not know how a row is made: the time is that of a probe, a run of up to PROBE_IMAGES of the same images, scored by the
same workers on the same actors, twice, since the first pass is slower than all that follow.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from random import Random
from statistics import median
from typing import Any

import pyarrow as pa

from drivetrain import cluster, pool
from drivetrain.config import Config
from drivetrain.console import busy
from drivetrain.images import in_order, merged, without
from drivetrain.manifest import find_plan, manifest_images, read_shard, shard_sizes, write_manifest
from drivetrain.overlay import Overlay
from drivetrain.root import to_json
from drivetrain.run import PartCounts, Run
from drivetrain.schema import IMAGE

PROBE_IMAGES = 64
# Shards that these are taken from.
PROBE_SHARDS = 16
# A pass that took longer is not made again: what a beginning costs is little of it.
LONG_SECONDS = 20.0

Maker = Callable[[Run, Config], Callable[[], pool.Worker[PartCounts]]]
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Kinds:
    """Images by what the source's other plans know of them; ``changed`` are known by their uri, with another etag."""

    new: int = 0
    changed: int = 0
    known: int = 0


@dataclass(frozen=True)
class Left:
    """What a run has still to do."""

    run: Run
    shards: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class Pace:
    """What a probe of a learner found: images scored, actors, images a second of all of them.

    ``connect``: seconds until the cluster was reached, once; ``start``: until the first image began, for each run.
    """

    probed: int
    actors: int
    rate: float
    connect: float
    start: float


def forecast(runs: Sequence[Run], config: Config, make: Maker, beside: Sequence[Run] = ()) -> dict[str, Any]:
    """What scoring these runs would do and take; ``make`` says how a run's actors make their workers.

    ``beside``: runs of other learners over images of ``runs``, which are scored too, but are no other images. All were
    begun over an Overlay, and nothing of them is written. ``seconds`` are those of commit.json: from the connection to
    the cluster to the last part; what is judged and reported afterwards comes on top, and so do the seconds that
    ``head_only`` images take, whose embeddings go through a new head. Raises whatever scoring raises.
    """
    every = [*runs, *beside]
    again = [_left_of(run) for run in beside]
    left = [*(_left_of(run) for run in runs if not run.record.head_only), *again]
    missing = [len(() if run.committed() else run.missing()) for run in every]
    kinds = [_kinds_of(run) for run in runs]
    paced = [(those, pace) for those in _by_learner(left) if (pace := _probed(those, config, make))]
    skipped: dict[str, int] = {}
    for run in runs:
        skipped |= {kind: skipped.get(kind, 0) + count for kind, count in run.record.skipped.items()}
    seconds = sum(_seconds(those, pace) for those, pace in paced)
    to_score = sum(each.images for each in left)
    scoring = sum(each.images / pace.rate for those, pace in paced for each in those)
    price = config.price_per_hour
    return {
        "dry_run": True,
        "runs": [run.record.run_id for run in every],
        "images": sum(run.record.images for run in runs),
        "new": sum(each.new for each in kinds),
        "changed": sum(each.changed for each in kinds),
        "known": sum(each.known for each in kinds),
        "skipped": skipped,
        "head_only": sum(run.record.images for run in runs if run.record.head_only and not run.committed()),
        "beside": sum(each.images for each in again),
        "images_to_score": to_score,
        "parts_to_write": sum(missing),
        "parts_there": sum(run.record.shards for run in every) - sum(missing),
        "probed": sum(pace.probed for _, pace in paced),
        "actors": max((pace.actors for _, pace in paced), default=None),
        "images_per_second": round(to_score / scoring, 2) if paced else None,
        "start_seconds": round(paced[0][1].connect + paced[0][1].start, 1) if paced else None,
        "seconds": round(seconds, 1),
        "price_per_hour": price,
        "cost": None if price is None else round(price * seconds / 3600, 4),
    }


def _by_learner(left: Sequence[Left]) -> list[list[Left]]:
    """What is left of each learner's runs: each has a pace of its own."""
    found: dict[str, list[Left]] = {}
    for each in left:
        found.setdefault(each.run.record.model_id, []).append(each)
    return list(found.values())


def _left_of(run: Run) -> Left:
    """The shards without a part, and how many images are to be read for them."""
    missing = tuple(() if run.committed() else run.missing())
    if run.record.retry_of:
        before = Run.find(run.store, run.layout, run.record.retry_of).committed()
        return Left(run, missing, before.failed if before and missing else 0)
    if len(missing) == run.record.shards:
        return Left(run, missing, run.record.images)
    sizes = shard_sizes(run.store, run.paths.manifest) if missing else []
    return Left(run, missing, sum(sizes[shard] for shard in missing))


def _kinds_of(run: Run) -> Kinds:
    """What the source's other plans of that kind know of a run's images."""
    record = run.record
    if record.rescore_of or record.retry_of:
        return Kinds(known=record.images)
    folders = list(_other_manifests(run))

    def known() -> Batches:
        return merged(manifest_images(run.store, each) for each in folders)

    def here() -> Batches:
        return manifest_images(run.store, run.paths.manifest)

    new = sum(map(len, without(_uris(here()), _uris(known()))))
    other = sum(map(len, without(here(), known())))
    return Kinds(new, other - new, record.images - other)


def _other_manifests(run: Run) -> Iterator[str]:
    """The manifests of the source's other plans of that kind which may hold the same uris."""
    store, layout, record = run.store, run.layout, run.record
    own = find_plan(store, layout, record.source, record.kind, record.name)
    for name in store.names(layout.plans(record.source, record.kind)):
        plan = find_plan(store, layout, record.source, record.kind, name) if name != record.name else None
        if plan and own and (own.late or _overlap(plan.prefix, own.prefix)):
            yield plan.paths(layout).manifest(plan.digest)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _uris(batches: Batches) -> Batches:
    """The same images without their etags, so that they are told apart by their uris alone."""
    place = IMAGE.get_field_index("etag")
    for batch in batches:
        yield batch.set_column(place, IMAGE.field(place), pa.nulls(len(batch), pa.string()))


def _probed(left: Sequence[Left], config: Config, make: Maker) -> Pace | None:
    """The pace at which the images that are left would be scored; None if none of them is left."""
    images = _sample(left)
    if not images:
        return None
    begun = time.monotonic()
    probe = _begin_probe(left[0].run, images)
    text = f"Scoring {len(images)} images to see how fast that is"
    with busy(text), cluster.connected(config.ray_address, config.actors):
        connected = time.monotonic()
        actors = min(cluster.places(config.actors, config.gpus_per_actor), sum(len(each.shards) for each in left))
        worker = partial(Prober, make(probe, config), probe.record.shards)
        passes: list[float] = []
        start = 0.0
        for _, (first, second) in pool.run_tasks(
            worker, range(actors), actors=config.actors, gpus_per_actor=config.gpus_per_actor
        ):
            if not passes:
                start = max(0.0, time.monotonic() - connected - second - (0.0 if first == second else second))
            passes.append(second)
    rate = actors * len(images) / max(median(passes), 1e-6)
    return Pace(len(images), actors, rate, connected - begun, start)


def _sample(left: Sequence[Left]) -> list[dict[str, Any]]:
    """Some of the images that are to be scored, from some of the shards that have no part."""
    mixed = Random(0)
    shards = [(each.run, shard) for each in left for shard in each.shards if each.images]
    images: list[dict[str, Any]] = []
    for run, shard in mixed.sample(shards, min(len(shards), PROBE_SHARDS)):
        rows = read_shard(run.store, run.paths.manifest, shard).select(IMAGE.names).to_pylist()
        images += mixed.sample(rows, min(len(rows), -(-PROBE_IMAGES // min(len(shards), PROBE_SHARDS))))
    # Runs of one source may share images, and a manifest holds each of them once.
    return list({image["uri"]: image for image in images}.values())[:PROBE_IMAGES]


def _begin_probe(run: Run, images: list[dict[str, Any]]) -> Run:
    """A run like another, of a few of its images, beside it in the overlay; its store is what actors need of that."""
    store, layout = run.store, run.layout
    assert isinstance(store, Overlay), "a forecast needs a config with dry_run"
    record = replace(run.record, run_id=f"{run.record.run_id}-probe", images=len(images), retry_of=None)
    paths = layout.run(record.run_id)
    batch = pa.RecordBatch.from_pylist(images, IMAGE)
    record = replace(record, shards=write_manifest(store, paths.manifest, in_order(iter([batch]))))
    store.create(paths.record, to_json(asdict(record)))
    return Run(store.only(paths.folder, layout.model(record.model_id)), layout, record)


def _seconds(left: Sequence[Left], pace: Pace) -> float:
    """How long it takes: each run starts its actors, and hands its shards out to them, the last ones to some only."""
    seconds = pace.connect
    for each in left:
        if each.shards:
            rounds = -(-len(each.shards) // pace.actors)
            seconds += pace.start + rounds * each.images / len(each.shards) / (pace.rate / pace.actors)
    return seconds


class Prober:
    """What an actor holds for a probe: a worker of the real kind, and a clock around it."""

    def __init__(self, make: Callable[[], pool.Worker[PartCounts]], shards: int) -> None:
        self._worker, self._shards = make(), shards

    def run(self, task: int, upcoming: int | None) -> tuple[float, float]:
        """Score all images of the probe, and once more; the seconds of both, the second of which has no beginning."""
        first = self._pass()
        return first, first if first > LONG_SECONDS else self._pass()

    def _pass(self) -> float:
        started = time.monotonic()
        for shard in range(self._shards):
            self._worker.run(shard, (shard + 1) % self._shards)
        return time.monotonic() - started

    def steps(
        self, task: int, first: int | None, without: frozenset[int]
    ) -> Iterator[tuple[int | None, tuple[float, float] | None]]:
        """The same image by image, after one of them ended an actor."""
        started = time.monotonic()
        for step, counts in self._worker.steps(0, first, without):
            seconds = time.monotonic() - started
            yield step, None if counts is None else (seconds, seconds)
