"""The only room that imports Evidently: a night's report, and the workspace that shows the nights as series.

Knows widgets. Does not decide anything: the verdict and every number come from below. Our own metrics carry them into
Evidently, which renders them, keeps them in its snapshots, and draws them in its dashboard. A page is handed to its
metrics as one more dataset, which is how Evidently passes extra data to a calculation.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa

os.environ.setdefault("DO_NOT_TRACK", "1")

import fsspec
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import (
    ByLabelCalculation,
    ByLabelMetric,
    SingleValueCalculation,
    SingleValueMetric,
)
from evidently.core.report import Snapshot
from evidently.legacy.renderers.html_widgets import CounterData, counter, plotly_figure, text_widget
from evidently.metrics import RowCount
from evidently.presets import ValueStats
from evidently.sdk.models import PanelMetric
from evidently.sdk.panels import bar_plot_panel, line_plot_panel
from evidently.tests import gt, lte
from evidently.ui.workspace import Workspace

from drivetrain.findings import Findings as Drift
from drivetrain.figures import label_figure, null_figure, thumbnail_figure
from drivetrain.layout import shipped
from drivetrain.review import thumbnails
from drivetrain.run import Commit
from drivetrain.schema import FLAGS
from drivetrain.store import Store
from drivetrain.verdict import Verdict

PROJECT = "drivetrain"
PAGE = "drivetrain_page"
SHOWN = 30
CODES = {"ok": 0, "warn": 1, "drift": 2, "unknown": -1}


@dataclass(frozen=True)
class Page:
    """All that a night's report shows, computed elsewhere."""

    source: str
    kind: str
    name: str
    model_id: str
    run_id: str
    verdict: Verdict
    drift: Drift | None
    commit: Commit
    vocab: tuple[str, ...]
    queue: pa.Table
    held_out: bool


@dataclass(frozen=True)
class Made:
    """A report: the page, its JSON, and Evidently's snapshot for the workspace."""

    html: bytes
    json: bytes
    snapshot: Snapshot
    source: str


class NightVerdict(SingleValueMetric):
    """The verdict as a number: 0 ok, 1 warn, 2 drift, -1 unknown."""


class DriftPValue(SingleValueMetric):
    """The p-value of the two deciding statistics together."""


class DriftEffect(SingleValueMetric):
    """How often tonight's image is told from the reference's, of a random pair."""


class FailedShare(SingleValueMetric):
    """The share of the night's images that could not be scored."""


class LabelShare(ByLabelMetric):
    """The share of the night's images that got each label."""


class ReviewImages(SingleValueMetric):
    """The number of images in the review queue."""


def _page(context: Any) -> dict[str, Any]:
    frame = context.additional_data[PAGE].as_dataframe()
    return cast("dict[str, Any]", json.loads(frame["json"].iloc[0]))


class NightVerdictCalculation(SingleValueCalculation[NightVerdict]):
    """Shows the sentence, the lever and the reasons at the top of the page."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The verdict's code and its widgets."""
        page = _page(context)
        result = self.result(CODES[page["verdict"]["verdict"]])
        result.widget = [_headline(page), _reasons(page), _counters(page)]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Verdict (0 ok, 1 warn, 2 drift, -1 unknown)"


class DriftPValueCalculation(SingleValueCalculation[DriftPValue]):
    """Shows each statistic's null with tonight's mark."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The p-value and its picture."""
        drift = _page(context)["drift"]
        result = self.result(drift["p_value"])
        result.widget = [plotly_figure(title="Tonight against what no drift looks like", figure=null_figure(drift))]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Drift p-value"


class DriftEffectCalculation(SingleValueCalculation[DriftEffect]):
    """Shows the shares of the labels beside the effect."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The effect."""
        page = _page(context)
        result = self.result(page["drift"]["effect"])
        figure = label_figure(page["drift"]["label_shares"], page["vocab"])
        result.widget = [plotly_figure(title="Labels, share of the images", figure=figure)] if figure else []
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Drift effect (0.5 chance, 1 always told apart)"


class FailedShareCalculation(SingleValueCalculation[FailedShare]):
    """Shows failed images by reason."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The share."""
        commit = _page(context)["commit"]
        result = self.result(commit["failed"] / max(1, commit["rows"]))
        by_reason = ", ".join(f"{number} {reason}" for reason, number in commit["reasons"].items()) or "none"
        text = f"**{commit['failed']}**: {by_reason}"
        if commit["flags"]:
            lost = "; ".join(f"{number:,} {FLAGS[flag]} ({flag})" for flag, number in sorted(commit["flags"].items()))
            text += f"\n\nScored, with something lost in decoding: {lost}."
        result.widget = [text_widget(title="Images that could not be scored", text=text)]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Failed share"


class LabelShareCalculation(ByLabelCalculation[LabelShare]):
    """The share of each label, for the dashboard."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The shares; the page shows them beside the effect."""
        page = _page(context)
        shares = {word: now for word, (_, now) in zip(page["vocab"], page["drift"]["label_shares"], strict=True)}
        result = self.result(shares)
        result.widget = []
        return result

    def label_metric(self, label: Any) -> str:
        """The name of one label's share."""
        return f"Share of {label}"

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Label shares"


class ReviewImagesCalculation(SingleValueCalculation[ReviewImages]):
    """Shows the images that moved most."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number of images and their thumbnails."""
        shown = _page(context)["review"]
        result = self.result(len(shown))
        title = "The images that moved most: label, confidence, and how far (in standard deviations of the reference)"
        result.widget = [plotly_figure(title=title, figure=thumbnail_figure(shown))] if shown else []
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Images in the review queue"


def make(page: Page, rows: pa.Table, reference_rows: pa.Table | None, store: Store) -> Made:
    """Make a night's report. ``rows`` and ``reference_rows`` are scored rows; thumbnails are read from the store."""
    has_confidence = len(rows) > 0 and rows["confidence"].null_count == 0
    has_energy = len(rows) > 0 and rows["energy"].null_count == 0
    metrics: list[Any] = [NightVerdict(tests=[])]
    if page.drift:
        metrics += [DriftPValue(tests=[gt(page.drift.alpha)]), DriftEffect(tests=[])]
    if len(rows):
        metrics.append(ReviewImages(tests=[]))
    metrics.append(FailedShare(tests=[lte(page.commit.max_failed)]))
    for column, there in (("confidence", has_confidence), ("energy", has_energy)):
        if there:
            metrics.append(ValueStats(column=column))
    if has_confidence:
        metrics.append(ValueStats(column="label"))
    if page.drift and page.drift.label_shares:
        metrics.append(LabelShare(tests={}))
    metrics.append(RowCount())
    report = Report(metrics, metadata={"run_id": page.run_id, "model_id": page.model_id}, tags=[page.verdict.verdict])
    extra = pd.DataFrame({"json": [json.dumps(_payload(page, rows, store))]})
    snapshot = report.run(
        _dataset(rows),
        _dataset(reference_rows) if reference_rows is not None and len(reference_rows) else None,
        additional_data={PAGE: Dataset.from_pandas(extra)},
        timestamp=_when(page),
        name=f"{page.source} {page.name}",
    )
    return Made(_html(snapshot), snapshot.json().encode(), snapshot, page.source)


def _payload(page: Page, rows: pa.Table, store: Store) -> dict[str, Any]:
    shown = page.queue.slice(0, SHOWN)
    pictures = thumbnails(store, shown["uri"].to_pylist())
    review = [row | {"picture": picture} for row, picture in zip(shown.to_pylist(), pictures, strict=True)]
    return {
        "source": page.source,
        "name": page.name,
        "model_id": page.model_id,
        "run_id": page.run_id,
        "verdict": page.verdict.record(),
        "drift": page.drift.record() if page.drift else None,
        "commit": {"rows": page.commit.rows, "failed": page.commit.failed, "reasons": page.commit.reasons}
        | {"flags": page.commit.flags},
        "vocab": page.vocab,
        "review": review,
        "held_out": page.held_out,
    }


def _dataset(rows: pa.Table) -> Dataset:
    names = [name for name in ("confidence", "energy", "label") if len(rows) and rows[name].null_count == 0]
    frame = rows.select(names).to_pandas() if names else pd.DataFrame({"images": range(len(rows))})
    numbers = [name for name in names if name != "label"] or ([] if names else ["images"])
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=["label"] if "label" in names else [])
    return Dataset.from_pandas(frame, data_definition=definition)


def _when(page: Page) -> datetime:
    """A night is drawn at its own date, a named plan at the moment it is measured."""
    if page.kind == "night":
        return datetime.fromisoformat(page.name)
    return datetime.now(UTC).replace(tzinfo=None)


def _html(snapshot: Snapshot) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        # A Path object would write nothing and say nothing.
        snapshot.save_html(str(path))
        return path.read_bytes()


def _headline(page: dict[str, Any]) -> Any:
    verdict = page["verdict"]
    mark = {"ok": "✔", "warn": "▲", "drift": "■", "unknown": "?"}[verdict["verdict"]]
    text = f"# {mark} {verdict['verdict'].upper()}\n\n{verdict['sentence']}\n\n**Lever to pull:** {verdict['lever']}"
    return text_widget(title=f"{page['source']}, {page['name']}", text=text)


def _reasons(page: dict[str, Any]) -> Any:
    lines = "\n".join(f"- {reason}" for reason in page["verdict"]["reasons"])
    return text_widget(title="Why", text=lines or "-")


def _counters(page: dict[str, Any]) -> Any:
    commit, drift = page["commit"], page["drift"]
    counters = [CounterData("images", f"{commit['rows']:,}"), CounterData("failed", f"{commit['failed']:,}")]
    if drift:
        counters += [CounterData("p-value", f"{drift['p_value']:.2g}"), CounterData("effect", f"{drift['effect']:.2f}")]
        against = "held-out images" if page["held_out"] else "images, not held out"
        counters.append(CounterData(f"reference {against}", f"{drift['n_reference']:,}"))
    return counter(title=f"run {page['run_id']}", counters=counters)


def publish(made: Made, workspace: str, store: Store, before: str | None) -> str:
    """Add a report to the workspace, in its source's project, making project and panels at first use.

    ``before`` is the snapshot of an earlier measurement of the same night, which the new one replaces: a night is one
    point of a series. Returns the new snapshot's id.
    """
    with _store_options(store):
        space = Workspace.create(workspace)
        name = f"{PROJECT}: {made.source}"
        found = space.search_project(name)
        project = found[0] if found else _new_project(space, name)
        added = space.add_run(project.id, made.snapshot, include_data=False)
        if before:
            space.delete_run(project.id, before)
    return str(added.id)


def _new_project(space: Any, name: str) -> Any:
    project = space.create_project(name, description="One point a night. Made by drivetrain.")
    for tab in json.loads(shipped("dashboards/evidently.json").read_text())["tabs"]:
        for panel in tab["panels"]:
            project.dashboard.add_panel(_panel(panel), tab=tab["title"])
    return project


def _panel(panel: dict[str, Any]) -> Any:
    values = [
        PanelMetric(metric=value["metric"], metric_labels=value.get("labels", {}), legend=value["legend"])
        for value in panel["values"]
    ]
    about = {"title": panel["title"], "description": panel["subtitle"], "size": panel["size"], "values": values}
    if panel["plot"] == "bar":
        return bar_plot_panel(**about, stacked=panel.get("stacked", False))
    return line_plot_panel(**about)


@contextmanager
def _store_options(store: Store) -> Iterator[None]:
    """Let Evidently, which takes a bare uri, open it with our storage options."""
    before = dict(fsspec.config.conf)
    fsspec.config.conf.update({protocol: dict(options) for protocol, options in store.options.items()})
    try:
        yield
    finally:
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)


def serve(workspace: str, port: int, store: Store) -> int:
    """Serve the workspace on this machine only, until it is stopped; returns the server's exit code."""
    # A process of its own reads its storage options from fsspec's environment variables.
    options = {f"FSSPEC_{protocol.upper()}": json.dumps(given) for protocol, given in store.options.items()}
    command = [sys.executable, "-m", "evidently.cli", "ui", "--workspace", workspace, "--port", str(port)]
    return subprocess.call([*command, "--host", "127.0.0.1"], env=os.environ | options | {"DO_NOT_TRACK": "1"})
