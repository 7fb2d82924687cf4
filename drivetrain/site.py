"""The static site under a root: an index of all nights, and the pages of comparisons. No server, no outside request.

Knows pages. Does not know how a number came about. Links are relative, so the site works from a bucket and from a
folder alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from drivetrain.comparison import Comparison, Truth
from drivetrain.exposition import exposition
from drivetrain.layout import Layout, shipped
from drivetrain.nights import Night, nights_table
from drivetrain.recommend import NAMES, difference_of, margin_of, shown
from drivetrain.store import Store

TREND_NIGHTS = 30
SHOWN_CONFUSIONS = 12
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


@dataclass(frozen=True)
class Broken:
    """What behaviour tests broke: ``images`` and own ``cases`` that are shown, each with pictures, of ``number``."""

    images: tuple[Mapping[str, Any], ...] = ()
    cases: tuple[Mapping[str, Any], ...] = ()
    number: int = 0


def comparison_page(
    layout: Layout,
    comparison: Comparison,
    flips: Sequence[dict[str, Any]],
    pictures: Mapping[str, str | None],
    broken: Broken | None = None,
) -> bytes:
    """The page of a comparison; ``flips`` are those shown, ``pictures`` the data uris of images, None if unreadable."""
    broken = broken or Broken()
    truth = comparison.truth
    environment = _environment(layout, up="../..")
    environment.filters["measured"] = partial(shown, truth)
    known = truth.old is not None and truth.new is not None
    return (
        environment.get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            advice=comparison.recommendation,
            truth=truth,
            measure=NAMES[truth.measure],
            old_shown=shown(truth, truth.old or 0) if known else "",
            new_shown=shown(truth, truth.new or 0) if known else "",
            difference=difference_of(truth) if known else "",
            margin=margin_of(truth),
            range=_range(truth),
            by_labels=not comparison.slices_by_disagreement,
            flips=flips,
            broke=broken.images,
            wrong=broken.cases,
            broke_in_all=broken.number,
            pictures=pictures,
            confusion=comparison.confusion[:SHOWN_CONFUSIONS],
        )
        .encode()
    )


def _range(truth: Truth) -> tuple[float, float, float]:
    """Where the interval's ends and the difference lie on a line of 320 whose middle is no difference."""
    low, middle, high = (each or 0.0 for each in (truth.low, truth.difference, truth.high))
    farthest = max(abs(low), abs(high), truth.margin, 1e-9)
    left, centre, right = (round(160 + 150 * each / farthest, 1) for each in (low, middle, high))
    return left, centre, right


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


def _environment(layout: Layout | None, up: str = "..") -> Environment:
    environment = Environment(
        loader=FileSystemLoader(shipped("dashboards/site")),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    root = f"{layout.root}/" if layout else ""
    environment.filters["relative"] = lambda uri: quote(f"{up}/" + uri.removeprefix(root))
    environment.filters["brief"] = lambda said: f"{said:.4g}" if isinstance(said, float) else said
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    return environment
