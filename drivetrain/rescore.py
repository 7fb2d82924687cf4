"""After a retrain: frozen manifests of old runs under a new learner, and each two runs side by side.

Knows one learner and the runs that it is to be held against. Nothing of an old run is touched; a new one is a run like
any other. Where the new learner's body is the old one's, stored embeddings go through its head and no image is read
(`heads` says whether that may be).
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from drivetrain import cluster, site
from drivetrain.admit import admit_learner
from drivetrain.comparing import compare_and_publish, known_comparison, said_of
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.errors import DrivetrainError, SettingError
from drivetrain.export import LearnerInfo
from drivetrain.heads import why_not
from drivetrain.judge import judge_run, result_of_record
from drivetrain.layout import Layout
from drivetrain.manifest import Plan, find_plan
from drivetrain.nights import latest_record
from drivetrain.planruns import committed_runs, counting_run, is_reference_name, is_scope_name, known_of
from drivetrain.reference import Reference, comparable, find_reference, reference_under, register, relabelled
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.score import begin_run, finish_run, forecast_of, result_of, run_to_score, settings_of
from drivetrain.store import Store
from drivetrain.table import keep_table_current
from drivetrain.trained import trained_files, trained_names

# Its kind and its name.
PlanName = tuple[str, str]


@dataclass(frozen=True)
class _Retrained:
    """A new learner in a root, and what was found out about old learners on the way."""

    store: Store
    layout: Layout
    config: Config
    info: LearnerInfo
    reasons: dict[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the new learner's runs have in common, whichever exact engine computes them."""
        return comparable(settings_of(self.config, "int8" if self.config.engine == "int8" else "torch"))

    @property
    def anew(self) -> bool:
        """Whether comparisons and verdicts are made again."""
        return self.config.reprocess == "all"

    def to_score(self, known: Run | None) -> bool:
        """Whether there is no run of the new learner yet, or one whose failed images are asked for again."""
        commit = known.committed() if known else None
        return commit is None or (self.config.reprocess != "missing" and commit.failed > 0)


def rescore_runs(config: Config) -> dict[str, Any]:
    """Score what was scored before under the config's learner: one run, the nights of a range, or all of a source.

    Needs ``root``, ``learner``, and exactly one of ``run``, ``nights`` and ``all``; the last two need ``source``.
    Returns what `rescore_run` or `rescore_nights` does. Raises SettingError otherwise.
    """
    given = [f"--{key}" for key in ("run", "nights", "all") if getattr(config, key)]
    if len(given) != 1:
        found = f"{' and '.join(given)} together" if given else "none of them"
        raise SettingError(
            f"What is to be rescored? Expected one of --run, --nights and --all, found {found}. E.g.\n"
            "--run shop-2026-11-23-3fa9c1d2-9b1e22aa   or   --source shop --nights 2026-11-01..2026-11-23"
        )
    return rescore_run(config) if config.run else rescore_nights(config)


def rescore_run(config: Config) -> dict[str, Any]:
    """Score an old run's images again under the config's learner, and compare the two runs.

    Needs ``root``, ``learner``, ``run``. Returns the job's result with ``comparison`` (the page) and ``agreement``; for
    a night whose new learner has a reference, or can have the old one's, the new verdict too. The same config again
    resumes. With ``dry_run`` it returns a forecast and writes nothing. Raises SettingError when the run is not
    committed, or is this learner's own.
    """
    _, _, run_id = config.need("root", "learner", "run")
    store, layout = open_root(config, existing=True, dry_runs=True)
    old = Run.find(store, layout, run_id)
    if old.committed() is None:
        raise SettingError(f"The run {run_id} is not committed yet. Run its own command again to finish it.")
    work = _admitted(store, layout, config)
    record = old.record
    known = _known(work, committed_runs(store, layout, record.source, record.kind, record.name))
    if known and known.record.run_id in (run_id, old.newest().record.run_id):
        raise SettingError(f"Run {run_id} was made by this very learner with these settings. Give the new --learner.")
    if config.dry_run:
        return _forecast(work, [(old, known)])
    if not is_reference_name(record.name):
        _reference(work, [old])
    new, _ = _scored(work, old, known)
    notes = keep_table_current(store, layout, record.source)
    result = result_of(new) | _judged(work, new) | _compared(work, old, new)
    site.build(store, layout)
    return result | {"notes": [*result.get("notes", ()), *notes]}


def rescore_nights(config: Config) -> dict[str, Any]:
    """Score the nights of a source under the config's learner, oldest first, and compare each with its counting run.

    Needs ``root``, ``learner``, ``source``, and ``nights`` (A..B) or ``all``, which takes the plans of `score` too.
    Returns the learner's ``nights``, each (of a ``kind``) with what was made of it, its ``reference``, and ``notes``.
    The same config again goes on, and does nothing where all is done. Raises SettingError when no night of the range
    was ever scored; whatever ends a night ends the rest.
    """
    if not config.images:
        config.need("source")
    config.need("root", "learner")
    store, layout = open_root(config, existing=True, dry_runs=True)
    source = config.the_source()
    there = known_of(store, layout, source)
    chosen = dict(_scored_plans(store, layout, source, config, there.runs))
    if not chosen:
        raise SettingError(_no_such_nights(store, layout, source, config))
    work = _admitted(store, layout, config)
    # What they are held against: the run that counts, and never the new learner's own if there is another.
    others = {plan: counting_run(store, layout, source, *plan, there, but=work.info.model_id) for plan in chosen}
    pairs = {plan: others[plan] or runs[-1] for plan, runs in chosen.items()}
    known = {plan: _known(work, runs) for plan, runs in chosen.items()}
    if config.dry_run:
        return _forecast(work, [(old, known[plan]) for plan, old in pairs.items()])
    done: list[dict[str, Any]] = []
    try:
        reference = _nights(work, pairs, known, done)
    finally:
        # Also where a night failed: readers get those before it.
        notes = keep_table_current(store, layout, source)
    site.build(store, layout)
    too_many = [night.pop("too_many_failed") for night in done]
    return {
        "learner": work.info.model_id,
        "nights": done,
        "reference": reference,
        "too_many_failed": any(too_many),
        "notes": notes,
    }


def _nights(
    work: _Retrained, pairs: dict[PlanName, Run], known: dict[PlanName, Run | None], done: list[dict[str, Any]]
) -> str | None:
    """Make the reference, then night after night, each added to ``done``. Returns the reference's run."""
    # One connection for all nights: without a cluster of its own each of them would start and end one.
    with cluster.connected(
        work.config.ray_address, work.config.actors if any(map(work.to_score, known.values())) else 0
    ):
        reference = _reference(work, list(pairs.values()))
        for plan, old in pairs.items():
            say(f"{plan[0].capitalize()} {plan[1]} of {old.record.source}, {len(done) + 1} of {len(pairs)}")
            try:
                done.append(_night(work, old, known[plan]))
            except (DrivetrainError, OSError):
                ended = f"{len(done)} of {len(pairs)} nights are done; {plan[0]} {plan[1]} ended with an error."
                say(f"{ended} The same command goes on there.")
                raise
    return reference


def _admitted(store: Store, layout: Layout, config: Config) -> _Retrained:
    # Its images are those of the old run, wherever the config points.
    check_first(config.model_copy(update={"images": None}))
    return _Retrained(store, layout, config, admit_learner(store, layout, config))


def _scored_plans(
    store: Store, layout: Layout, source: str, config: Config, names: Sequence[str]
) -> Iterator[tuple[PlanName, list[Run]]]:
    """The nights of the range that any learner has scored, oldest first, with their runs; the others are named.

    Without a range all plans of `score` come after them: their rows are current scores as well.
    """
    first, last = config.the_nights()
    for name in sorted(store.names(layout.nights(source))):
        if not first <= _day(name) <= last:
            continue
        if runs := committed_runs(store, layout, source, "night", name, names):
            yield ("night", name), runs
        else:
            say(f"Night {name} of {source} was never scored to its end; first: drivetrain nightly --night {name}")
    for name in sorted(store.names(layout.plans(source, "plan"))) if config.all else ():
        if is_reference_name(name) or is_scope_name(name):
            continue
        if runs := committed_runs(store, layout, source, "plan", name, names):
            yield ("plan", name), runs


def _day(name: str) -> date:
    try:
        return date.fromisoformat(name)
    except ValueError:
        return date.min


def _no_such_nights(store: Store, layout: Layout, source: str, config: Config) -> str:
    there = sorted(store.names(layout.nights(source)))
    if not there:
        known = [each for each in store.names(layout.sources) if store.names(layout.nights(each))]
        return f"Source {source!r} has no night under {layout.root}. Sources with nights: {', '.join(known) or 'none'}."
    what = f"the range {config.nights}" if config.nights else f"source {source!r}"
    return f"No scored night in {what}. Source {source!r} has nights from {there[0]} to {there[-1]}."


def _night(work: _Retrained, old: Run, known: Run | None) -> dict[str, Any]:
    """One night of many: scored, compared, judged, or found done."""
    started = time.monotonic()
    new, made = _scored(work, old, known)
    result = result_of(new) | _judged(work, new) | _compared(work, old, new)
    kept = ("run_id", "agreement", "flips", "comparison", "failed", "too_many_failed")
    seconds = round(time.monotonic() - started, 3)
    about = {key: result[key] for key in kept}
    return (
        {"night": old.record.name, "kind": old.record.kind}
        | about
        | {"verdict": result.get("verdict"), "made": made, "seconds": seconds}
    )


def _known(work: _Retrained, runs: list[Run]) -> Run | None:
    """Of the committed runs of a plan the new learner's newest that serves for what is asked, or None."""
    mine = [
        run
        for run in runs
        if run.record.model_id == work.info.model_id
        and comparable(run.record.settings) == work.settings
        and not (work.config.full and run.record.made_from)
    ]
    return mine[-1] if mine else None


def _scored(work: _Retrained, old: Run, known: Run | None) -> tuple[Run, str]:
    """The new learner's committed run over an old run's images, and how it was made: scored, head only, or known."""
    if known is None:
        new = _begun(work, _plan_of(work, old), old)
        made = "head only" if new.record.head_only else "scored"
        # Another command may have finished it by now.
        made = "known" if new.committed() else made
        finish_run(new, work.config)
        return new, made
    if work.to_score(known):
        again = run_to_score(known, work.config.model_copy(update={"retry_failed": True}))
        finish_run(again, work.config)
        return again, "scored"
    say(f"Run {known.record.run_id} is committed already; nothing to score.")
    return known, "known"


def _forecast(work: _Retrained, pairs: list[tuple[Run, Run | None]]) -> dict[str, Any]:
    """What scoring old runs' images anew would do and take, the new learner's reference among them."""
    runs = [_begun(work, _plan_of(work, old), old) for old, known in pairs if known is None]
    for _, known in pairs:
        commit = known.committed() if known else None
        if known and commit and commit.failed and work.config.reprocess != "missing":
            runs.append(run_to_score(known, work.config.model_copy(update={"retry_failed": True})))
    if to_make := _reference_to_make(work, [old for old, _ in pairs if not is_reference_name(old.record.name)]):
        runs.append(_begun(work, to_make.plan, to_make.before))
    return forecast_of(runs, work.config)


def _plan_of(work: _Retrained, run: Run) -> Plan:
    record = run.record
    plan = find_plan(work.store, work.layout, record.source, record.kind, record.name)
    if plan is None:
        raise SettingError(f"The plan of run {record.run_id} is gone from {work.layout.sources}.")
    return plan


def _begun(work: _Retrained, plan: Plan, old: Run) -> Run:
    """The new learner's run of a plan that an old run has scored: of its embeddings where that may be."""
    old_id = old.record.run_id
    head_only = not work.config.full and not _reason(work, old)
    made_from = old_id if head_only else None
    return begin_run(work.store, work.layout, plan, work.info, work.config, rescore_of=old_id, made_from=made_from)


def _reason(work: _Retrained, old: Run) -> str:
    """Why the images of a run have to be read, or an empty text; said once for each old learner."""
    record = old.record
    key = json.dumps([record.model_id, record.embedding_size, record.settings["engine"], comparable(record.settings)])
    if key not in work.reasons:
        work.reasons[key] = why_not(work.store, work.layout, old, work.info, work.config)
        if reason := work.reasons[key]:
            say(f"Images are read again: {reason}.")
        else:
            same = f"The body of {work.info.model_id} is that of {record.model_id} to the bit"
            say(f"{same}: stored embeddings go through the new head, and no image is read to score them.")
    return work.reasons[key]


@dataclass(frozen=True)
class _ToMake:
    """A reference that the new learner is to get: its plan, and the old learner's run over the same images.

    ``elsewhere``: other images that the new learner was trained on, by name, as its labels file says; None where the
    splits are the old learner's.
    """

    plan: Plan
    before: Run
    elsewhere: tuple[str, ...] | None


def _reference(work: _Retrained, olds: list[Run]) -> str | None:
    """The new learner's reference: the one that is there, else made of the old learner's; None without either."""
    if to_make := _reference_to_make(work, olds):
        return _made(work, to_make)
    if found := reference_under(work.store, work.layout, work.info.model_id, work.settings):
        return found.run_id
    say(
        "Neither learner has a reference: the runs are compared, and not judged. To have nights judged, score the "
        "training set first:   drivetrain reference --learner … --images … --labels …"
    )
    return None


def _reference_to_make(work: _Retrained, olds: list[Run]) -> _ToMake | None:
    """What the new learner's reference is to be made of; None where it has one that stays, or the old one has none.

    One with the splits of an older learner, or of another labels file, makes way for one with those of `labels`.
    """
    store, layout, config = work.store, work.layout, work.config
    own = reference_under(store, layout, work.info.model_id, work.settings)
    if own and not config.labels:
        return None
    before = _copied(work, own) if own else _reference_before(work, olds)
    if before is None:
        if own:
            say(f"Its reference {own.run_id} was made by drivetrain reference and stays: --labels is not looked at.")
        return None
    plan = _plan_of(work, before)
    return _relabelled(work, plan, before, own) if config.labels else _ToMake(plan, before, None)


def _relabelled(work: _Retrained, plan: Plan, before: Run, own: Reference | None) -> _ToMake | None:
    """The same with what the labels file says; None where the new learner's own reference says that already."""
    store, layout, labels = work.store, work.layout, work.config.labels
    new, elsewhere = relabelled(store, layout, work.config, plan, work.info.vocab)
    if own and Run.find(store, layout, own.run_id).record.manifest == new.digest:
        about = store, layout, own.model_id, own.run_id
        if trained_files(*about) and trained_names(*about).issuperset(elsewhere):
            return None
    known = trained_names(store, layout, before.record.model_id, before.record.run_id)
    if (new.digest, set(elsewhere)) != (plan.digest, known):
        return _ToMake(new, before, elsewhere)
    say(
        f"{labels} says what is known of the old learner: it may be the old one's file, and is passed over. If the new "
        f"one was trained on the very same images:   drivetrain reference --learner … --images … --labels {labels}"
    )
    return None if own else _ToMake(plan, before, None)


def _copied(work: _Retrained, own: Reference) -> Run | None:
    """The run whose images a reference of the new learner has, or None if no rescore made that."""
    before = Run.find(work.store, work.layout, own.run_id).record.rescore_of
    return Run.find(work.store, work.layout, before) if before else None


def _reference_before(work: _Retrained, olds: list[Run]) -> Run | None:
    """The old learner's reference that the new one's is made like, or None if there is none."""
    learners = {json.dumps([old.record.model_id, comparable(old.record.settings)]): old for old in olds}
    for old in reversed(learners.values()):
        mine = old.record.model_id == work.info.model_id
        before = None if mine else find_reference(work.store, work.layout, old)
        if before:
            return Run.find(work.store, work.layout, before.run_id)
    return None


def _made(work: _Retrained, to_make: _ToMake) -> str:
    """Score the frozen images of an old learner's reference under the new one, and make that its reference."""
    model_id = work.info.model_id
    say(f"For the new learner {model_id} the images of {to_make.before.record.run_id} become its reference first.")
    if to_make.elsewhere is None:
        say(
            "Which images are held out is taken from that one. If the new learner was trained on some of them, nobody "
            "can know: it would be too sure of them, nights would look drifted, and no comparison recommends to "
            "promote it. Give its labels file: --labels …"
        )
    run = _begun(work, to_make.plan, to_make.before)
    finish_run(run, work.config)
    register(work.store, work.layout, run, to_make.elsewhere)
    say(f"What a test against it can see says   drivetrain drift selftest --run {run.record.run_id}")
    return run.record.run_id


def _judged(work: _Retrained, new: Run) -> dict[str, Any]:
    """The verdict on a night under the new learner; nothing for other plans, or where there is no reference."""
    reference = find_reference(work.store, work.layout, new)
    if new.record.kind != "night" or not reference:
        return {}
    done = latest_record(work.store, work.layout, new)
    if done and not work.anew:
        inputs = done[1]["inputs"]
        if (inputs["run_id"], inputs["reference"]) == (new.record.run_id, reference.run_id):
            return result_of_record(new, *done)
    return judge_run(work.store, work.layout, new, work.config, anew=work.anew)


def _compared(work: _Retrained, old: Run, new: Run) -> dict[str, Any]:
    """What a job prints about old and new side by side; nothing to compare where there is no image, or one run only."""
    if not new.record.images or old.record.run_id == new.record.run_id:
        return {"agreement": None, "flips": 0, "comparison": None}
    known = None if work.anew else known_comparison(work.store, work.layout, old, new)
    return known or said_of(work.layout, compare_and_publish(work.store, work.layout, old, new))
