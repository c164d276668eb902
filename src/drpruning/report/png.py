"""A figure of the report as PNG: its panels as on the page, with title and key, on white."""

import io
import math
from collections.abc import Sequence
from typing import Any

from drpruning.report.drawing import FONT, INK, MUTED, PAPER, style
from drpruning.report.figure_parts import SAMPLE, Figure, Key
from drpruning.report.scales import NATS

DPI = 200
"""Pixels per inch, with which a panel of the large size is 1,194 pixels wide."""
_GAP = 14.0
"""Points between panels."""


def as_png(figure: Figure) -> bytes:
    """Draw a figure of a page once more, as one picture in the colours of light pages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with style():
        columns = 1 if figure.is_large else min(3, len(figure.axes))
        rows = math.ceil(len(figure.axes) / columns)
        width = columns * figure.size.width + (columns - 1) * _GAP
        lines = figure.key_lines(width)
        top = FONT + 14 + len(lines) * (FONT + 6)
        height = top + rows * figure.size.height + (rows - 1) * _GAP
        canvas = Canvas(figsize=(width / 72, height / 72), dpi=DPI, facecolor=PAPER)
        _write(canvas, 0, height - FONT - 3, figure.title, color=INK, weight="bold")
        for number, line in enumerate(lines, start=1):
            _draw_key(canvas, line, height - FONT - 8 - number * (FONT + 6))
        for index, axis in enumerate(figure.axes):
            row, column = divmod(index, columns)
            x = column * (figure.size.width + _GAP)
            y = height - top - (row + 1) * figure.size.height - row * _GAP
            canvas.figimage(_pixels(axis), round(x * DPI / 72), round(y * DPI / 72))
        out = io.BytesIO()
        FigureCanvasAgg(canvas).print_png(out)
    return out.getvalue()


def _pixels(axis: Any) -> Any:
    """A panel, drawn in the unit that the page shows first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    panel = axis.figure
    panel.set_dpi(DPI)
    for axes in panel.axes:
        for scale in (axes.xaxis, axes.yaxis):
            if scale.get_gid() == NATS:
                scale.set_visible(False)
    canvas = FigureCanvasAgg(panel)
    canvas.draw()
    return canvas.buffer_rgba()


def _draw_key(canvas: Any, line: Sequence[tuple[float, str, Key | None]], y: float) -> None:
    """Write one line of unit and key."""
    from matplotlib.lines import Line2D

    width, height = canvas.get_size_inches() * 72
    for x, label, entry in line:
        _write(canvas, x, y, label, color=MUTED)
        if entry is None:
            continue
        look = {"color": INK, **entry.style}
        places = [(x - SAMPLE + part) / width for part in (1, 14, 27)]
        sample = Line2D(
            places, [(y + 4) / height] * 3, marker=look.pop("marker", ""), markevery=[1], **look
        )
        canvas.add_artist(sample)


def _write(canvas: Any, x: float, y: float, text: str, **look: Any) -> None:
    width, height = canvas.get_size_inches() * 72
    canvas.text(x / width, y / height, text, parse_math=False, **look)
