"""Tables of the page that are folded, whatever they show."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from drpruning.report.results import ResultCell
from drpruning.runs.records import RunRecord

Labelled = Sequence[tuple[str, RunRecord]]
"""Runs with their names on the page."""
Row = tuple[str, list[ResultCell]]
"""A row of a table: its head and its cells."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a table under a title; one without a title is the only one of its table.

    Attributes:
        title: What they have in common.
        rows: One for each thing.
        sums: What sums these up; sorting leaves them at the end.
    """

    title: str
    rows: list[Row]
    sums: list[Row] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FoldedTable:
    """A table that is folded.

    Attributes:
        ident: Its ``id``, and the name of its files.
        title: What it shows.
        about: More of that, in small print.
        head: Of the columns.
        groups: The rows.
        caption: How to read it.
    """

    ident: str
    title: str
    about: str
    head: list[str]
    groups: list[Group]
    caption: str
