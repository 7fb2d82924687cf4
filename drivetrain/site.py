"""The static site under a root: an index of all nights, and the pages of comparisons. No server, no outside request.

Knows pages. Does not know how a number came about. Links are relative, so the site works from a bucket and from a
folder alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from drivetrain.compare import Comparison
from drivetrain.layout import Layout, shipped
from drivetrain.nights import Night, nights_table
from drivetrain.store import Store

TREND_NIGHTS = 30
WIDTH, HEIGHT = 240, 48


@dataclass(frozen=True)
class SourceTable:
    """A source's nights, newest first, and its trend: points of an SVG line of the effect, newest right."""

    name: str
    nights: tuple[Night, ...]
    points: str
    dots: tuple[tuple[float, float, str], ...]


def build(store: Store, layout: Layout) -> str:
    """Write the index of all nights and comparisons; returns its uri."""
    nights = nights_table(store, layout)
    names = dict.fromkeys(night.source for night in nights)
    tables = [_table(name, [night for night in nights if night.source == name]) for name in names]
    comparisons = [name.split("--") for name in store.names(f"{layout.root}/comparisons") if "--" in name]
    page = (
        _environment(layout)
        .get_template("index.html.j2")
        .render(tables=tables, comparisons=comparisons, made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    )
    uri = f"{layout.site}/index.html"
    store.replace(uri, page.encode())
    return uri


def comparison_page(comparison: Comparison, flips: Sequence[dict[str, Any]]) -> bytes:
    """The page of a comparison; ``flips`` are those shown, each with its ``picture`` or None."""
    template = _environment(None).get_template("comparison.html.j2")
    return template.render(comparison=comparison, flips=flips, confusion=comparison.confusion[:30]).encode()


def _table(name: str, nights: list[Night]) -> SourceTable:
    measured = [night for night in nights if night.effect is not None][-TREND_NIGHTS:]
    step = WIDTH / max(1, len(measured) - 1) if len(measured) > 1 else 0
    dots = tuple(
        (round(4 + i * step * (WIDTH - 8) / WIDTH, 1), round(_height(night.effect), 1), night.verdict)
        for i, night in enumerate(measured)
    )
    points = " ".join(f"{x},{y}" for x, y, _ in dots)
    return SourceTable(name, tuple(reversed(nights)), points, dots)


def _height(effect: float | None) -> float:
    """An effect of 0.5 lies at the bottom of the trend, 1 at its top."""
    return HEIGHT - 5 - ((effect or 0.5) - 0.5) * 2 * (HEIGHT - 10)


def _environment(layout: Layout | None) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(shipped("dashboards/site")),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["relative"] = lambda uri: quote("../" + uri.removeprefix(f"{layout.root}/")) if layout else uri
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    return environment
