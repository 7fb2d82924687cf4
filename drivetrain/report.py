"""The only room that makes Evidently's reports: a night's page, and the workspace that shows the nights as series.

Knows snapshots and projects. Does not decide anything: the verdict and every number come from below. `metrics` carries
them into Evidently, which renders them (`widgets`), keeps them in its snapshots, and draws them in its dashboard.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from evidently import DataDefinition, Dataset, Report
from evidently.core.report import Snapshot
from evidently.metrics import EmbeddingsDrift
from evidently.presets import ValueStats
from evidently.sdk.models import PanelMetric
from evidently.sdk.panels import bar_plot_panel, line_plot_panel
from evidently.tests import gt, lte
from evidently.ui.workspace import Workspace

from drivetrain.layout import shipped
from drivetrain.metrics import (
    EMBEDDED_ROWS,
    DriftAlpha,
    DriftEffect,
    DriftPValue,
    DriftScore,
    DriftThreshold,
    EffectFloor,
    EstimatedAccuracy,
    EvidentlyEmbeddings,
    FailedAllowed,
    FailedShare,
    LabelShare,
    MeanConfidence,
    NightVerdict,
    RealisedAccuracy,
    ReferenceAccuracy,
    ReviewImages,
    ScoredImages,
    handed_over,
)
from drivetrain.schema import matrix
from drivetrain.selection import Page as Page
from drivetrain.selection import choose
from drivetrain.store import Store

PROJECT = "drivetrain"
# With fewer rows Evidently's own measure of embeddings fails.
LEAST_EMBEDDED_ROWS = 31

# Who hears the page instead of seeing it is told what each plot is: the title that it stands under.
SPOKEN = """
new MutationObserver(() => {
  let title = "";
  for (const each of document.querySelectorAll("h5, .js-plotly-plot")) {
    if (each.tagName === "H5") { title = each.textContent; continue; }
    each.setAttribute("role", "img");
    each.setAttribute("aria-label", title);
  }
}).observe(document.body, { childList: true, subtree: true });
"""
# Evidently's cards grow with their widest table and hide what the screen has no room for, on a phone most of each.
NARROW = (
    "@media (max-width: 1600px) {"
    ".MuiGrid-root, .MuiGrid-root > div {min-width: 0; max-width: 100%}"
    ".MuiGrid-direction-xs-column {flex-wrap: nowrap}"
    ".MuiGrid-root.MuiGrid-grid-xs-grow {min-width: 7.5rem}"
    ".MuiCardContent-root {overflow-x: auto}"
    ".MuiCardContent-root :is(p, li, h5) {overflow-wrap: anywhere}"
    "}"
)


@dataclass(frozen=True)
class Made:
    """A report: the page, its JSON, and Evidently's snapshot for the workspace."""

    html: bytes
    json: bytes
    snapshot: Snapshot
    source: str


def make(
    page: Page,
    rows: pa.Table,
    reference_rows: pa.Table | None,
    store: Store,
    evidently_embeddings: bool = False,
) -> Made:
    """Make a night's report. ``rows`` and ``reference_rows`` are scored rows; thumbnails are read from the store.

    ``evidently_embeddings`` adds Evidently's own measure of the embeddings, on a sample.
    """
    evidently = _evidently_embeddings(rows, reference_rows) if evidently_embeddings else None
    report = Report(
        _metrics(page, rows, evidently is not None),
        metadata={"run_id": page.run_id, "model_id": page.model_id},
        tags=[page.verdict.verdict],
    )
    snapshot = report.run(
        _dataset(rows),
        _dataset(reference_rows) if reference_rows is not None and len(reference_rows) else None,
        additional_data=handed_over(choose(page, store), evidently),
        timestamp=_when(page),
        name=f"{page.source} {page.name}",
    )
    return Made(_html(snapshot), snapshot.json().encode(), snapshot, page.source)


def _metrics(page: Page, rows: pa.Table, evidently: bool) -> list[Any]:
    """What the page has, top to bottom."""
    metrics: list[Any] = [NightVerdict(tests=[])]
    found = page.findings
    if found:
        metrics += [DriftPValue(tests=[gt(found.decision.alpha)]), DriftAlpha(tests=[])]
        if found.decision.statistic("combined"):
            metrics += [DriftScore(tests=[]), DriftThreshold(tests=[])]
        if found.accuracy and found.accuracy.estimate is not None:
            metrics += [EstimatedAccuracy(tests=[]), ReferenceAccuracy(tests=[])]
    if page.realised:
        metrics.append(RealisedAccuracy(tests=[]))
    if found:
        if found.classes:
            metrics.append(LabelShare(tests={}))
        metrics += [DriftEffect(tests=[]), EffectFloor(tests=[])]
    if len(page.queue):
        metrics.append(ReviewImages(tests=[]))
    metrics += [FailedShare(tests=[lte(page.commit.max_failed)]), FailedAllowed(tests=[]), ScoredImages(tests=[])]
    if _whole(rows, "confidence"):
        metrics.append(MeanConfidence(tests=[]))
    drawn = {each.name for each in found.histograms} if found else set()
    metrics += [
        ValueStats(column=name) for name in ("confidence", "energy") if name not in drawn and _whole(rows, name)
    ]
    return metrics + ([EvidentlyEmbeddings(tests=[])] if evidently else [])


def _whole(rows: pa.Table, column: str) -> bool:
    return len(rows) > 0 and rows[column].null_count == 0


def _evidently_embeddings(rows: pa.Table, reference_rows: pa.Table | None) -> tuple[float, list[Any]] | None:
    """Evidently's score and widgets, from a report of its own; None where there are no embeddings on both sides."""
    if reference_rows is None:
        return None
    current, reference = (_embedded(table) for table in (rows, reference_rows))
    if current is None or reference is None:
        return None
    definition = DataDefinition(embeddings={"embedding": list(current.columns)})
    sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in (current, reference)]
    (result,) = Report([EmbeddingsDrift(embeddings_name="embedding")]).run(*sides).metric_results.values()
    return float(cast("Any", result).value), list(result.widget)


def _embedded(rows: pa.Table) -> pd.DataFrame | None:
    """The embeddings of a sample, one column a number, which is the only form that Evidently takes."""
    if "embedding" not in rows.column_names:
        return None
    there = rows.filter(pc.is_valid(rows["embedding"]))
    if len(there) < LEAST_EMBEDDED_ROWS:
        return None
    chosen = np.sort(np.random.default_rng(0).permutation(len(there))[:EMBEDDED_ROWS])
    numbers = matrix(there["embedding"].take(pa.array(chosen)))
    return pd.DataFrame(numbers, columns=[f"e{place}" for place in range(numbers.shape[1])])


def _dataset(rows: pa.Table) -> Dataset:
    names = [name for name in ("confidence", "energy") if _whole(rows, name)]
    frame = rows.select(names).to_pandas() if names else pd.DataFrame({"images": range(len(rows))})
    return Dataset.from_pandas(frame, data_definition=DataDefinition(numerical_columns=list(frame.columns)))


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
        return _lean(path.read_text()).encode()


def _lean(page: str) -> str:
    """Evidently's page, with each row's pictures once and not twice, with no label that could end its script, and with
    a style for phones.
    """

    def data(match: re.Match[str]) -> str:
        found = json.loads(match[2])
        if not match[1].startswith("additional_graphs_"):
            # Evidently's script looks for these in the other variable.
            _drop(found, "additionalGraphs")
        return f"    var {match[1]} = {json.dumps(found).replace('<', _LESS)};"

    page = page.replace("</head>", f"<style>{NARROW}</style></head>", 1)
    page = page.replace("</body>", f"<script>{SPOKEN}</script></body>", 1)
    return re.sub(r"^    var (\w*metric_\w+) = (\{.*\});$", data, page, flags=re.MULTILINE)


_LESS = "\\u003c"


def _drop(value: Any, key: str) -> None:
    """Empty the lists of that name at any depth of a JSON value."""
    if isinstance(value, dict):
        if key in value:
            value[key] = []
        for each in value.values():
            _drop(each, key)
    elif isinstance(value, list):
        for each in value:
            _drop(each, key)


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
    environment = os.environ | options | {"DO_NOT_TRACK": "1"}
    # What a server says of itself is a log.
    return subprocess.call([*command, "--host", "127.0.0.1"], env=environment, stdout=sys.stderr.fileno())
