"""A page of the report, taken apart for tests."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

from drpruning.report import write_report

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags balance; collects ids, tags and table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def figures(self) -> dict[str, ET.Element]:
        found = re.findall(r"<figure.*?</figure>", self.text, re.DOTALL)
        trees = [ET.fromstring(figure) for figure in found]  # noqa: S314
        return {figure.get("id", ""): figure for figure in trees}

    def cells(self, table: str) -> list[list[str]]:
        body = self.text.split(f'id="{table}"')[1].split("</table>")[0]
        body = re.sub(r'<span class="unit-nats">.*?</span>', "", body)
        rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
        return [
            [re.sub(r"<.*?>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in rows
        ]


def report(*runs: Any) -> Page:
    output = write_report([run.folder for run in runs])
    return Page(output.read_text(encoding="utf-8"))


def plots_of(figure: ET.Element) -> list[ET.Element]:
    """The panels of a figure."""
    return [element for element in figure.iter() if element.get("class") == "plot"]


def line_of(figure: ET.Element, name: str) -> ET.Element:
    """The one line of this name in a panel of the figure."""
    idents = {f"{plot.get('id')}-{name}" for plot in plots_of(figure)}
    (line,) = (element for element in figure.iter() if element.get("id") in idents)
    return line


def points_of(figure: ET.Element, name: str) -> int:
    """Corners of a line's path."""
    path = next(e for e in line_of(figure, name).iter() if e.tag.endswith("path"))
    return len(re.findall("[ML]", path.get("d", "")))
