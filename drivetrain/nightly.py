"""A night: list, score, judge. And what else is done with measured runs: accept them, test the test.

Knows the order of a night. Everything it does is done by a lower floor, and everything it writes can be found again by
the same command.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from drivetrain.admit import admit_learner
from drivetrain.bundle import open_bundle, plant_and_test
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.errors import DrivetrainError, SettingError
from drivetrain.judge import judge_run, result_of_record
from drivetrain.layout import Layout
from drivetrain.nights import accepted_values, alpha_of, latest_record, plan_night
from drivetrain.reference import build_reference, find_reference
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.score import begin_run, finish_run, forecast_of, run_to_score
from drivetrain.store import Store


def run_night(config: Config) -> dict[str, Any]:
    """Score what is new on a night, compare it with the reference, and publish the report.

    Needs ``root``, ``learner``, ``images``. Returns the job's result, with ``verdict`` and ``report``. The same config
    again resumes, or says that the night is done and returns the same. With ``dry_run`` it returns a forecast of the
    scoring and writes nothing.
    """
    config.need("root", "learner", "images")
    check_first(config)
    store, layout = open_root(config, dry_runs=True)
    info = admit_learner(store, layout, config)
    plan = plan_night(store, layout, config)
    run = run_to_score(begin_run(store, layout, plan, info, config), config)
    if config.dry_run:
        return forecast_of([run], config)
    done = latest_record(store, layout, run)
    # A night judged before there was a reference is judged again once there is one.
    judged = done is not None and (done[1]["inputs"]["reference"] or not find_reference(store, layout, run))
    if done and judged and done[1]["run_id"] == run.record.run_id:
        say(f"Night {plan.name} of {plan.source} is done already; nothing to do.")
        return result_of_record(run, *done)
    finish_run(run, config)
    return judge_run(store, layout, run, config)


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
    path = layout.acceptance(run.record.source, run.record.run_id, reference)
    store.create(path, to_json(record | {"reference": reference}))
    number = len(accepted_values(store, layout, run.record.source, reference))
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
    if store.exists(run.paths.self_test):
        return result
    try:
        return result | {"self_test": self_test_drift(with_run)["self_test"]}
    except (DrivetrainError, OSError) as error:
        say(f"No self-test: {error}")
        return result


def _committed(config: Config) -> tuple[Store, Layout, Run]:
    _, run_id = config.need("root", "run")
    store, layout = open_root(config, existing=True)
    run = Run.find(store, layout, run_id)
    if run.committed() is None:
        raise SettingError(f"The run {run_id} is not committed yet. Run its own command again to finish it.")
    return store, layout, run
