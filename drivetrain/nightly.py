"""A night: list, score, measure, judge, report, publish. And the last four for one run.

Knows the order of a night. Everything it does is done by a lower floor, and everything it writes can be found again by
the same command.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain import drift, report, site
from drivetrain.admit import admit_learner
from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.doctor import check_first
from drivetrain.errors import SettingError
from drivetrain.layout import Layout, RecordPaths
from drivetrain.nights import latest_record, plan_night, plan_paths, record_number
from drivetrain.reference import (
    MOST_ROWS,
    SCORE_COLUMNS,
    Reference,
    find_reference,
    reference_rows,
    scores_of,
)
from drivetrain.review import review_queue
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
    rows: pa.Table
    reference_rows: pa.Table | None
    drift: drift.Drift | None
    moved: Any
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
    _, run_id = config.need("root", "run")
    store, layout = open_root(config, existing=True)
    run = Run.find(store, layout, run_id)
    if run.committed() is None:
        raise SettingError(f"The run {run_id} is not committed yet. Run its own command again to finish it.")
    return judge_run(store, layout, run, config)


def judge_run(store: Store, layout: Layout, run: Run, config: Config) -> dict[str, Any]:
    """Measure, judge and report a committed run, unless the latest record was made from the same inputs."""
    reference = find_reference(store, layout, run)
    inputs = _inputs(run, reference, config)
    done = latest_record(store, layout, run)
    if done and done[1]["inputs"] == inputs:
        say(f"Run {run.record.run_id} has been measured with the same settings; nothing to do.")
        return _result(run, *done)
    with busy(f"Measuring {run.record.source} {run.record.name}"):
        measured = measure(store, layout, run, reference, config)
    number = record_number(done[0]) + 1 if done else 1
    record = plan_paths(layout, run).record(run.record.model_id, number)
    with busy("Writing the report"):
        _publish(store, layout, record, measured, inputs, config, before=done[1].get("snapshot") if done else None)
    return _result(run, record, from_json(store, record.verdict) or {})


def measure(store: Store, layout: Layout, run: Run, reference: Reference | None, config: Config) -> Measured:
    """Hold a committed run against a reference."""
    commit = run.committed()
    assert commit is not None
    rows = run.rows(SCORE_COLUMNS, most=MOST_ROWS, seed=config.seed)
    others = reference_rows(store, layout, reference, config.seed) if reference else None
    found, moved = None, np.zeros(len(rows))
    if others is not None and min(len(rows), len(others)) >= 2:
        outputs = len(run.record.vocab) or 1
        held, current = scores_of(others, outputs), scores_of(rows, outputs)
        found = drift.measure(held, current, classes=len(run.record.vocab), alpha=config.alpha, seed=config.seed)
        moved, _ = drift.moved(held, current, config.seed)
    evidence = Evidence(
        images=commit.rows,
        failed=commit.failed,
        reasons=commit.reasons,
        reference=reference.run_id if reference else None,
        held_out=reference.held_out if reference else False,
        drift=found,
        mean_confidence=_mean_confidence(others, rows),
        vocab=run.record.vocab,
        too_many_failed=commit.too_many_failed,
    )
    verdict = decide(evidence, effect_floor=config.effect_floor, min_images=config.min_images)
    return Measured(run, commit, reference, rows, others, found, moved, verdict)


def _inputs(run: Run, reference: Reference | None, config: Config) -> dict[str, Any]:
    """All that a verdict depends on."""
    keys = ("alpha", "effect_floor", "min_images", "review_size", "seed")
    return {
        "run_id": run.record.run_id,
        "reference": reference.run_id if reference else None,
        "settings": {key: getattr(config, key) for key in keys},
    }


def _mean_confidence(reference: pa.Table | None, rows: pa.Table) -> tuple[float, float] | None:
    if reference is None or not len(rows) or rows["confidence"].null_count or reference["confidence"].null_count:
        return None
    before, now = (float(np.mean(table["confidence"].to_numpy())) for table in (reference, rows))
    return before, now


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
    queue = review_queue(measured.rows, measured.moved, config.review_size, measured.run.record.run_id)
    store.replace(record.review, parquet_bytes(queue))
    store.replace(record.drift, to_json(measured.drift.record() if measured.drift else {}))
    made = report.make(_page(measured, queue), measured.rows, measured.reference_rows, store)
    store.replace(record.report, made.html)
    store.replace(record.snapshot, made.json)
    snapshot = report.publish(made, layout.workspace, store, before)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    closed = _about(measured.run) | measured.verdict.record() | {"numbers": _numbers(measured), "inputs": inputs}
    store.create(record.verdict, to_json(closed | {"snapshot": snapshot, "made": now}))
    site.build(store, layout)


def _about(run: Run) -> dict[str, str]:
    keys = ("source", "kind", "name", "model_id", "run_id")
    return {key: getattr(run.record, key) for key in keys}


def _page(measured: Measured, queue: pa.Table) -> report.Page:
    return report.Page(
        **_about(measured.run),
        verdict=measured.verdict,
        drift=measured.drift,
        commit=measured.commit,
        vocab=measured.run.record.vocab,
        queue=queue,
        held_out=measured.reference.held_out if measured.reference else False,
    )


def _numbers(measured: Measured) -> dict[str, Any]:
    """What the table of nights shows."""
    confidence = _mean_confidence(measured.reference_rows, measured.rows)
    return {
        "rows": measured.commit.rows,
        "failed": measured.commit.failed,
        "p_value": measured.drift.p_value if measured.drift else None,
        "effect": measured.drift.effect if measured.drift else None,
        "mean_confidence": confidence[1] if confidence else None,
    }


def _result(run: Run, record: RecordPaths, verdict: dict[str, Any]) -> dict[str, Any]:
    return result_of(run) | {
        "verdict": verdict["verdict"],
        "lever": verdict["lever"],
        "sentence": verdict["sentence"],
        "report": record.report,
        "review": record.review,
    }
