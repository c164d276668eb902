"""Inline SVG from matplotlib: colours as CSS variables, labels at the lines, accessible text.

Figures are drawn with the light palette and the colours are then replaced by custom properties
(``var(--series-0)``), so that the page's style sheet decides how they look in light, in dark and on
paper. A colour stands for a domain everywhere; what is not a domain is drawn in ink.
"""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree as ET

# Chosen by search: at least 12 apart (Oklab x 100) pair by pair in normal, deutan, protan and
# tritan vision, and at least 2.6:1 against the page.
SERIES_LIGHT = ("#22499a", "#a8612b", "#38af9d", "#8d2948", "#c0932b", "#0078a9")
SERIES_DARK = ("#697ee1", "#f49003", "#77f0d4", "#b16c8a", "#f7d50c", "#65b8e5")
INK, MUTED, GRID = "#1b1f24", "#6b7280", "#d9dce1"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))

WIDTH = 7.4
"""Width of every figure in inches, so that text has one size over the page."""

_VARIABLES = {
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES_LIGHT)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drpruning",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 2.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_ID_USES = re.compile(r"url\(#([^)]+)\)")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML has no way to write, which a name may have all the same."""
_COLOUR_USES = re.compile("|".join(_VARIABLES), re.IGNORECASE)


@contextmanager
def style() -> Iterator[None]:
    """Use the settings of all figures of the report, and keep matplotlib's remarks from people.

    These are on fonts, glyphs and layout: nothing that the reader of a report can act on.
    """
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.CRITICAL)  # before the import, which looks for fonts
    try:
        from matplotlib import rc_context

        with rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def panels(count: int, *, columns: int, height: float) -> tuple[Any, list[Any]]:
    """Make a figure with ``count`` axes in rows of ``columns``, each row ``height`` inches."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for axis in axes[:count]:
        axis.margins(x=0.02)
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=max(3, 9 // columns + 1))
    for axis in axes[max(0, count - columns) : count]:
        axis.set_xlabel("step")
    return figure, axes[:count]


def series_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the domain that is at ``index`` in the order of the page."""
    colours = len(SERIES_LIGHT)
    return {
        "color": SERIES_LIGHT[index % colours],
        "linestyle": DASHES[index // colours % len(DASHES)],
    }


def ink_style(index: int) -> dict[str, Any]:
    """The same for what is not a domain: runs and granularities."""
    return {
        "color": (INK, MUTED)[index % 2],
        "linestyle": DASHES[index % len(DASHES)],
    }


def points(values: Sequence[float]) -> dict[str, Any]:
    """Markers for a line of few points, so that a single one is seen too."""
    return {"marker": "o"} if len(values) <= 25 else {}


def shorten(name: str, limit: int = 22) -> str:
    """Cut a long name for a figure."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` from each other, within [low, high].

    The order of the positions is kept. Where they cannot all fit, the gap shrinks.
    """
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed: list[float] = []
    for rank, index in enumerate(order):
        floor = placed[-1] + gap if placed else low
        ceiling = high - gap * (len(order) - 1 - rank)
        placed.append(min(max(wanted[index], floor), ceiling))
    for rank in range(len(placed) - 2, -1, -1):  # take back what was pushed up more than needed
        target = min(wanted[order[rank]], placed[rank + 1] - gap)
        placed[rank] = max(target, low + gap * rank)
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def label_lines(axis: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its right end, moved apart where they would overlap.

    Args:
        axis: Axes with all their lines; their limits are fixed here.
        labels: x and y of each line's end, its name and its colour.
    """
    axis.set_xlim(axis.get_xlim())
    axis.set_ylim(axis.get_ylim())
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = [to_axes.transform((x, y)) for x, y, _, _ in labels]
    height = axis.figure.get_size_inches()[1] * 72 * 0.8
    places = spread([float(end[1]) for end in ends], 9.5 / height, 0.0, 1.0)
    for (_, _, name, colour), end, place in zip(labels, ends, places, strict=True):
        axis.plot(
            [end[0], 1.012, 1.03],
            [end[1], place, place],
            transform=axis.transAxes,
            color=colour,
            linewidth=0.5,
            clip_on=False,
            marker="",
        )
        axis.text(
            1.036,
            place,
            shorten(name),
            transform=axis.transAxes,
            color=INK,
            verticalalignment="center",
            fontsize=7.5,
            parse_math=False,
        )


def percent(axis: Any) -> None:
    """Write the y axis, linear or logarithmic, in percent."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(which="minor", left=False)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g}%"))


def legend(figure: Any, *entries: tuple[str, dict[str, Any]], columns: int = 4) -> None:
    """Put one legend for all panels above them; an entry is a label and a line style."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for _, style in entries]
    box = figure.legend(
        handles,
        [label for label, _ in entries],
        loc="outside upper left",
        ncols=min(columns, len(entries)),
        borderpad=0,
        handlelength=2.6,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def to_svg(figure: Any, *, ident: str, title: str, description: str) -> str:
    """Render a figure as an ``<svg>`` element to be put into a page.

    Args:
        figure: The matplotlib figure.
        ident: Unique on the page; every id inside gets it as a prefix.
        title: Accessible name.
        description: What a reader who does not see the figure should know.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    for patch in (figure.patch, *(axis.patch for axis in figure.axes)):
        patch.set_alpha(0)
    # Figure.savefig would draw everything once more before, without output.
    canvas = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode("utf-8"))
    root = ET.fromstring(text)  # noqa: S314 - written by matplotlib three lines above
    for child in list(root):
        if child.tag.endswith("}metadata"):
            root.remove(child)
    for element in root.iter():
        _adapt(element, ident)
        element.tail = None  # only matplotlib's indentation
    _describe(root, ident, title, description)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _adapt(element: Any, ident: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{ident}-{element.get('id')}")
    if (link := element.attrib.pop(_XLINK_HREF, None)) is not None:
        element.set("href", f"#{ident}-{link.removeprefix('#')}")
    for name in ("style", "clip-path", "fill", "stroke"):
        if (value := element.get(name)) is not None:
            value = _ID_USES.sub(rf"url(#{ident}-\1)", value)
            value = _COLOUR_USES.sub(lambda match: _VARIABLES[match.group().lower()], value)
            if name in {"fill", "stroke"} and value.startswith("var("):  # only CSS knows var()
                del element.attrib[name]
                element.set("style", f"{name}: {value}; {element.get('style', '')}")
            else:
                element.set(name, value)


def _describe(root: Any, ident: str, title: str, description: str) -> None:
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("id", ident)
    root.set("role", "img")
    root.set("aria-labelledby", f"{ident}-title {ident}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{ident}-{tag}"})
        element.text = text
        root.insert(position, element)
