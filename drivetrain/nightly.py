"""A night: list, score, measure, judge, report, publish. And the last four for one run.

Knows the order of a night. Everything it does is done by a lower floor, and everything it writes can be found again by
the same command.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain import report, site
from drivetrain.admit import admit_learner
from drivetrain.bundle import Bundle, Looked, look, open_bundle, plant_and_test
from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.doctor import check_first
from drivetrain.drift import moved
from drivetrain.errors import DrivetrainError, SettingError
from drivetrain.findings import Findings
from drivetrain.layout import Layout, RecordPaths
from drivetrain.measure import findings_of
from drivetrain.message import message
from drivetrain.nights import (
    accepted_values,
    alpha_of,
    latest_record,
    plan_night,
    plan_paths,
    record_number,
    trend_of,
)
from drivetrain.notify import post
from drivetrain.reference import Reference, build_reference, find_reference
from drivetrain.review import labelling_csv, review_queue
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Commit, Run
from drivetrain.score import begin_run, finish_run, result_of, run_to_score
from drivetrain.store import Store, parquet_bytes
from drivetrain.verdict import Evidence, Verdict, decide


@dataclass(frozen=True)
class Measured:
    """One run held against its reference, with the rows that the page shows."""

    run: Run
    commit: Commit
    reference: Reference | None
    bundle: Bundle | None
    looked: Looked
    findings: Findings | None
    moved: npt.NDArray[np.float64]
    verdict: Verdict


def run_night(config: Config) -> dict[str, Any]:
    """Score what is new on a night, compare it with the reference, and publish the report.

    Needs ``root``, ``learner``, ``images``. Returns the job's result, with ``verdict`` and ``report``. The same config
    again resumes, or says that the night is done and returns the same.
    """
    config.need("root", "learner", "images")
    check_first(config)
    store, layout = open_root(config)
    info = admit_learner(store, layout, config)
    plan = plan_night(store, layout, config)
    run = run_to_score(begin_run(store, layout, plan, info, config), config)
    done = latest_record(store, layout, run)
    # A night judged before there was a reference is judged again once there is one.
    judged = done is not None and (done[1]["inputs"]["reference"] or not find_reference(store, layout, run))
    if done and judged and done[1]["run_id"] == run.record.run_id:
        say(f"Night {plan.name} of {plan.source} is done already; nothing to do.")
        return _result(run, *done)
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


def judge_run(store: Store, layout: Layout, run: Run, config: Config) -> dict[str, Any]:
    """Measure, judge and report a committed run, unless the latest record was made from the same inputs."""
    reference = find_reference(store, layout, run)
    accepted = accepted_values(store, layout, run.record.source, reference.run_id if reference else None)
    accepted.pop(run.record.run_id, None)
    alpha = alpha_of(store, layout, config)
    inputs = _inputs(run, reference, config, alpha, accepted)
    done = latest_record(store, layout, run)
    if done and done[1]["inputs"] == inputs:
        say(f"Run {run.record.run_id} has been measured with the same settings; nothing to do.")
        return _result(run, *done)
    with busy(f"Measuring {run.record.source} {run.record.name}"):
        measured = measure(store, layout, run, reference, config, alpha, list(accepted.values()))
    number = record_number(done[0]) + 1 if done else 1
    record = plan_paths(layout, run).record(run.record.model_id, number)
    with busy("Writing the report"):
        _publish(store, layout, record, measured, inputs, config, before=done[1].get("snapshot") if done else None)
    return _result(run, record, from_json(store, record.verdict) or {})


def measure(
    store: Store, layout: Layout, run: Run, reference: Reference | None, config: Config, alpha: float,
    accepted: list[float],
) -> Measured:  # fmt: skip
    """Hold a committed run against a reference."""
    commit = run.committed()
    assert commit is not None
    bundle = open_bundle(store, layout, reference, config) if reference else None
    looked = look(run, bundle, config)
    findings, far = None, np.zeros(len(looked.rows))
    if bundle and len(looked.drawn) >= 2:
        far, _ = moved(bundle.lens, bundle.scores, looked.scores, config.seed)
        findings = findings_of(bundle, looked, far, run.record.vocab, alpha, accepted, config.seed)
    evidence = Evidence(
        images=commit.rows,
        failed=commit.failed,
        reasons=commit.reasons,
        reference=reference.run_id if reference else None,
        held_out=reference.held_out if reference else False,
        findings=findings,
        mean_confidence=_mean_confidence(bundle, looked),
        vocab=run.record.vocab,
        too_many_failed=commit.too_many_failed,
    )
    verdict = decide(evidence, effect_floor=config.effect_floor, min_images=config.min_images)
    return Measured(run, commit, reference, bundle, looked, findings, far, verdict)


def _inputs(
    run: Run, reference: Reference | None, config: Config, alpha: float, accepted: dict[str, float]
) -> dict[str, Any]:
    """All that a verdict depends on."""
    keys = ("effect_floor", "min_images", "review_size", "seed", "group_by")
    return {
        "run_id": run.record.run_id,
        "reference": reference.run_id if reference else None,
        "settings": {key: getattr(config, key) for key in keys} | {"alpha": alpha},
        "accepted": sorted(accepted),
    }


def _mean_confidence(bundle: Bundle | None, looked: Looked) -> tuple[float, float] | None:
    if bundle is None or not len(looked.rows):
        return None
    before, now = bundle.scores.confidence, looked.scores.confidence[looked.drawn]
    if np.isnan(before).any() or np.isnan(now).any() or not len(now):
        return None
    return float(before.mean()), float(now.mean())


def _publish(
    store: Store,
    layout: Layout,
    record: RecordPaths,
    measured: Measured,
    inputs: dict[str, Any],
    config: Config,
    before: str | None,
) -> None:
    """Write a record: everything else first, verdict.json last, then the site."""
    queue = _queue(measured, config)
    store.replace(record.review, parquet_bytes(queue))
    store.replace(record.labelling, labelling_csv(queue))
    store.replace(record.drift, to_json(measured.findings.record() if measured.findings else {}))
    closed = _about(measured.run) | measured.verdict.record() | {"numbers": _numbers(measured), "inputs": inputs}
    page = _page(store, layout, measured, queue, record, config)
    drawn = measured.looked.rows.take(pa.array(measured.looked.drawn))
    made = report.make(
        page, drawn, measured.bundle.rows if measured.bundle else None, store, config.evidently_embeddings
    )
    store.replace(record.report, made.html)
    store.replace(record.snapshot, made.json)
    snapshot = report.publish(made, layout.workspace, store, before)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    store.create(record.verdict, to_json(closed | {"snapshot": snapshot, "made": now, "notes": list(page.notes)}))
    site.build(store, layout)


def _notes(measured: Measured, record: RecordPaths, config: Config) -> tuple[str, ...]:
    """Tell the chat, before the page is made: a page says when that failed."""
    webhook = config.the_webhook()
    if not webhook:
        return ()
    told = _about(measured.run) | measured.verdict.record() | {"numbers": _numbers(measured)}
    note = post(webhook, message(told, record.report))
    return (note,) if note else ()


def _queue(measured: Measured, config: Config) -> pa.Table:
    looked, lens = measured.looked, measured.bundle.lens if measured.bundle else None
    return review_queue(
        looked.rows,
        measured.moved,
        config.review_size,
        measured.run.record.run_id,
        looked.scores.groups,
        lens.whiten(looked.scores) if lens and len(looked.rows) else None,
    )


def _about(run: Run) -> dict[str, str]:
    keys = ("source", "kind", "name", "model_id", "run_id")
    return {key: getattr(run.record, key) for key in keys}


def _page(
    store: Store, layout: Layout, measured: Measured, queue: pa.Table, record: RecordPaths, config: Config
) -> report.Page:
    numbers, run = _numbers(measured), measured.run.record
    tonight = {"verdict": measured.verdict.verdict, "numbers": numbers, "report": record.report, "night": run.name}
    return report.Page(
        **_about(measured.run),
        verdict=measured.verdict,
        findings=measured.findings,
        commit=measured.commit,
        vocab=run.vocab,
        queue=queue,
        held_out=measured.reference.held_out if measured.reference else False,
        effect_floor=config.effect_floor,
        trend=trend_of(store, layout, run.source, run.kind, tonight),
        notes=_notes(measured, record, config),
    )


def _numbers(measured: Measured) -> dict[str, Any]:
    """What the table of nights shows."""
    confidence = _mean_confidence(measured.bundle, measured.looked)
    findings = measured.findings
    combined = findings.decision.statistic("combined") if findings else None
    return {
        "rows": measured.commit.rows,
        "failed": measured.commit.failed,
        "p_value": findings.decision.p_value if findings else None,
        "effect": findings.decision.effect if findings else None,
        "score": combined.score if combined else None,
        "accuracy": findings.accuracy.estimate if findings and findings.accuracy else None,
        "mean_confidence": confidence[1] if confidence else None,
    }


def _result(run: Run, record: RecordPaths, verdict: dict[str, Any]) -> dict[str, Any]:
    return result_of(run) | {
        "verdict": verdict["verdict"],
        "lever": verdict["lever"],
        "sentence": verdict["sentence"],
        "report": record.report,
        "review": record.review,
        "labelling": record.labelling,
        "notes": verdict.get("notes", []),
    }
