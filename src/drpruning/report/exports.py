"""The figures and tables of a page as files: SVG and PNG, CSV and LaTeX."""

import csv
import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write
from drpruning.report.drawing import FONT, INK, LIGHT, MUTED, PAPER
from drpruning.report.figure_parts import SAMPLE, Figure
from drpruning.report.png import as_png
from drpruning.report.scales import NATS

LIST = "report-files.txt"
"""Names what was written, so that a later report replaces only that."""
_SVG = "{http://www.w3.org/2000/svg}"
GAP = 14.0
"""Pixels between panels."""


def check_folder(folder: Path) -> None:
    """See that figures and tables can be put into a folder.

    Raises:
        BadInput: It is not a folder, or has files that are not those of an earlier report.
    """
    where = f"--figures {folder}"
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{where}: this is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LIST).is_file():
        raise BadInput(f"{where}: the folder has other files in it; name a new or empty one")


def write_files(folder: Path, figures: Sequence[Figure], page: str, *, png: bool = False) -> int:
    """Write every figure as SVG and every table as CSV and LaTeX; return how many files.

    Args:
        folder: Made where it is missing; files of an earlier report are replaced.
        figures: Those of the page.
        page: The page, whose tables are read.
        png: Whether to write the figures as PNG too.

    Raises:
        BadInput: The folder cannot be used or written.
    """
    check_folder(folder)
    files: dict[str, str | bytes] = {f"{f.ident}.svg": standalone(f) for f in figures}
    files |= {f"{f.ident}.png": as_png(f) for f in figures if png}
    for name, rows in read_tables(page).items():
        files |= {f"{name}.csv": as_csv(rows), f"{name}.tex": as_latex(rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = folder / LIST
        before = earlier.read_text(encoding="utf-8").splitlines() if earlier.is_file() else []
        atomic_write(earlier, "".join(f"{name}\n" for name in sorted({*files, *before})))
        for name in before:
            if name not in files and Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            atomic_write(folder / name, content)
        atomic_write(earlier, "".join(f"{name}\n" for name in files))
    except OSError as error:
        raise BadInput(f"--figures {folder}: {error.strerror}; name another folder") from None
    return len(files)


def standalone(figure: Figure) -> str:
    """A figure as one SVG with its title, key and panels, in the colours of light pages.

    Colours and sizes stand in attributes and styles that every program reads; nothing depends on
    the style sheet of the page.
    """
    columns = 1 if figure.is_large else min(3, len(figure.panels))
    panels = [ET.fromstring(_light(panel)) for panel in figure.panels]  # noqa: S314 - our own
    width = columns * figure.size.width + (columns - 1) * GAP
    root = ET.Element(f"{_SVG}svg")
    ET.SubElement(root, f"{_SVG}title").text = figure.title
    ET.SubElement(root, f"{_SVG}desc").text = figure.caption
    background = ET.SubElement(root, f"{_SVG}rect", {"fill": PAPER})
    top = _text(root, 0, FONT + 3, figure.title, INK, bold=True)
    top = _key(root, figure, width, top + 8) + 8
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        panel.set("x", f"{column * (figure.size.width + GAP):g}")
        panel.set("y", f"{top + row * (figure.size.height + GAP):g}")
        panel.set("width", f"{figure.size.width:g}")
        panel.set("height", f"{figure.size.height:g}")
        for parent in list(panel.iter()):
            for child in list(parent):
                if child.get("class") == NATS:
                    parent.remove(child)
        root.append(panel)
    rows = math.ceil(len(panels) / columns)
    height = top + rows * figure.size.height + (rows - 1) * GAP
    for element in (root, background):
        element.set("width", f"{width:g}")
        element.set("height", f"{height:g}")
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("font-family", "DejaVu Sans, Verdana, sans-serif")
    ET.register_namespace("", _SVG[1:-1])
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _light(svg: str) -> str:
    return re.sub(r"var\((--[\w-]+)\)", lambda match: LIGHT[match[1]], svg)


def _text(
    root: ET.Element, x: float, y: float, text: str, fill: str, *, bold: bool = False
) -> float:
    style = {"x": f"{x:g}", "y": f"{y:g}", "fill": fill, "font-size": f"{FONT:g}"}
    weight = {"font-weight": "bold"} if bold else {}
    ET.SubElement(root, f"{_SVG}text", style | weight).text = text
    return y


def _key(root: ET.Element, figure: Figure, width: float, top: float) -> float:
    """Write unit and key from left to right, in lines of this width; return where they end."""
    y = top
    for line in figure.key_lines(width):
        y += FONT + 6 if y > top else FONT
        for x, label, entry in line:
            _text(root, x, y, label, MUTED)
            if entry is None:
                continue
            svg = _light(entry.svg).replace("<svg", f'<svg xmlns="{_SVG[1:-1]}"', 1)
            sample = ET.fromstring(svg)  # noqa: S314 - our own
            for name, value in (("x", x - SAMPLE), ("y", y - 10), ("width", 28), ("height", 12)):
                sample.set(name, f"{value:g}")
            root.append(sample)
    return y


class _Tables(HTMLParser):
    """Collects the cells of every table with an id; of two units, the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] | None = None
        self.in_cell = False
        self.skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if self.skipped or (tag == "span" and found.get("class") == NATS):
            self.skipped += 1
        elif tag == "table" and (name := found.get("id")):
            self.rows = self.tables.setdefault(name, [])
        elif self.rows is not None and tag == "tr":
            self.rows.append([])
        elif self.rows and tag in {"td", "th"}:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.skipped -= 1
        elif tag == "table":
            self.rows = None
        elif tag in {"td", "th"}:
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.rows and self.in_cell and not self.skipped:
            self.rows[-1][-1] += data


def read_tables(page: str) -> dict[str, list[list[str]]]:
    """The tables of a page: id -> rows of cells, the heads first."""
    parser = _Tables()
    parser.feed(page)
    parser.close()
    return {
        name: [[" ".join(cell.split()) for cell in row] for row in rows]
        for name, rows in parser.tables.items()
    }


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Rows as comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a ``tabular`` for the package booktabs; a row of one cell heads those below it."""
    columns = max(map(len, rows))

    def line(row: Sequence[str]) -> str:
        cells = ["".join(_LATEX.get(c, c) for c in cell) for cell in row]
        if len(cells) == 1 < columns:
            return f"\\midrule\n\\multicolumn{{{columns}}}{{l}}{{{cells[0]}}} \\\\"
        return " & ".join(cells) + r" \\"

    head, *body = map(line, rows)
    begin = f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}"
    parts = (begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}")
    return "\n".join(parts) + "\n"
