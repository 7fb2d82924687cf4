"""A night: list, score, judge; and all that were missed. And what else is done with measured runs.

Knows the order of a night. Everything it does is done by a lower floor, and everything it writes can be found again by
the same command.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any

from drivetrain import cluster
from drivetrain.alerts import Teller, hold, tell
from drivetrain.bundle import open_bundle, plant_and_test
from drivetrain.champion import admit_champion
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.errors import DrivetrainError, SettingError
from drivetrain.export import LearnerInfo
from drivetrain.judge import alert_again, judge_run, result_of_record
from drivetrain.layout import Layout, view_of
from drivetrain.manifest import Plan
from drivetrain.nights import Night, accepted_values, alpha_of, latest_record, nights_table, plan_night
from drivetrain.planruns import counting_run
from drivetrain.reference import build_reference, comparable, find_reference
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.score import begin_run, check_groups, finish_run, forecast_of, run_to_score, settings_of
from drivetrain.shadow import begin_beside, score_beside
from drivetrain.store import Store
from drivetrain.table import keep_table_current

# What a night may be that has no record, other than being worked on.
UNDONE = ("missing", "planned", "failed", "dead", "stopped")


def run_night(config: Config) -> dict[str, Any]:
    """Score what is new on a night with the source's champion, compare it with the reference, and publish the report.

    Needs ``root``, ``images``, and on a source's first night ``learner``, which becomes its champion. Returns the job's
    result, with ``verdict`` and ``report``; with a challenger or a ``shadow`` also ``shadow_run_id``, ``comparison``
    and ``agreement``. The same config again resumes, or says that the night is done and returns the same. With
    ``catch_up`` all nights up to this one that did not run or did not end, oldest first, as ``caught_up``. With
    ``dry_run`` it returns a forecast of the scoring, of all these nights and beside the champion too, and writes
    nothing.
    """
    config.need("root", "images")
    if config.dry_run:
        return _foretold(config)
    return catch_up(config) if config.catch_up else _one_night(config)


def _one_night(config: Config, alert: Teller = tell) -> dict[str, Any]:
    _check(config)
    store, layout = open_root(config)
    plan, run = _begun(store, layout, config)
    result = _judged_night(store, layout, run, config, alert)
    beside = score_beside(store, layout, plan, run, config)
    return result | beside | {"notes": [*result["notes"], *beside.get("notes", ())]}


def _made_by_its_head(store: Store, layout: Layout, plan: Plan, info: LearnerInfo, config: Config) -> Run | None:
    """The champion's run of a night, if that counts and `rescore` made it of stored embeddings: no image is read again.

    None where it was made with settings that give other values.
    """
    run = counting_run(store, layout, plan.source, plan.kind, plan.name)
    if run is None or run.record.model_id != info.model_id or not run.record.head_only:
        return None
    wanted = settings_of(config, "int8" if config.engine == "int8" else "torch")
    return run if comparable(run.record.settings) == comparable(wanted) else None


def _check(config: Config) -> None:
    # Whose learner it is that must be there, the root says.
    check_first(config.model_copy(update={"learner": None}))


def _begun(store: Store, layout: Layout, config: Config) -> tuple[Plan, Run]:
    """A night's plan, and the champion's run of it."""
    info = admit_champion(store, layout, config)
    plan = plan_night(store, layout, config)
    check_groups(store, layout, plan, config)
    made = _made_by_its_head(store, layout, plan, info, config)
    return plan, run_to_score(made or begin_run(store, layout, plan, info, config), config)


def _foretold(config: Config) -> dict[str, Any]:
    """What the scoring of a night, or of all that are to be caught up, would take.

    They are begun in one overlay, so that each sees what the nights before it would have taken.
    """
    _check(config)
    store, layout = open_root(config, dry_runs=True)
    nights = _wanted(store, layout, config) if config.catch_up else [config.the_night().isoformat()]
    runs: list[Run] = []
    beside: list[Run] = []
    notes: list[str] = []
    for night in nights:
        one = config.model_copy(update={"night": date.fromisoformat(night)})
        plan, run = _begun(store, layout, one)
        second, wrong = begin_beside(store, layout, plan, run, one)
        runs.append(run)
        beside += [second] if second else []
        notes += wrong
    about = {"nights_to_do": nights} if config.catch_up else {}
    return forecast_of(runs, config, beside=beside) | about | {"notes": list(dict.fromkeys(notes))}


def _judged_night(store: Store, layout: Layout, run: Run, config: Config, alert: Teller) -> dict[str, Any]:
    done = latest_record(store, layout, run)
    # A night judged before there was a reference is judged again once there is one.
    judged = done is not None and (done[1]["inputs"]["reference"] or not find_reference(store, layout, run))
    if done and judged and done[1]["run_id"] == run.record.run_id:
        notes = keep_table_current(store, layout, run.record.source)
        say(f"Night {run.record.name} of {run.record.source} is done already; nothing to do.")
        alert_again(store, layout, *done, config)
        result = result_of_record(run, *done)
        return result | {"notes": [*result["notes"], *notes]}
    finish_run(run, config)
    # Before the verdict: what readers see hangs on the commit alone.
    notes = keep_table_current(store, layout, run.record.source)
    result = judge_run(store, layout, run, config, alert=alert)
    return result | {"notes": [*result["notes"], *notes]}


def catch_up(config: Config) -> dict[str, Any]:
    """Fill the nights of a source up to the config's that did not run or did not end, oldest first.

    Each is a night like any other, with its own date, but the chat hears of them in one message, that of the last one.
    Returns them as ``caught_up``, each with its ``night``. Raises what ends a night, with what to type: those before it
    are done.
    """
    store, layout = open_root(config)
    wanted = _wanted(store, layout, config)
    if not wanted:
        return {"source": config.the_source(), "caught_up": []}
    done: list[dict[str, Any]] = []
    with cluster.connected(config.ray_address, config.actors):
        for night in wanted:
            say(f"Night {night}, {len(done) + 1} of {len(wanted)}.")
            try:
                one = config.model_copy(update={"night": date.fromisoformat(night)})
                result = _one_night(one, tell if night == wanted[-1] else hold)
            except (DrivetrainError, OSError):
                say(
                    f"Night {night} could not be done; {len(done)} of {len(wanted)} are. When that is mended, the same "
                    "command goes on: drivetrain nightly --catch-up"
                )
                if done:
                    _tell_held(store, layout, done[-1]["run_id"], config)
                raise
            done.append({"night": night} | result)
    return {"source": config.the_source(), "caught_up": done}


def _tell_held(store: Store, layout: Layout, run_id: str, config: Config) -> None:
    """Tell what the nights that were done had to say, since the one that was to tell it could not be done."""
    if record := latest_record(store, layout, Run.find(store, layout, run_id)):
        alert_again(store, layout, *record, config)


def _wanted(store: Store, layout: Layout, config: Config) -> list[str]:
    """The nights of the config's source up to its night that are to be done; says so if there is none."""
    wanted = _to_fill(nights_table(store, layout, config.the_source()), config.the_night())
    if not wanted:
        say(f"No night of {config.the_source()} up to {config.the_night()} is left to be done.")
    return wanted


def _to_fill(nights: Sequence[Night], last: date) -> list[str]:
    """The nights that are to be done, oldest first. One that another command works on is left to it."""
    states = {night.night: night.state for night in nights}
    states.setdefault(last.isoformat(), "missing")
    until = {name: state for name, state in sorted(states.items()) if name <= last.isoformat()}
    for name in (name for name, state in until.items() if state == "running"):
        say(f"Night {name} is being scored by another command.")
    return [name for name, state in until.items() if state in UNDONE]


def measure_drift(config: Config) -> dict[str, Any]:
    """Hold one committed run against its learner's reference, and publish the report.

    Needs ``root``, ``run``. Returns the job's result. Measuring again with the same reference and the same settings
    returns the record that is there; otherwise a new numbered record is made.
    """
    store, layout, run = _committed(config)
    return judge_run(store, layout, run, config)


def accept_night(config: Config) -> dict[str, Any]:
    """Accept a measured run as a usual night: from 20 on, how accepted nights differ enters the threshold.

    Needs ``root``, ``run``. Returns how many nights of its source are accepted under its model and reference. Raises
    SettingError when the run has not been measured.
    """
    store, layout, run = _committed(config)
    done = latest_record(store, layout, run)
    found = from_json(store, done[0].drift) if done else None
    if not done or not found or done[1]["run_id"] != run.record.run_id:
        raise SettingError(f"Run {run.record.run_id} has not been measured. First: drivetrain drift measure --run …")
    reference = done[1]["inputs"]["reference"]
    value = next(each["value"] for each in found["decision"]["statistics"] if each["name"] == "combined")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"run_id": run.record.run_id, "model_id": run.record.model_id, "value": value, "accepted": now}
    settings = done[1]["inputs"]["settings"]
    view = view_of(settings["seed"], settings["group_by"])
    path = layout.acceptance(run.record.source, run.record.run_id, reference, view)
    store.create(path, to_json(record | {"reference": reference}))
    number = len(accepted_values(store, layout, run.record.source, reference, view))
    return {"accepted": run.record.run_id, "accepted_nights": number}


def self_test_drift(config: Config) -> dict[str, Any]:
    """Plant shifts into nights made of a reference's images, and say which of them the nightly test sees.

    Needs ``root``, ``run``: a reference. Returns its ``self_test``, which every later report shows.
    """
    store, layout, run = _committed(config)
    reference = find_reference(store, layout, run)
    if reference is None or reference.run_id != run.record.run_id:
        newest = f" The newest one of its learner: --run {reference.run_id}" if reference else ""
        raise SettingError(f"Run {run.record.run_id} is no reference that nights are held against.{newest}")
    bundle = open_bundle(store, layout, reference, config)
    found = plant_and_test(bundle, alpha_of(store, layout, config), config) if bundle else None
    if found is None:
        raise SettingError(f"The reference {reference.run_id} has too few images for a self-test; 100 are needed.")
    return {"run_id": run.record.run_id, "self_test": asdict(found)}


def build_and_test_reference(config: Config) -> dict[str, Any]:
    """Score the training set as `build_reference` does, and say what a test against it can see.

    The self-test scores 300 held-out images five times more. What goes wrong in it is said, and loses nothing.
    """
    result = build_reference(config)
    with_run = config.model_copy(update={"run": result["run_id"]})
    store, _, run = _committed(with_run)
    if store.exists(run.paths.self_test(view_of(config.seed, config.group_by))):
        return result
    try:
        return result | {"self_test": self_test_drift(with_run)["self_test"]}
    except (DrivetrainError, OSError) as error:
        say(f"No self-test: {error}")
        return result


def _committed(config: Config) -> tuple[Store, Layout, Run]:
    _, run_id = config.need("root", "run")
    store, layout = open_root(config, existing=True)
    check_first(config.model_copy(update={"learner": None, "images": None}))
    run = Run.find(store, layout, run_id)
    if run.committed() is None:
        raise SettingError(f"The run {run_id} is not committed yet. Run its own command again to finish it.")
    return store, layout, run
