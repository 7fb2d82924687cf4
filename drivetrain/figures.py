"""The plots of a night's report, as plotly figures.

Knows marks and colours. Does not know Evidently, which shows them, or how a number came about. Colours are Paul Tol's
bright scheme, and what a colour says a shape says too: it can be read with any colour vision, and in grey.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from drivetrain.findings import Accuracy, ClassShift, Decision, Histogram, Map, Realised, Statistic, TrendPoint

# Evidently gives every plot a box of this height: a smaller figure leaves a hole, a larger one is cut.
BOX = 500
# And one of half the width this one.
HALF_BOX = 450
# Where a phone's screen has no room for captions side by side: the plot keeps this width, and its card scrolls.
WIDE = 1100
MODEBAR = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "toimage"]
BLUE, RED, GREEN, YELLOW, GREY = "#4477aa", "#ee6677", "#228833", "#ccbb44", "#bbbbbb"
PURPLE = "#aa3377"
DARK, PALE, PLACE = "#222222", "#eeeeee", "#dddddd"
# Of each verdict: its colour and its shape.
MARKS = {
    "ok": (GREEN, "circle"),
    "warn": (YELLOW, "triangle-up"),
    "drift": (RED, "diamond"),
    "unknown": (GREY, "x"),
}
# A night that is far out is drawn at the edge, with its number: it must not squeeze the others into a line.
FARTHEST = 6.0
MAP_POINTS = 1000
LABELS = 30
NAMES = {
    "combined": "<b>combined (decides)</b>",
    "mmd": "embeddings (MMD)",
    "bbsd": "softmax (BBSD)",
    "labels": "label shares",
    "confidence": "confidence",
    "energy": "energy",
}


def plain_layout(figure: go.Figure, *, height: int = BOX, **margin: int) -> go.Figure:
    """White ground, thin lines, no toolbar. Plotly's own template would add 7 KB to each figure."""
    figure.update_layout(
        template="none", height=height, margin=margin, plot_bgcolor="white", modebar={"remove": MODEBAR}
    )
    figure.update_xaxes(gridcolor=PALE, zerolinecolor=PLACE)
    figure.update_yaxes(gridcolor=PALE, zerolinecolor=PLACE)
    return figure


def plain_text(text: str, most: int = 40) -> str:
    """A text that others made, short and without plotly's markup."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return re.sub(r"[<>&\x00-\x1f\x7f]", "", cut)


def density_figure(decision: Decision) -> go.Figure | None:
    """The null of the statistic that decides, as a histogram, with tonight's mark and the threshold."""
    combined = decision.statistic("combined")
    if combined is None or not combined.null:
        return None
    shares, edges = np.histogram(_drawn(combined), bins=40)
    middles = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure(
        go.Bar(
            x=_rounded(middles),
            y=_rounded(shares / shares.sum()),
            width=float(edges[1] - edges[0]),
            marker_color=GREY,
            name="splits of the reference",
            hovertemplate="score %{x:.2f}: %{y:.1%} of the splits<extra></extra>",
        )
    )
    _add_tonight(figure, combined, decision.alpha, float((shares / shares.sum()).max()))
    _add_threshold(figure)
    figure.update_xaxes(title="score: 0 is usual, 1 is the threshold", range=_range([combined.score], -1.5))
    figure.update_yaxes(title="share of the splits", tickformat=".0%", rangemode="tozero")
    figure.update_layout(showlegend=False, bargap=0)
    return plain_layout(figure, height=HALF_BOX, l=60, r=20, t=40, b=50)


def _add_tonight(figure: go.Figure, combined: Statistic, alpha: float, height: float) -> None:
    """Tonight's score as a line with its mark on top."""
    colour, symbol = (RED, "diamond") if combined.p_value <= alpha else (BLUE, "circle")
    at = min(combined.score, FARTHEST)
    figure.add_trace(
        go.Scatter(
            x=[at, at],
            y=[0, height * 1.1],
            mode="lines+markers+text",
            line={"color": colour, "width": 3},
            marker={"size": [0, 14], "symbol": symbol, "color": colour},
            text=["", f"<b>tonight {combined.score:.2f}</b>{_beyond(combined.score)}"],
            textposition="middle left" if at > 1.5 else "top center",
            hoverinfo="skip",
        )
    )


def null_figure(decision: Decision) -> go.Figure:
    """For each statistic, the range of its null as a bar and tonight's value as a mark, in units of alarm.

    1 is the threshold at alpha; 0 is the mean of the null. The picture of a night without drift has marks left of 1.
    """
    figure = go.Figure()
    for statistic in reversed(decision.statistics):
        name = NAMES.get(statistic.name, statistic.name)
        if statistic.null:
            low, high = _scores(statistic)[[0, -1]]
            figure.add_trace(
                go.Bar(
                    y=[name],
                    x=[high - low],
                    base=[low],
                    orientation="h",
                    marker_color=GREY,
                    width=0.5,
                    showlegend=False,
                    hovertemplate=f"no drift: {low:.2f} to {high:.2f}<extra></extra>",
                )
            )
        alarm = statistic.p_value <= decision.alpha
        figure.add_trace(
            go.Scatter(
                y=[name],
                x=[min(statistic.score, FARTHEST)],
                mode="markers",
                showlegend=False,
                marker={"size": 14, "color": RED if alarm else BLUE, "symbol": "diamond" if alarm else "circle"},
                hovertemplate=f"tonight {statistic.score:.2f}<extra></extra>",
            )
        )
        said = f"{statistic.score:.2f}, p = {statistic.p_value:.2g}"
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=name, text=said, showarrow=False)
    _add_threshold(figure)
    right = [each.score for each in decision.statistics]
    figure.update_xaxes(title="score: 0 is usual, 1 is the threshold; grey is no drift", range=_range(right, -1.5))
    figure.update_layout(barmode="overlay")
    return plain_layout(figure, height=HALF_BOX, l=150, r=130, t=40, b=50)


def trend_figure(trend: Sequence[TrendPoint], tonight: str, decision: Decision | None) -> go.Figure:
    """The score of the last nights with the band of what no drift looks like; below it accuracy."""
    judged = any(point.accuracy is not None or point.realised is not None for point in trend)
    rows = 2 if judged else 1
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.65, 0.35] if judged else [1]
    )
    combined = decision.statistic("combined") if decision else None
    if combined and combined.null:
        _add_band(figure, [point.night for point in trend], *np.quantile(_scores(combined), [0.05, 0.95]))
    _add_scores(figure, trend)
    figure.add_hline(y=1, line_dash="dash", line_color=DARK, row=1, col=1)
    figure.add_annotation(
        x=0, xref="x domain", y=1, yref="y", text="threshold", showarrow=False, xanchor="left", yanchor="bottom"
    )
    if judged:
        _add_accuracies(figure, trend)
        figure.update_yaxes(title="accuracy", tickformat=".0%", row=2, col=1)
    figure.update_yaxes(title="score", row=1, col=1)
    nights = [point.night for point in trend]
    step = -(-len(nights) // 15)
    shown = nights[::-1][::step][::-1]
    words = [f"<b>{night}</b>" if night == tonight else night for night in shown]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=nights, tickangle=-45)
    figure.update_xaxes(tickvals=shown, ticktext=words)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.12}, width=WIDE)
    return plain_layout(figure, l=70, r=20, t=45, b=90)


def _add_band(figure: go.Figure, nights: Sequence[str], low: float, high: float) -> None:
    """Where 9 of 10 nights without drift lie."""
    x, y = [*nights, *reversed(nights)], [low] * len(nights) + [high] * len(nights)
    band = go.Scatter(
        x=x,
        y=_rounded(y),
        fill="toself",
        fillcolor=PLACE,
        line={"width": 0},
        mode="lines",
        name="9 of 10 nights without drift",
        hoverinfo="skip",
    )
    figure.add_trace(band, row=1, col=1)


def _add_scores(figure: go.Figure, trend: Sequence[TrendPoint]) -> None:
    """A line through the scores, and a mark for each verdict. Nights without a score lie on the ground."""
    nights = [point.night for point in trend]
    heights = [None if point.score is None else min(point.score, FARTHEST) for point in trend]
    line = {"color": BLUE, "width": 1.5}
    figure.add_trace(
        go.Scatter(x=nights, y=heights, mode="lines", line=line, showlegend=False, hoverinfo="skip"), row=1, col=1
    )
    for verdict, (colour, symbol) in MARKS.items():
        points = [(point, height) for point, height in zip(trend, heights, strict=True) if point.verdict == verdict]
        if not points:
            continue
        figure.add_trace(
            go.Scatter(
                x=[point.night for point, _ in points],
                y=[0 if height is None else round(height, 3) for _, height in points],
                mode="markers",
                name=verdict,
                marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": DARK, "width": 0.5}},
                hovertext=[_about(point) for point, _ in points],
                hoverinfo="text",
            ),
            row=1,
            col=1,
        )


def _add_accuracies(figure: go.Figure, trend: Sequence[TrendPoint]) -> None:
    """A line through the estimates; where people labelled images of a night, what these say."""
    styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("accuracy", "accuracy, estimated", {"mode": "lines+markers", "line": {"color": BLUE, "width": 1.5}}),
        (
            "realised",
            "accuracy, by labels",
            {"mode": "markers", "marker": {"color": DARK, "symbol": "star", "size": 11}},
        ),
    )
    for name, words, style in styles:
        values: list[float | None] = [getattr(point, name) for point in trend]
        if all(value is None for value in values):
            continue
        trace = go.Scatter(
            x=[point.night for point in trend],
            y=[None if value is None else round(value, 4) for value in values],
            name=words,
            hovertemplate=f"%{{x}}, {words}: %{{y:.1%}}<extra></extra>",
            **style,
        )
        figure.add_trace(trace, row=2, col=1)


def _about(point: TrendPoint) -> str:
    score = "nothing measured" if point.score is None else f"score {point.score:.2f}"
    return f"{point.night}: {point.verdict}, {score}, {point.images:,} images"


REALISED = {
    "all": "tonight, labelled",
    "random": "tonight, labelled<br>at random",
    "moved": "those that were chosen,<br>labelled",
}


def accuracy_figure(accuracy: Accuracy, realised: Sequence[Realised] = ()) -> go.Figure:
    """The range of tonight's estimated accuracy, beside the reference's measured one and what people's labels say."""
    figure = go.Figure()
    low, middle, high = (value or 0.0 for value in (accuracy.low, accuracy.estimate, accuracy.high))
    figure.add_trace(
        go.Scatter(
            x=[accuracy.reference],
            y=["reference, measured"],
            mode="markers+text",
            marker={"size": 14, "color": GREY, "symbol": "square", "line": {"color": DARK, "width": 1}},
            text=[f"  {accuracy.reference:.1%}"],
            textposition="middle right",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[middle],
            y=["tonight, estimated"],
            mode="markers+text",
            marker={"size": 14, "color": BLUE},
            error_x={"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]},
            text=[f"{middle:.1%} ({low:.1%} to {high:.1%})"],
            textposition="top center",
        )
    )
    figure.add_vline(x=accuracy.reference, line_dash="dash", line_color=DARK)
    for each in realised:
        _add_realised(figure, each)
    least = min([low, accuracy.reference, *(each.low for each in realised)])
    figure.update_xaxes(title="accuracy", tickformat=".0%", range=[max(-0.03, least - 0.15), 1.03])
    figure.update_yaxes(range=[-0.8, 1.8 + len(realised)])
    figure.update_traces(cliponaxis=False)
    figure.update_layout(showlegend=False)
    return plain_layout(figure, l=140, r=20, t=20, b=50)


def _add_realised(figure: go.Figure, found: Realised) -> None:
    """Accuracy by labels, full where it speaks for the night, hollow where it is of the images that moved."""
    figure.add_trace(
        go.Scatter(
            x=[found.accuracy],
            y=[REALISED[found.chosen]],
            mode="markers+text",
            marker={"size": 14, "color": PURPLE, "symbol": "diamond" if found.of_night else "diamond-open"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [found.high - found.accuracy],
                "arrayminus": [found.accuracy - found.low],
            },
            text=[f"{found.accuracy:.1%} ({found.right:,} of {found.labelled:,})"],
            textposition="top center",
        )
    )


def label_figure(classes: Sequence[ClassShift]) -> go.Figure | None:
    """The shares of the 30 labels that changed most, reference beside tonight; None without labels."""
    if not classes:
        return None
    changed = sorted(classes, key=lambda row: -abs(row.current_share - row.reference_share))[:LABELS]
    shown = [row for row in classes if row in changed]
    # Places and not words: two labels that are cut alike would fall together.
    places = list(range(len(shown)))
    figure = go.Figure()
    for name, side, colour in (("reference", "reference_share", GREY), ("tonight", "current_share", BLUE)):
        shares = [round(getattr(row, side), 5) for row in shown]
        figure.add_trace(go.Bar(name=name, x=places, y=shares, marker_color=colour))
    figure.update_yaxes(tickformat=".0%", title="share of the images")
    figure.update_xaxes(tickvals=places, ticktext=[plain_text(row.label, 24) for row in shown])
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.12})
    return plain_layout(figure, l=70, r=10, t=40, b=90)


def histogram_figure(histogram: Histogram) -> go.Figure:
    """Shares by bin, the reference as a grey area and tonight as a blue line."""
    edges = [float(edge) for edge in histogram.edges]
    figure = go.Figure()
    for name, shares, colour, fill in (
        ("reference", histogram.reference, GREY, "tozeroy"),
        ("tonight", histogram.current, BLUE, "none"),
    ):
        # Two points an edge: a step that holds in every browser and closes at both ends.
        x = np.repeat(edges, 2)
        y = np.concatenate([[0.0], np.repeat(shares, 2), [0.0]])
        line = {"color": colour, "width": 2}
        figure.add_trace(
            go.Scatter(x=_rounded(x), y=_rounded(y), mode="lines", name=name, line=line, fill=fill, hoverinfo="skip")
        )
    figure.update_xaxes(title=histogram.name)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", title="share of the images")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.12})
    return plain_layout(figure, height=HALF_BOX, l=60, r=20, t=40, b=50)


def map_figure(found: Map) -> go.Figure:
    """The reference's first two principal components; what lies outside their bounds is drawn on the border."""
    figure = go.Figure()
    for name, points, colour, symbol in (
        ("reference", found.reference, GREY, "circle"),
        ("tonight", found.current, BLUE, "cross"),
    ):
        inside = np.clip(_thinned(points), found.low, found.high)
        figure.add_trace(
            go.Scatter(
                x=_rounded(inside[:, 0]),
                y=_rounded(inside[:, 1]),
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 5, "opacity": 0.6},
                hoverinfo="skip",
            )
        )
    shares = [f"component {i + 1}: {share:.0%} of the reference's variance" for i, share in enumerate(found.explained)]
    pad = [(high - low) * 0.03 for low, high in zip(found.low, found.high, strict=True)]
    figure.update_xaxes(title=shares[0], range=[found.low[0] - pad[0], found.high[0] + pad[0]])
    figure.update_yaxes(title=shares[1], range=[found.low[1] - pad[1], found.high[1] + pad[1]])
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.12})
    return plain_layout(figure, l=70, r=20, t=40, b=50)


def outside(found: Map) -> int:
    """How many of tonight's points lie outside the map's bounds."""
    points = np.asarray(found.current, float).reshape(-1, 2)
    return int(((points < found.low) | (points > found.high)).any(axis=1).sum())


def _thinned(points: Sequence[tuple[float, float]]) -> Any:
    """At most a thousand of the points, evenly taken."""
    step = max(1, -(-len(points) // MAP_POINTS))
    return np.asarray(points[::step], float).reshape(-1, 2)


def _scores(statistic: Statistic) -> Any:
    """A null's quantiles in units of alarm."""
    unit = max(statistic.threshold - statistic.null_mean, 1e-12)
    return (np.asarray(statistic.null) - statistic.null_mean) / unit


def _drawn(statistic: Statistic) -> Any:
    """Scores as the null has them: evenly along its quantiles, so that ties keep their weight."""
    quantiles = _scores(statistic)
    return np.interp(np.linspace(0, 1, 4000), np.linspace(0, 1, len(quantiles)), quantiles)


def _range(scores: Sequence[float], left: float) -> list[float]:
    return [left, max(2.0, min(FARTHEST, max(scores, default=0.0))) * 1.2]


def _beyond(score: float) -> str:
    return " (off the scale)" if score > FARTHEST else ""


def _add_threshold(figure: go.Figure) -> None:
    figure.add_vline(x=1, line_dash="dash", line_color=DARK, annotation_text="threshold", annotation_position="top")


def _rounded(values: Any) -> list[float]:
    """Four digits are more than a screen shows, and a quarter of the page's bytes."""
    return [float(f"{value:.4g}") for value in np.asarray(values, float)]
