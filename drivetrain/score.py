"""Score every image of a plan: admit the learner, freeze the plan, hand out its shards, commit.

Knows the order of things. Does not know how a row is made (shard) or what the rows mean (drift, verdict).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

from drivetrain import cluster, pool
from drivetrain.admit import admit_learner
from drivetrain.config import Config
from drivetrain.console import Counting, say
from drivetrain.doctor import check_first
from drivetrain.engine import choose_engine
from drivetrain.errors import DrivetrainError, RunError, SettingError, StoreError
from drivetrain.export import LearnerInfo
from drivetrain.fetch import most_bytes
from drivetrain.forecast import forecast
from drivetrain.groups import check_group_by
from drivetrain.heartbeat import beating, refuse_another, wait_for_another
from drivetrain.images import without
from drivetrain.layout import Layout
from drivetrain.manifest import Plan, check_prefix, find_plan, freeze, list_images, manifest_images, read_shard
from drivetrain.root import open_root
from drivetrain.run import Commit, PartCounts, Run, RunRecord, run_id_of
from drivetrain.schema import SCHEMA_MAJOR
from drivetrain.store import Store
from drivetrain.table import keep_table_current

# Shards of a manifest that images are taken from to choose an engine.
SHARDS_TO_SAMPLE = 16


def score_images(config: Config) -> dict[str, Any]:
    """Score the images below a prefix under a plan's name, today's date by default.

    Needs ``root``, ``learner``, ``images``. Returns the job's result. The same config again resumes, or says that the
    run is committed and how many images came since. With ``dry_run`` it returns a forecast and writes nothing.
    """
    config.need("root", "learner", "images")
    check_first(config)
    store, layout = open_root(config, dry_runs=True)
    info = admit_learner(store, layout, config)
    name = config.name or (config.the_night() if config.dated else datetime.now(UTC).date()).isoformat()
    source = config.the_source()
    prefix = store.normalise(config.images_of(config.the_night()))
    plan = find_plan(store, layout, source, "plan", name)
    if plan is None:
        listing = list_images(store, prefix)
        if not listing.images:
            raise SettingError(
                f"No image below {prefix}. Is the prefix right? Passed over: {listing.skipped or 'nothing'}."
            )
        plan = freeze(
            store,
            layout,
            listing.images,
            source=source,
            kind="plan",
            name=name,
            prefix=prefix,
            skipped=listing.skipped,
        )
    check_prefix(plan, prefix)
    run = run_to_score(begin_run(store, layout, plan, info, config), config)
    if run.committed():
        new = _new_since(store, layout, plan)
        more = f" {new:,} images are new since; score them under another name: --name {name}-2" if new else ""
        say(f"Run {run.record.run_id} is committed already; nothing to do.{more}")
    if config.dry_run:
        return forecast_of([run], config)
    finish_run(run, config)
    return result_of(run) | {"notes": keep_table_current(store, layout, source)}


def begin_run(
    store: Store,
    layout: Layout,
    plan: Plan,
    info: LearnerInfo,
    config: Config,
    *,
    rescore_of: str | None = None,
    made_from: str | None = None,
) -> Run:
    """Start the run of a plan under a learner, or find the one started before.

    With ``made_from`` it is a run of its own, whose rows come of that run's embeddings and the learner's head.
    Raises SettingError when another command scores the plan with other settings at this moment.
    """
    if made_from:
        # Torch computes the head; whether another engine would give the same was never asked, for want of an image.
        engine, note = "torch", f"only the head was computed, from the embeddings of {made_from}"
    else:
        some = partial(_some_images, store, layout, plan, info.model_id, most_bytes(config.max_pixels))
        engine, note = choose_engine(store, layout, config, info, some)
    # Its values differ by the rounding of stored embeddings, so it is never the run that reads the images.
    settings = settings_of(config, engine) | ({"head_of": made_from} if made_from else {})
    record = RunRecord(
        run_id=run_id_of(plan, info.sha256, settings),
        source=plan.source,
        kind=plan.kind,
        name=plan.name,
        manifest=plan.digest,
        images=plan.images,
        shards=plan.shards,
        skipped=plan.skipped,
        model_id=info.model_id,
        sha256=info.sha256,
        task=info.task,
        vocab=info.vocab,
        layer=info.layer,
        embedding_size=info.embedding_size,
        settings=settings,
        schema=SCHEMA_MAJOR,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rescore_of=rescore_of,
        engine_note=note,
        made_from=made_from,
    )
    refuse_another(store, layout, record)
    return Run.begin(store, layout, plan.paths(layout).manifest(plan.digest), record)


def run_to_score(run: Run, config: Config) -> Run:
    """The run that counts for a plan: its newest, or with ``retry_failed`` one that scores its failed images again.

    Raises SettingError when there is nothing yet that could be scored again.
    """
    if not config.retry_failed:
        return run.newest()
    if run.committed() is None:
        raise SettingError(
            f"Run {run.record.run_id} is not committed yet. Finish it first: the same command without --retry-failed."
        )
    newest = run.newest()
    commit = newest.committed()
    if not commit or not commit.failed:
        say(f"No image of run {newest.record.run_id} failed; nothing to score again.")
        return newest
    say(f"Scoring the {commit.failed:,} failed images of {newest.record.run_id} again: {commit.reasons}.")
    return newest.successor()


def forecast_of(runs: Sequence[Run], config: Config, *, beside: Sequence[Run] = ()) -> dict[str, Any]:
    """What `finish_run` would do with some runs, and how long it would take. They were begun under ``dry_run``.

    ``beside``: runs of other learners over images of these.
    """
    return forecast(runs, config, _maker, beside)


def check_groups(store: Store, layout: Layout, plan: Plan, config: Config) -> None:
    """Raise SettingError when group_by says nothing of any image, before hours are spent on these images."""
    if config.group_by:
        batches = manifest_images(store, plan.paths(layout).manifest(plan.digest))
        check_group_by(config.group_by, (uri for batch in batches for uri in batch["uri"].to_pylist()))


def _some_images(store: Store, layout: Layout, plan: Plan, model_id: str, most: int) -> Iterator[str]:
    """Images of the learner's world in random order: those of its newest reference, then the plan's.

    None of more than ``most`` bytes, which a run would not read either.
    """
    known = sorted(store.names(layout.references(model_id)))
    runs = [Run.find(store, layout, name.removesuffix(".json")) for name in known]
    if runs:
        newest = max(runs, key=lambda run: run.record.created)
        yield from _some_of(store, newest.paths.manifest, newest.record.shards, most)
    if plan.images:
        yield from _some_of(store, plan.paths(layout).manifest(plan.digest), plan.shards, most)


def _some_of(store: Store, manifest: str, shards: int, most: int) -> Iterator[str]:
    """Images of a few shards, mixed, those that the learner was not trained on first."""
    mixed = Random(0)
    some = mixed.sample(range(shards), min(shards, SHARDS_TO_SAMPLE))
    images = [
        image
        for shard in some
        for image in read_shard(store, manifest, shard).select(["uri", "split", "size"]).to_pylist()
        if (image["size"] or 0) <= most
    ]
    mixed.shuffle(images)
    images.sort(key=lambda image: image["split"] != "held_out")
    yield from (image["uri"] for image in images)


def settings_of(config: Config, engine: str) -> dict[str, Any]:
    """The settings that change a value in a row, and so belong to the run's id."""
    return {
        "engine": engine,
        "precision": config.precision,
        "embedding": config.embedding,
        "max_pixels": config.max_pixels,
    }


def finish_run(run: Run, config: Config) -> Commit:
    """Score the shards that have no part yet, then commit. Does nothing when the run is committed.

    Raises RunError when a shard keeps ending its actor, what is finished by then is kept; and when drivetrain gc
    removed the run.
    """
    if closed := run.settled():
        return closed
    # Another driver may have closed it meanwhile, or gc.
    if wait_for_another(run) and (closed := run.settled()):
        return closed
    try:
        return _finish(run, config)
    except (DrivetrainError, OSError):
        with suppress(OSError, StoreError):
            run.settled()
        raise


def _finish(run: Run, config: Config) -> Commit:
    """Score what is missing, and commit."""
    started = time.monotonic()
    missing = run.missing()
    scored: dict[int, PartCounts] = {}
    done = _done_before(run, missing)
    with beating(run, done) as heart, cluster.connected(config.ray_address, config.actors):
        numbers = cluster.RunMetrics(run.record.source, run.record.run_id)
        for shard, counts in _watched(run, config, missing, done, numbers):
            scored[shard] = counts
            heart.done += counts.rows
        seconds = time.monotonic() - started
        commit = run.commit(scored, config.max_failed, seconds, sum(each.rows for each in scored.values()))
        heart.done = commit.rows
        numbers.committed()
    return commit


def _done_before(run: Run, missing: list[int]) -> int:
    """About how many images an earlier command scored."""
    per_shard = run.record.images / max(1, run.record.shards)
    return 0 if len(missing) == run.record.shards else int(run.record.images - per_shard * len(missing))


def _watched(
    run: Run, config: Config, missing: list[int], done: int, numbers: cluster.RunMetrics
) -> Iterator[tuple[int, PartCounts]]:
    """Score shards on actors, with progress and metrics beside."""
    record = run.record
    if done:
        say(f"Resuming {record.run_id}: {record.shards - len(missing):,} of {record.shards:,} parts are there.")
    gpus = _gpus(run, config)
    make = _maker(run, config)
    waiting = len(missing)
    with Counting(f"Scoring {record.source} {record.name}", record.images, done) as progress:
        for shard, counts in pool.run_tasks(make, missing, actors=config.actors, gpus_per_actor=gpus):
            waiting -= 1
            progress.add(counts.rows, counts.failed)
            numbers.add(counts.rows, counts.failed, waiting)
            yield shard, counts


def _maker(run: Run, config: Config) -> Callable[[], pool.Worker[PartCounts]]:
    """How an actor makes the worker for a run."""
    return partial(
        _head_scorer if run.record.head_only else _scorer,
        run.store,
        run.layout.root,
        run.record.run_id,
        config.batch_size,
        vouched=run.record.sha256 in config.trust,
        one_thread=config.actors != 0,
        gpu=_gpus(run, config) > 0,
    )


def _gpus(run: Run, config: Config) -> float:
    """The GPUs of an actor. A head is too little work for one."""
    return 0.0 if run.record.head_only else config.gpus_per_actor


def _scorer(*about: Any, **how: Any) -> pool.Worker[PartCounts]:
    """What an actor makes its worker with. What opens a learner is imported there and not in the driver."""
    from drivetrain.shard import ShardScorer

    return ShardScorer(*about, **how)


def _head_scorer(*about: Any, **how: Any) -> pool.Worker[PartCounts]:
    """The same for a run whose rows come of another run's embeddings."""
    from drivetrain.heads import HeadScorer

    return HeadScorer(*about, **how)


def result_of(run: Run) -> dict[str, Any]:
    """What a job prints about a committed run as its last line."""
    commit = run.committed()
    if commit is None:
        raise RunError(f"The run {run.record.run_id} is not committed.")
    return {
        "run_id": run.record.run_id,
        "rows": commit.rows,
        "failed": commit.failed,
        "reasons": commit.reasons,
        "flags": commit.flags,
        "unverified": commit.unverified,
        "too_many_failed": commit.too_many_failed,
        "skipped": run.record.skipped,
        "parts": run.paths.parts,
    }


def _new_since(store: Store, layout: Layout, plan: Plan) -> int:
    known = manifest_images(store, plan.paths(layout).manifest(plan.digest))
    return sum(len(batch) for batch in without(list_images(store, plan.prefix).images.batches(), known))
