"""The static site under a root: an index of all nights, and the pages of comparisons. No server, no outside request.

Knows pages. Does not know how a number came about. Links are relative, so the site works from a bucket and from a
folder alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from drivetrain.compare import Comparison
from drivetrain.exposition import exposition
from drivetrain.layout import Layout, shipped
from drivetrain.nights import Night, nights_table
from drivetrain.store import Store

TREND_NIGHTS = 30
WIDTH, HEIGHT, MARGIN = 248, 56, 7
# A night that is far out is drawn at the top: it must not press the others into a line.
FARTHEST = 3.0


@dataclass(frozen=True)
class Dot:
    """One night of a trend: its place, its report, and what is said when one points at it."""

    x: float
    y: float
    night: Night

    @property
    def title(self) -> str:
        """The night in a line."""
        return f"{self.night.night}: {self.night.verdict}, score {self.night.score or 0:.2f}"


@dataclass(frozen=True)
class SourceTable:
    """A source's nights, newest first, and its trend: marks of an SVG line of the score, newest right."""

    name: str
    nights: tuple[Night, ...]
    dots: tuple[Dot, ...]

    @property
    def points(self) -> str:
        """The line through the marks, as SVG has it."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)

    @property
    def alarms(self) -> int:
        """How many nights of the trend are drift."""
        return sum(dot.night.verdict == "drift" for dot in self.dots)


def build(store: Store, layout: Layout) -> str:
    """Write the index of all nights and comparisons, and the newest nights for Prometheus; returns the index' uri."""
    nights = nights_table(store, layout)
    names = dict.fromkeys(night.source for night in nights)
    tables = [_table(name, [night for night in nights if night.source == name]) for name in names]
    comparisons = [name.split("--") for name in store.names(f"{layout.root}/comparisons") if "--" in name]
    page = (
        _environment(layout)
        .get_template("index.html.j2")
        .render(
            tables=tables,
            comparisons=comparisons,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            size=(WIDTH, HEIGHT),
            threshold=_height(1.0),
        )
    )
    uri = f"{layout.site}/index.html"
    store.replace(uri, page.encode())
    # An empty file would be no text at all to Prometheus: a comment is.
    store.replace(layout.metrics, (exposition(nights) or "# No night has been judged yet.\n").encode())
    return uri


def comparison_page(comparison: Comparison, flips: Sequence[dict[str, Any]]) -> bytes:
    """The page of a comparison; ``flips`` are those shown, each with its ``picture`` or None."""
    template = _environment(None).get_template("comparison.html.j2")
    return template.render(comparison=comparison, flips=flips, confusion=comparison.confusion[:30]).encode()


def behaviour_page(record: Mapping[str, Any], broke: Sequence[Mapping[str, Any]], cases: Sequence[Any]) -> bytes:
    """The page of a learner's behaviour tests. ``broke`` and ``cases`` are those shown, each with its pictures."""
    template = _environment(None).get_template("behaviour.html.j2")
    return template.render(record=record, broke=broke, cases=cases).encode()


def _table(name: str, nights: list[Night]) -> SourceTable:
    measured = [night for night in nights if night.score is not None][-TREND_NIGHTS:]
    step = (WIDTH - 2 * MARGIN) / max(1, len(measured) - 1)
    dots = tuple(Dot(round(MARGIN + i * step, 1), _height(night.score), night) for i, night in enumerate(measured))
    return SourceTable(name, tuple(reversed(nights)), dots)


def _height(score: float | None) -> float:
    """A score of 0 or less lies at the bottom of the trend, 3 or more at its top."""
    share = min(max(score or 0.0, 0.0), FARTHEST) / FARTHEST
    return round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN), 1)


def _environment(layout: Layout | None) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(shipped("dashboards/site")),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["relative"] = lambda uri: quote("../" + uri.removeprefix(f"{layout.root}/")) if layout else uri
    environment.filters["brief"] = lambda said: f"{said:.4g}" if isinstance(said, float) else said
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    return environment
