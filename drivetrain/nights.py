"""Which nights a source has: what is new on one, which record of it counts, which did not run, and which are stale.

Knows plans, records, days and the champion. Does not know how a night is scored or judged.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.aliases import Alias, challenger_of, champions, current, history, latest
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.errors import SettingError
from drivetrain.findings import Realised, TrendPoint
from drivetrain.heartbeat import OLD, age
from drivetrain.images import Images, merged, without
from drivetrain.layout import USUAL_VIEW, Layout, PlanPaths, RecordPaths
from drivetrain.manifest import Plan, check_prefix, find_plan, freeze, list_images, manifest_images
from drivetrain.planruns import Known, counting_run
from drivetrain.root import from_json, open_root
from drivetrain.run import Run
from drivetrain.store import Store

TREND_NIGHTS = 30


def plan_night(store: Store, layout: Layout, config: Config) -> Plan:
    """The plan of the config's night: found, or made from what no other night has planned."""
    night, source = config.the_night(), config.the_source()
    prefix = store.normalise(config.images_of(night))
    if plan := find_plan(store, layout, source, "night", night.isoformat()):
        return check_prefix(plan, prefix)
    if night > datetime.now(UTC).date():
        raise SettingError(f"Night {night} has not begun (in UTC): its plan would freeze without its images.")
    listing = list_images(store, prefix)
    tonight = listing.images.batches() if config.dated else _until(listing.images, night)
    before = _late_days(store, layout, config, night)
    seen = partial(_seen, store, layout, config, night)
    new = Images(without(tonight, seen()))
    late = Images(without(merged(day.batches() for day in before), seen()))
    if late:
        say(f"{len(late):,} images of the {config.lookback} day(s) before arrived late; this night scores them.")
    if not new and not late:
        say(f"No new image for night {night} below {prefix}.")
    return freeze(
        store,
        layout,
        Images(merged([new.batches(), late.batches()])) if late else new,
        source=source,
        kind="night",
        name=night.isoformat(),
        prefix=prefix,
        skipped=listing.skipped,
        late=len(late),
    )


def _late_days(store: Store, layout: Layout, config: Config, night: date) -> Iterator[Images]:
    """What lies by now in the folders of the days before, of a dated prefix."""
    listed = {config.images_of(night)}
    for back in range(1, config.lookback + 1) if config.dated else ():
        day = night - timedelta(days=back)
        # Days may share a folder, {night:%Y/%m}: its images are new already, and each has one row.
        if config.images_of(day) in listed:
            continue
        listed.add(config.images_of(day))
        # A day that was never planned has no late arrivals: its own night, caught up later, scores its images.
        if find_plan(store, layout, config.the_source(), "night", day.isoformat()):
            yield list_images(store, store.normalise(config.images_of(day))).images


def _until(images: Images, night: date) -> Iterator[pa.RecordBatch]:
    """Of a prefix that grows: what was there when the night's day ended."""
    end = datetime(night.year, night.month, night.day, tzinfo=UTC) + timedelta(days=1)
    for batch in images.batches():
        yield batch.filter(pc.less(batch["mtime"], pa.scalar(end, batch["mtime"].type)).fill_null(True))


def _folders(config: Config, night: date) -> set[str]:
    """Where the images of a night may lie: its own folder and those that it looks back to."""
    if night.toordinal() <= config.lookback:
        return set()
    return {config.images_of(night - timedelta(days=back)) for back in range(config.lookback + 1)}


def _seen(store: Store, layout: Layout, config: Config, night: date) -> Iterator[pa.RecordBatch]:
    """The images in the source's other plans; of a dated prefix only those of nights that looked into the same folders.

    A plan that is not done counts as well: resuming it scores its images, and no second night may.
    """
    manifests, source, folders = [], config.the_source(), _folders(config, night)
    for name in store.names(layout.nights(source)):
        if _day(name) == night or not _folders(config, _day(name)) & folders:
            continue
        if plan := find_plan(store, layout, source, "night", name):
            manifests.append(manifest_images(store, plan.paths(layout).manifest(plan.digest)))
    return merged(manifests)


def _day(name: str) -> date:
    try:
        return date.fromisoformat(name)
    except ValueError:
        return date.min


def records(store: Store, layout: Layout, source: str, kind: str, name: str) -> Iterator[tuple[str, RecordPaths]]:
    """The closed records of a plan, every model's, oldest first: (model_id, paths)."""
    plan = layout.plan(source, kind, name)
    for model_id in store.names(plan.folder):
        if model_id == "plan.json" or model_id.startswith("manifest-"):
            continue
        for number in store.names(plan.model(model_id)):
            if number.isdigit() and store.exists((record := plan.record(model_id, int(number))).verdict):
                yield model_id, record


def latest_record(store: Store, layout: Layout, run: Run) -> tuple[RecordPaths, dict[str, Any]] | None:
    """The record that counts for a run's plan under its model, with its verdict.json, or None."""
    last = None
    for model_id, record in records(store, layout, run.record.source, run.record.kind, run.record.name):
        last = record if model_id == run.record.model_id else last
    found = from_json(store, last.verdict) if last else None
    return (last, found) if last and found else None


def record_number(record: RecordPaths) -> int:
    """The NNNN of a record."""
    return int(record.folder.rsplit("/", 1)[-1])


def plan_paths(layout: Layout, run: Run) -> PlanPaths:
    """The folder of the plan that a run scored."""
    return layout.plan(run.record.source, run.record.kind, run.record.name)


def alpha_of(store: Store, layout: Layout, config: Config) -> float:
    """The share of nights without drift on which an alarm is acceptable: the year's alarms over sources and nights."""
    sources = sum(1 for source in store.names(layout.sources) if store.names(layout.nights(source)))
    return config.alarms_per_year / (365 * max(1, sources))


def accepted_values(
    store: Store, layout: Layout, source: str, reference: str | None, view: str = USUAL_VIEW
) -> dict[str, float]:
    """The value of the deciding statistic of each accepted night of a source against a reference, by run id.

    Values of another view are of another statistic, and are left out.
    """
    found = {}
    folder = layout.accepted(source, reference, view) if reference else ""
    for name in store.names(folder) if reference else ():
        if record := from_json(store, f"{folder}/{name}"):
            found[record["run_id"]] = float(record["value"])
    return found


def trend_of(store: Store, layout: Layout, source: str, kind: str, tonight: dict[str, Any]) -> tuple[TrendPoint, ...]:
    """The nights of a source up to tonight, at most 30, oldest first; of a named plan tonight alone.

    ``tonight``: its verdict, numbers, report and name, which are not written yet.
    """
    before = [
        _point(
            each.night,
            each.verdict,
            each.report,
            asdict(each) | {"rows": each.images, "realised_accuracy": each.realised},
        )
        for each in (nights_table(store, layout, source) if kind == "night" else [])
        if each.verdict and each.night < tonight["night"]
    ]
    last = _point(tonight["night"], tonight["verdict"], tonight["report"], tonight["numbers"])
    return tuple([*before, last][-TREND_NIGHTS:])


def _point(night: str, verdict: str, report: str, numbers: dict[str, Any]) -> TrendPoint:
    by_labels = (Realised(**each) for each in numbers.get("realised_accuracy", ()))
    return TrendPoint(
        night,
        verdict,
        numbers.get("score"),
        numbers.get("effect"),
        numbers.get("accuracy"),
        numbers["rows"],
        report,
        next((each.accuracy for each in by_labels if each.of_night), None),
    )


@dataclass(frozen=True)
class Night:
    """One line of the table of nights. ``state``: done, stale, running, failed, stopped, dead, planned or missing.

    A stale night is done, by a learner that is no longer champion. ``command``: what to type where there is something.
    ``score``: 0 is usual, 1 the threshold; ``accuracy``: estimated, in 0..1; ``made``: when the record was closed.
    ``realised``: accuracy by people's labels, a `findings.Realised` for each way its images were chosen.
    """

    source: str
    night: str
    state: str
    verdict: str
    images: int
    failed: int
    lever: str
    report: str
    p_value: float | None = None
    effect: float | None = None
    score: float | None = None
    accuracy: float | None = None
    made: str = ""
    command: str = ""
    realised: tuple[dict[str, Any], ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def list_nights(config: Config) -> list[Night]:
    """The nights of a source, or of all, oldest first, with those between that did not run. Needs ``root``."""
    store, layout = open_root(config, existing=True)
    return nights_table(store, layout, config.source)


def learners_in_use(config: Config) -> dict[str, dict[str, Any]]:
    """The champion and the challenger of a source, or of all, by source: each a record or None. Needs ``root``."""
    store, layout = open_root(config, existing=True)
    found = {}
    for source in [config.source] if config.source else store.names(layout.sources):
        champion, challenger = current(store, layout, source, "champion"), challenger_of(store, layout, source)
        named = {"champion": champion, "challenger": challenger}
        found[source] = {alias: record.record() if record else None for alias, record in named.items()}
    return found


def nights_table(store: Store, layout: Layout, source: str | None = None) -> list[Night]:
    """The nights of a source, or of all sources, each source's oldest first."""
    wanted = [source] if source else store.names(layout.sources)
    return [night for name in wanted for night in _nights_of(store, layout, name)]


def _nights_of(store: Store, layout: Layout, source: str) -> Iterable[Night]:
    names = [name for name in store.names(layout.nights(source)) if _day(name) != date.min]
    if not names:
        return
    named = history(store, layout, source, "champion")
    champion, known = latest(named), Known(store.names(layout.runs), champions(named))
    last = max(_day(names[-1]), datetime.now(UTC).date() - timedelta(days=1))
    day = _day(names[0])
    while day <= last:
        yield (
            _night(store, layout, source, day.isoformat(), champion, known)
            if day.isoformat() in names
            else _undone(layout, source, day.isoformat(), "missing")
        )
        day += timedelta(days=1)


def _undone(layout: Layout, source: str, name: str, state: str, plan: Plan | None = None) -> Night:
    """A night without a record, and what to type. Of one without a plan only the config knows where its images lie."""
    command = f"drivetrain nightly --night {name} --root {shlex.quote(layout.root)} --source {source}"
    command += f" --images {shlex.quote(plan.prefix)}" if plan else ""
    return Night(source, name, state, "", plan.images if plan else 0, 0, command, "", command=command)


def _night(store: Store, layout: Layout, source: str, name: str, champion: Alias | None, known: Known) -> Night:
    done = [
        (found["made"], model_id, record, found)
        for model_id, record in records(store, layout, source, "night", name)
        if (found := from_json(store, record.verdict))
    ]
    if not done:
        plan = find_plan(store, layout, source, "night", name)
        return _undone(layout, source, name, _state(store, layout, source, name, known.runs), plan)
    best = champion.model_id if champion else None
    places = {each: -place for place, each in enumerate(known.champions)}
    # A judgement stands until another replaces it: a learner without a reference has none. Then the champion's counts,
    # and the one before's: the same learner's as the rows that readers get (`planruns`).
    _, model_id, record, found = max(
        done,
        key=lambda each: (
            each[3]["verdict"] != "unknown",
            places.get(each[1], -len(places)),
            each[0],
            record_number(each[2]),
        ),
    )
    stale = _stale(store, layout, source, name, champion, known) if champion and model_id != best else ""
    numbers = found["numbers"]
    return Night(
        source,
        name,
        "stale" if stale else "done",
        found["verdict"],
        numbers["rows"],
        numbers["failed"],
        "rescore" if stale else found["lever"],
        record.report,
        numbers["p_value"],
        numbers["effect"],
        # Records made before these were measured have none.
        numbers.get("score"),
        numbers.get("accuracy"),
        found["made"],
        stale,
        tuple(numbers.get("realised_accuracy", ())),
    )


def _stale(store: Store, layout: Layout, source: str, name: str, champion: Alias, known: Known) -> str:
    """What to type for a night of which no run is the champion's; nothing if one is."""
    run = counting_run(store, layout, source, "night", name, known)
    if run is None or run.record.model_id == champion.model_id:
        return ""
    learner, root = shlex.quote(layout.export(str(champion.model_id))), shlex.quote(layout.root)
    return f"drivetrain rescore --learner {learner} --run {run.record.run_id} --root {root} --source {source}"


def _state(store: Store, layout: Layout, source: str, name: str, runs: Sequence[str]) -> str:
    """What an unfinished night's run says of itself, the newest of them; dead if it stopped to say anything."""
    found = []
    for run_id in runs:
        if not run_id.startswith(f"{source}-{name}-") or not (status := from_json(store, layout.run(run_id).status)):
            continue
        record = from_json(store, layout.run(run_id).record) or {}
        # Names of other plans may begin so: a scope's does.
        if (record.get("source"), record.get("kind"), record.get("name")) == (source, "night", name):
            # Committed, and still to be judged: that has no heartbeat of its own.
            state = "running" if status["state"] == "committed" else status["state"]
            found.append((status["at"], "dead" if state == "running" and age(status) > OLD else state))
    return max(found, default=("", "planned"))[1]
