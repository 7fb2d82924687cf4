"""Grids of small pictures as plotly figures, the only form in which Evidently's page shows a picture.

Knows places and captions. Does not know why an image is shown. A picture that is not there is a grey place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from drivetrain.figures import BOX, PLACE, WIDE, plain_layout, plain_text

COLUMNS = 10
ROW_HEIGHT = 1.45
SIDE = 0.92


@dataclass(frozen=True)
class Cell:
    """One place of a grid. ``row`` counts from the top. ``uri`` is told when the mouse points at it."""

    column: int
    row: int
    uri: str
    caption: str


def queue_figure(shown: Sequence[Mapping[str, Any]], pictures: Mapping[str, str], *, moved: bool) -> go.Figure:
    """The review queue's first images, each with its label and confidence, and its distance if it was measured."""
    cells = [
        Cell(place % COLUMNS, place // COLUMNS, image["uri"], _caption(image, moved))
        for place, image in enumerate(shown)
    ]
    return _grid(cells, pictures, columns=COLUMNS).update_layout(width=WIDE)


def pairs_figure(pairs: Sequence[tuple[str, str | None]], pictures: Mapping[str, str]) -> go.Figure:
    """Images of tonight in the upper row, below each the reference image nearest to it."""
    cells = [Cell(place, 0, now, "tonight") for place, (now, _) in enumerate(pairs)]
    cells += [
        Cell(place, 1, before, "nearest of the<br>reference") for place, (_, before) in enumerate(pairs) if before
    ]
    return _grid(cells, pictures, columns=COLUMNS // 2)


def sides_figure(current: Sequence[str], reference: Sequence[str], pictures: Mapping[str, str]) -> go.Figure:
    """Images of tonight in the upper row, images of the reference in the lower one."""
    cells = [Cell(place, 0, uri, "tonight") for place, uri in enumerate(current)]
    cells += [Cell(place, 1, uri, "reference") for place, uri in enumerate(reference)]
    return _grid(cells, pictures, columns=COLUMNS // 2)


def _caption(image: Mapping[str, Any], moved: bool) -> str:
    sure = "" if image["confidence"] is None else f" {image['confidence']:.0%}"
    said = f"{plain_text(image['label'] or '', 14)}{sure}"
    return f"{said}<br>{image['moved']:+.1f} sd" if moved else said


def _grid(cells: Sequence[Cell], pictures: Mapping[str, str], columns: int) -> go.Figure:
    figure = go.Figure()
    for cell in cells:
        _place(figure, cell, pictures.get(cell.uri))
    figure.add_trace(
        go.Scatter(
            x=[cell.column for cell in cells],
            y=[-cell.row * ROW_HEIGHT for cell in cells],
            mode="markers",
            marker={"size": 60, "opacity": 0},
            hovertext=[plain_text(cell.uri.rsplit("/", 1)[-1]) for cell in cells],
            hoverinfo="text",
            showlegend=False,
        )
    )
    rows = max((cell.row for cell in cells), default=0) + 1
    figure.update_xaxes(visible=False, range=[-0.6, columns - 0.4])
    figure.update_yaxes(visible=False, range=[-max(rows - 1, 2 if columns == COLUMNS else 1) * ROW_HEIGHT - 1.0, 0.6])
    return plain_layout(figure, height=BOX, l=5, r=5, t=5, b=5)


def _place(figure: go.Figure, cell: Cell, picture: str | None) -> None:
    """Draw one picture, or a grey square where there is none, and its caption."""
    x, y = cell.column, -cell.row * ROW_HEIGHT
    if picture:
        figure.add_layout_image(
            source=picture,
            x=x,
            y=y,
            xref="x",
            yref="y",
            sizex=SIDE,
            sizey=SIDE,
            xanchor="center",
            yanchor="middle",
            layer="above",
        )
    else:
        half = SIDE / 2
        figure.add_shape(
            type="rect", x0=x - half, x1=x + half, y0=y - half, y1=y + half, fillcolor=PLACE, line={"width": 0}
        )
    figure.add_annotation(x=x, y=y - 0.5, text=cell.caption, showarrow=False, yanchor="top", font={"size": 11})
