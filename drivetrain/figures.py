"""The plots of a night's report, as plotly figures.

Knows marks and colours. Does not know Evidently, which shows them, or how a number came about.
"""

import re
from typing import Any

import plotly.graph_objects as go

# Evidently gives every plot a box of this height: a smaller figure leaves a hole, a larger one is cut.
BOX = 500
MODEBAR = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "toimage"]
COLUMNS = 10
# Paul Tol's bright scheme: told apart with any colour vision.
BLUE, RED, GREY = "#4477aa", "#ee6677", "#bbbbbb"


def null_figure(drift: dict[str, Any]) -> go.Figure:
    """For each statistic, the range of its null as a bar and tonight's value as a mark, in units of alarm.

    1 is the threshold at alpha; 0 is the mean of the null. The picture of a night without drift has marks left of 1.
    """
    names, figure = [], go.Figure()
    for statistic in reversed(drift["statistics"]):
        name = {
            "combined": "<b>combined (decides)</b>",
            "mmd": "embeddings (MMD)",
            "bbsd": "softmax (BBSD)",
            "labels": "label shares",
            "confidence": "confidence",
            "energy": "energy",
        }[statistic["name"]]
        unit = max(statistic["threshold"] - statistic["null_mean"], 1e-12)
        low, high = ((statistic["null"][i] - statistic["null_mean"]) / unit for i in (0, -1))
        value = (statistic["value"] - statistic["null_mean"]) / unit
        alarm = statistic["p_value"] <= drift["alpha"]
        names.append(name)
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
        figure.add_trace(
            go.Scatter(
                y=[name],
                x=[value],
                mode="markers+text",
                text=[f"  p = {statistic['p_value']:.2g}"],
                textposition="middle right",
                showlegend=False,
                marker={"size": 14, "color": RED if alarm else BLUE, "symbol": "diamond" if alarm else "circle"},
            )
        )
    figure.add_vline(
        x=1, line_dash="dash", line_color="#222222", annotation_text="threshold", annotation_position="top"
    )
    marks = [
        (each["value"] - each["null_mean"]) / max(each["threshold"] - each["null_mean"], 1e-12)
        for each in drift["statistics"]
    ]
    right = max(2.0, *marks) * 1.25
    title = "distance from the reference: 0 is usual, 1 is the threshold; grey is what no drift looks like"
    figure.update_xaxes(title=title, range=[-1.5, right])
    figure.update_layout(
        height=BOX,
        margin={"l": 160, "r": 90, "t": 30, "b": 45},
        plot_bgcolor="white",
        modebar={"remove": MODEBAR},
        barmode="overlay",
    )
    figure.update_xaxes(gridcolor="#eeeeee", zerolinecolor="#dddddd")
    return figure


def label_figure(shares: list[list[float]], vocab: list[str]) -> go.Figure | None:
    """The shares of the 30 labels that changed most, reference beside tonight; None without labels."""
    if not shares:
        return None
    order = sorted(range(len(shares)), key=lambda i: -abs(shares[i][1] - shares[i][0]))[:30]
    words = [vocab[i] for i in sorted(order)]
    figure = go.Figure()
    for name, side, colour in (("reference", 0, GREY), ("tonight", 1, BLUE)):
        figure.add_trace(go.Bar(name=name, x=words, y=[shares[i][side] for i in sorted(order)], marker_color=colour))
    figure.update_yaxes(tickformat=".0%", gridcolor="#eeeeee")
    figure.update_xaxes(type="category")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.12})
    figure.update_layout(
        height=BOX, margin={"l": 50, "r": 10, "t": 40, "b": 40}, plot_bgcolor="white", modebar={"remove": MODEBAR}
    )
    return figure


def thumbnail_figure(shown: list[dict[str, Any]]) -> go.Figure:
    """A grid of the review queue's first images, each with its label, confidence and distance."""
    figure = go.Figure()
    rows = -(-len(shown) // COLUMNS)
    for place, image in enumerate(shown):
        x, y = place % COLUMNS, -(place // COLUMNS) * 1.45
        if image["picture"]:
            figure.add_layout_image(
                source=image["picture"],
                x=x,
                y=y,
                xref="x",
                yref="y",
                sizex=0.92,
                sizey=0.92,
                xanchor="center",
                yanchor="middle",
                layer="above",
            )
        sure = "" if image["confidence"] is None else f" {image['confidence']:.0%}"
        label = _short(image["label"] or "")
        text = f"{label}{sure}<br>{image['moved']:+.1f} sd"
        figure.add_annotation(x=x, y=y - 0.5, text=text, showarrow=False, yanchor="top", font={"size": 11})
    names = [_short(image["uri"].rsplit("/", 1)[-1], 40) for image in shown]
    figure.add_trace(
        go.Scatter(
            x=[i % COLUMNS for i in range(len(shown))],
            y=[-(i // COLUMNS) * 1.45 for i in range(len(shown))],
            mode="markers",
            marker={"size": 60, "opacity": 0},
            hovertext=names,
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.update_xaxes(visible=False, range=[-0.6, COLUMNS - 0.4])
    figure.update_yaxes(visible=False, range=[-max(rows - 1, 2) * 1.45 - 1.0, 0.6])
    figure.update_layout(
        height=BOX, margin={"l": 5, "r": 5, "t": 5, "b": 5}, plot_bgcolor="white", modebar={"remove": MODEBAR}
    )
    return figure


def _short(text: str, most: int = 14) -> str:
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return re.sub(r"[<>&]", "", cut)
