"""Hold a committed run against its reference, judge it, and publish its record: report, review queue, site.

Knows one run. Does not know how it came to be scored.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drivetrain import report, site
from drivetrain.alerts import Judgement, Teller, tell_again
from drivetrain.bundle import Bundle, Looked, look, open_bundle
from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.drift import moved
from drivetrain.findings import Findings, Realised
from drivetrain.labelfiles import delimiter_of
from drivetrain.labels import drawn_images, people_labels
from drivetrain.layout import Layout, RecordPaths, view_of
from drivetrain.measure import findings_of
from drivetrain.nights import accepted_values, alpha_of, latest_record, plan_paths, record_number, trend_of
from drivetrain.realised import realised_of, rows_of
from drivetrain.reference import Reference, find_reference, named_reference
from drivetrain.review import labelling_csv, predicted_of, review_queue
from drivetrain.root import from_json, to_json
from drivetrain.run import Commit, Run
from drivetrain.schema import parquet_bytes
from drivetrain.score import result_of
from drivetrain.store import Store
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
    realised: tuple[Realised, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """All that a record depends on. ``accepted``: values of the deciding statistic by run id."""

    reference: Reference | None
    alpha: float
    accepted: dict[str, float]
    realised: tuple[Realised, ...]

    def record(self, run: Run, config: Config) -> dict[str, Any]:
        """As verdict.json has it. Without labels as it was before there were any: such a record stays."""
        keys = ("effect_floor", "min_images", "review_size", "seed", "group_by")
        labels = {"labels": [asdict(each) for each in self.realised]} if self.realised else {}
        beside = {"evidently_embeddings": True} if config.evidently_embeddings else {}
        return {
            "run_id": run.record.run_id,
            "reference": self.reference.run_id if self.reference else None,
            "settings": {key: getattr(config, key) for key in keys} | {"alpha": self.alpha} | beside,
            "accepted": sorted(self.accepted),
        } | labels


def judge_run(
    store: Store, layout: Layout, run: Run, config: Config, *, anew: bool = False, alert: Teller | None = None
) -> dict[str, Any]:
    """Measure, judge and report a committed run, unless the latest record was made from the same inputs.

    With ``anew`` a further record is made all the same. ``alert`` tells the chat, `alerts.tell` or `alerts.hold`: of
    nights as they come, not of runs that somebody looks at again.
    """
    reference = find_reference(store, layout, run)
    against, view = reference.run_id if reference else None, view_of(config.seed, config.group_by)
    accepted = accepted_values(store, layout, run.record.source, against, view)
    accepted.pop(run.record.run_id, None)
    given = Inputs(reference, alpha_of(store, layout, config), accepted, _realised(store, layout, run))
    done = latest_record(store, layout, run)
    if done and done[1]["inputs"] == given.record(run, config) and not anew:
        say(f"Run {run.record.run_id} has been measured with the same settings; nothing to do.")
        if alert:
            alert_again(store, layout, *done, config)
        return result_of_record(run, *done)
    return _judge(store, layout, run, given, config, done, alert=alert)


def judge_labelled(store: Store, layout: Layout, run: Run, config: Config) -> dict[str, Any] | None:
    """Make the record of a measured run anew with the labels that people gave since; None if it was never measured.

    All else is as in the latest record, its settings too: labels never change a verdict, and nobody is told again.
    """
    done = latest_record(store, layout, run)
    if done is None:
        return None
    before = done[1]["inputs"]
    settings = {key: value for key, value in before["settings"].items() if key != "alpha"}
    config = config.model_copy(update=settings)
    reference = named_reference(store, layout, run, before["reference"])
    view = view_of(config.seed, config.group_by)
    known = accepted_values(store, layout, run.record.source, before["reference"], view)
    accepted = {run_id: known[run_id] for run_id in before["accepted"] if run_id in known}
    given = Inputs(reference, before["settings"]["alpha"], accepted, _realised(store, layout, run))
    if before == given.record(run, config):
        return result_of_record(run, *done)
    return _judge(store, layout, run, given, config, done, notes=tuple(done[1].get("notes", ())))


def _realised(store: Store, layout: Layout, run: Run) -> tuple[Realised, ...]:
    source, kind, name = run.record.source, run.record.kind, run.record.name
    people = people_labels(store, layout, source)
    return realised_of(run, people, drawn_images(store, layout, source, kind, name)) if people else ()


def _judge(
    store: Store, layout: Layout, run: Run, given: Inputs, config: Config,
    done: tuple[RecordPaths, dict[str, Any]] | None, *, alert: Teller | None = None, notes: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Make the next record of a run. With ``alert`` the chat is told, else ``notes`` are those of the record before."""
    with busy(f"Measuring {run.record.source} {run.record.name}"):
        accepted = list(given.accepted.values())
        measured = measure(store, layout, run, given.reference, config, given.alpha, accepted)
        measured = replace(measured, realised=given.realised)
    number = record_number(done[0]) + 1 if done else 1
    record = plan_paths(layout, run).record(run.record.model_id, number)
    with busy("Writing the report"):
        before = done[1].get("snapshot") if done else None
        _publish(store, layout, record, measured, given.record(run, config), config, before, alert, notes)
    return result_of_record(run, record, from_json(store, record.verdict) or {})


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
        leaked=reference.leaked if reference else 0,
        findings=findings,
        mean_confidence=_mean_confidence(bundle, looked),
        vocab=run.record.vocab,
        too_many_failed=commit.too_many_failed,
    )
    verdict = decide(evidence, effect_floor=config.effect_floor, min_images=config.min_images)
    return Measured(run, commit, reference, bundle, looked, findings, far, verdict)


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
    alert: Teller | None,
    notes: tuple[str, ...],
) -> None:
    """Write a record: everything else first, verdict.json last, then the site."""
    queue = _queue(measured, config)
    store.replace(record.review, parquet_bytes(queue))
    store.replace(record.labelling, _labelling(measured.run, queue))
    store.replace(record.drift, to_json(measured.findings.record() if measured.findings else {}))
    closed = _about(measured.run) | measured.verdict.record() | {"numbers": _numbers(measured), "inputs": inputs}
    if alert:
        # Before the page is made: it says when that failed.
        notes = alert(Judgement(store, layout, config, record, closed, queue.to_pylist))
    page = _page(store, layout, measured, queue, record, config, notes)
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


def _labelling(run: Run, queue: pa.Table) -> bytes:
    """The queue to be labelled. Its rows hold one label: sets and numbers are read from the run."""
    task = run.record.task
    if task == "single_label":
        return labelling_csv(queue)
    rows = rows_of(run, queue["uri"].to_pylist(), ["label", "labels", "values"])
    said = {uri: predicted_of(task, row) for uri, row in rows.items()}
    return labelling_csv(queue, said, delimiter_of(run.record.vocab))


def alert_again(store: Store, layout: Layout, record: RecordPaths, closed: dict[str, Any], config: Config) -> None:
    """Tell the chat of a night that is done already, if that failed before. Its page stays as it is."""
    for note in tell_again(Judgement.stored(store, layout, config, record, closed)):
        say(note)


def _queue(measured: Measured, config: Config) -> pa.Table:
    looked, lens = measured.looked, measured.bundle.lens if measured.bundle else None
    return review_queue(
        looked.rows,
        measured.moved if measured.findings else None,
        config.review_size,
        measured.run.record.run_id,
        looked.scores.groups,
        lens.whiten(looked.scores) if lens and len(looked.rows) else None,
    )


def _about(run: Run) -> dict[str, str]:
    keys = ("source", "kind", "name", "model_id", "run_id")
    return {key: getattr(run.record, key) for key in keys}


def _page(
    store: Store,
    layout: Layout,
    measured: Measured,
    queue: pa.Table,
    record: RecordPaths,
    config: Config,
    notes: tuple[str, ...],
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
        notes=notes,
        realised=measured.realised,
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
        "realised_accuracy": [asdict(each) for each in measured.realised],
    }


def result_of_record(run: Run, record: RecordPaths, verdict: dict[str, Any]) -> dict[str, Any]:
    """What a job prints of a run and its closed record."""
    return result_of(run) | {
        "verdict": verdict["verdict"],
        "lever": verdict["lever"],
        "sentence": verdict["sentence"],
        "report": record.report,
        "review": record.review,
        "labelling": record.labelling,
        "notes": verdict.get("notes", []),
    }
