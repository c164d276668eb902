"""Inline SVG from matplotlib: colours as CSS variables, labels at the lines, accessible text.

Figures are drawn with the light palette and the colours are then replaced by custom properties
(``var(--series-0)``), so that the page's style sheet decides how they look in light, in dark and on
paper. A colour stands for a domain everywhere; what is not a domain is drawn in ink.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

# Chosen by search: at least 12 apart (Oklab x 100) pair by pair in normal, deutan and protan
# vision, 9.5 in tritan vision (which is far rarer), and at least 3.1:1 against the page.
SERIES_LIGHT = ("#286997", "#ce7d03", "#3aa191", "#741006", "#a776e9", "#b43c3f", "#521686")
SERIES_DARK = ("#a4bdff", "#d55d1e", "#24fad7", "#d9a85f", "#a973e5", "#dde95d", "#50968d")
INK, MUTED, GRID = "#1b1f24", "#626a76", "#d9dce1"
PAPER = "#ffffff"
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.4)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2, 3, 2)),
)
"""From the eighth domain on, colours come back with another pattern."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
FONT = 12.0


@dataclass(frozen=True)
class Size:
    """The size of a panel in the pixels that it has at its natural scale."""

    width: float
    height: float


# On a screen of 400 pixels the page has 368 of them for a panel, so that text of 12 pixels is
# still 10 high in the wide size; on a wide screen two, or three of the small size, lie in a row.
LARGE, SMALL = Size(430, 265), Size(320, 190)
LEFT, RIGHT, TOP, BOTTOM = 54.0, 20.0, 24.0, 26.0
"""Margins of a panel in pixels: the same in all, so that axes line up."""

_VARIABLES = {
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES_LIGHT)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--page)",
}
LIGHT = {text[4:-1]: colour for colour, text in _VARIABLES.items()}
"""Custom property -> the colour that it has on a light page."""
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drpruning",
    "font.family": "DejaVu Sans",
    "figure.dpi": 72,
    "font.size": FONT,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.4,
    "path.simplify": False,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
UNIT = "unit-"
"""Begins the class of what belongs to one of two units of a scale."""
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


def panel(size: Size, *, title: str = "", right: float = RIGHT, left: float = LEFT) -> Any:
    """Make axes in a figure of their own.

    Args:
        size: Of the figure.
        title: Written above the axes, cut where it is too long.
        right: Pixels to the right of the axes, for the names of lines.
        left: Pixels to their left.
    """
    from matplotlib.figure import Figure

    # At 72 points per inch a point of matplotlib is a unit of the SVG, and a pixel.
    figure = Figure(figsize=(size.width / 72, size.height / 72))
    edges = (left / size.width, BOTTOM / size.height)
    axis = figure.add_axes(
        (*edges, 1 - edges[0] - right / size.width, 1 - edges[1] - TOP / size.height)
    )
    if title:
        axis.set_title(shorten(title, 32), loc="left", parse_math=False, x=-0.02, fontweight="bold")
    return axis


def label_space(names: Sequence[str]) -> float:
    """Pixels that the names of lines need to the right of the axes."""
    return 22 + 7.4 * max((len(shorten(name, LABEL)) for name in names), default=0)


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
    return {"marker": "o"} if len(values) <= 12 else {}


LABEL = 14
"""Characters of a line's name in a figure, at most."""


def shorten(name: str, limit: int = LABEL) -> str:
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
    box = axis.get_window_extent()
    places = spread([float(end[1]) for end in ends], (FONT + 1.5) / box.height, 0.0, 1.0)
    for (_, _, name, colour), end, place in zip(labels, ends, places, strict=True):
        axis.plot(
            [end[0], 1 + 6 / box.width, 1 + 13 / box.width],
            [end[1], place, place],
            transform=axis.transAxes,
            color=colour,
            linewidth=0.8,
            clip_on=False,
            marker="",
        )
        axis.text(
            1 + 16 / box.width,
            place,
            shorten(name),
            transform=axis.transAxes,
            color=INK,
            verticalalignment="center",
            parse_math=False,
        )


def percent(axis: Any) -> None:
    """Write the y axis, linear or logarithmic, in percent."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(which="minor", left=False)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 3):g}%"))


def to_svg(
    axis: Any, *, ident: str, title: str, description: str, data: Mapping[str, Any] | None = None
) -> str:
    """Render axes as an ``<svg>`` element to be put into a page.

    Args:
        axis: The axes; see `panel`. Lines with a gid and a label get the label as ``data-name``.
        ident: Unique on the page; every id inside gets it as a prefix.
        title: Accessible name.
        description: What a reader who does not see the figure should know.
        data: Further ``data-`` attributes, as JSON.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure = axis.figure
    names = {line.get_gid(): line.get_label() for line in axis.lines if line.get_gid()}
    buffer = io.BytesIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
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
        name = names.get(element.get("id", ""), "_")
        if not name.startswith("_"):
            element.set("data-name", _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", name))
        _adapt(element, ident)
        element.tail = None  # only matplotlib's indentation
    _describe(root, ident, title, description)
    for key, value in (data or {}).items():
        root.set(f"data-{key}", json.dumps(value))
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _adapt(element: Any, ident: str) -> None:
    if element.get("id", "").startswith(UNIT):  # of one of two scales, which the page switches
        element.set("class", element.attrib.pop("id"))
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
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-labelledby", f"{ident}-title {ident}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{ident}-{tag}"})
        element.text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
        root.insert(position, element)


def swatch(style: Mapping[str, Any]) -> str:
    """A sample of a line, a marker or a band as a small ``<svg>`` for the key of a figure.

    Args:
        style: As for ``plot``.
    """
    colour = _VARIABLES.get(style.get("color", INK), "var(--ink)")
    width = float(style.get("linewidth", 1.8))
    parts = []
    line = style.get("linestyle", "-")
    if line != "":
        dashes = "" if line == "-" else f' stroke-dasharray="{" ".join(map(str, line[1]))}"'
        opacity = f' stroke-opacity="{style["alpha"]}"' if "alpha" in style else ""
        parts.append(
            f'<line x1="1" y1="6" x2="27" y2="6" style="stroke: {colour}" stroke-width="{width}"'
            f"{dashes}{opacity}/>"
        )
    if marker := style.get("marker"):
        fill = "none" if style.get("markerfacecolor") == "none" else colour
        paint = f'style="stroke: {colour}; fill: {fill}" stroke-width="1.2"'
        parts.append(f'<path d="{_MARKER_PATHS.get(marker, _MARKER_PATHS["o"])}" {paint}/>')
    return f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true">{"".join(parts)}</svg>'


_MARKER_PATHS = {
    "o": "M10.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "x": "M11 3l6 6M17 3l-6 6",
    "s": "M11 3h6v6h-6z",
    "^": "M14 2l4 7h-8z",
    "v": "M14 10l4 -7h-8z",
    "D": "M14 2l4 4l-4 4l-4 -4z",
    "_": "M10 6h8",
    "P": "M12.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "X": "M10 3l2 -1l2 2.5l2 -2.5l2 1l-2.5 3l2.5 3l-2 1l-2 -2.5l-2 2.5l-2 -1l2.5 -3z",
    "<": "M10 6l7 -4v8z",
    ">": "M18 6l-7 -4v8z",
    "*": "M14 1l1.5 3.5h3.5l-3 2.3l1.2 4l-3.2 -2.4l-3.2 2.4l1.2 -4l-3 -2.3h3.5z",
}
"""Outlines of the markers in a sample of 28 by 12."""
