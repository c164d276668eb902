"""The domains of a run as a table for a terminal: losses with their trend, and the data ratio."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from drpruning.report.formats import UNKNOWN, decimals, factor, loss_text, signed
from drpruning.runs.counterfactuals import geometric_mean, mean
from drpruning.runs.follow import RunState
from drpruning.runs.records import section

COLOURS = ("blue", "yellow", "cyan", "magenta", "green", "bright_red")
"""Of the domains, in turn. They are the terminal's own, so they suit its background."""
LONGEST_NAME = 14
WIDEST_GRAPH = 30
SPARKS = "▁▂▃▄▅▆▇█"
FULL, MARK = "█", "│"
PARTS = " ▏▎▍▌▋▊▉"
"""A character that is filled to so many eighths."""
NAN = math.nan


@dataclass(frozen=True)
class Row:
    """One domain, or the average of all; NaN is not known.

    Attributes:
        change: Of the loss, since the evaluation before.
        history: Its losses in this phase, the latest last.
        times_reference: Perplexity as a multiple of the one at the reference loss.
        times_source: Perplexity as a multiple of the source's.
        share: Of the data ratio that is in force.
        realised: Share of the batches between the two latest evaluations.
        divergence: From the teacher, since the evaluation before.
    """

    name: str
    style: str
    loss: float
    change: float
    history: Sequence[float]
    times_reference: float
    times_source: float
    share: float
    reference_share: float
    realised: float
    divergence: float
    is_average: bool = False

    @property
    def badness(self) -> float:
        """How far the loss is above what it is compared with; the loss where that is nothing."""
        if not math.isfinite(self.loss):
            return math.inf
        known = (self.times_reference, self.times_source, self.loss)
        return next(value for value in known if not math.isnan(value))


def domain_rows(state: RunState) -> list[Row]:
    """The domains in the order of the recipe, at the latest evaluation of the run."""
    phases = [phase for phase in state.record.phases.values() if phase.evals]
    if not phases:
        return []
    evals = phases[-1].evals
    last = evals[-1]
    before = evals[-2].loss if len(evals) > 1 else None
    names = dict.fromkeys(map(str, section(state.record.recipe, "data", "domains")))
    names.update(dict.fromkeys(last.loss))
    recent = evals[-WIDEST_GRAPH:]
    return [
        Row(
            name=name,
            style=COLOURS[index % len(COLOURS)],
            loss=last.loss[name],
            change=last.loss[name] - _of(before, name),
            history=[_of(point.loss, name) for point in recent],
            times_reference=_times(last.loss[name], _of(last.reference_loss, name)),
            times_source=_times(last.loss[name], _of(state.source_loss, name)),
            share=_of(last.ratio, name),
            reference_share=_of(last.reference_ratio, name),
            realised=_of(last.realised_share, name),
            divergence=_of(last.divergence, name),
        )
        for index, name in enumerate(names)
        if name in last.loss
    ]


def _of(values: Mapping[str, float] | None, name: str) -> float:
    return (values or {}).get(name, NAN)


def _times(loss: float, other: float) -> float:
    """The factor between two perplexities, exp(loss - other)."""
    try:
        return math.exp(loss - other)
    except OverflowError:
        return math.inf


def _average(rows: Sequence[Row]) -> Row:
    """Means over the domains; of perplexities, and so of their factors, the geometric one."""
    histories = [row.history for row in rows]
    return Row(
        name="average",
        style="",
        loss=mean([row.loss for row in rows]),
        change=mean([row.change for row in rows]),
        history=[mean(losses) for losses in zip(*histories, strict=True)],
        times_reference=geometric_mean(row.times_reference for row in rows),
        times_source=geometric_mean(row.times_source for row in rows),
        share=NAN,
        reference_share=NAN,
        realised=NAN,
        divergence=mean([row.divergence for row in rows]),
        is_average=True,
    )


# Columns: those that fit are taken by their rank, and what is left widens the two graphs.


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    rank: int
    value: Callable[[Row], float]
    """NaN where there is nothing to show."""
    draw: Callable[[Row, int], Text]
    widest: int = 0
    """Columns to which a graph is widened where there is room; 0 for one that is not."""


def _number(
    title: str, width: int, rank: int, value: Callable[[Row], float], form: Callable[[float], str]
) -> _Column:
    def draw(row: Row, width: int) -> Text:
        found = value(row)
        text = "" if row.is_average and math.isnan(found) else form(found)
        return Text(text[:width].rjust(width))

    return _Column(title, width, rank, value, draw)


def _share(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{decimals(100 * value, 1)}%"


def _columns(rows: Sequence[Row]) -> list[_Column]:
    """The columns that have something to show, in their order, the domain's own aside."""
    shares = [share for row in rows for share in (row.share, row.reference_share)]
    scale = max((share for share in shares if share > 0), default=1.0)

    def trend(row: Row, width: int) -> Text:
        return Text(sparkline(row.history[-width:]).rjust(width), row.style)

    def ratio(row: Row, width: int) -> Text:
        if math.isnan(row.share):
            return Text(" " * width)
        return bar(row.share / scale, width, row.style, row.reference_share / scale)

    long = max(7, *(len(row.history) for row in rows))
    columns = [
        _number("loss", 6, 0, lambda row: row.loss, loss_text),
        _number("change", 7, 5, lambda row: row.change, signed),
        _Column(
            "trend", 7, 7, lambda row: row.history[-2] if row.history[1:] else NAN, trend, long
        ),
        _number("×ref", 6, 1, lambda row: row.times_reference, factor),
        _number("×source", 7, 2, lambda row: row.times_source, factor),
        _number("KL", 6, 9, lambda row: row.divergence, loss_text),
        _Column("ratio", 8, 4, lambda row: row.share, ratio, WIDEST_GRAPH),
        _number("share", 6, 3, lambda row: row.share, _share),
        _number("ref", 6, 6, lambda row: row.reference_share, _share),
        _number("realised", 8, 8, lambda row: row.realised, _share),
    ]
    return [c for c in columns if not all(math.isnan(c.value(row)) for row in rows)]


def _fitting(columns: Sequence[_Column], room: int) -> list[_Column]:
    """The columns for which there is room, each behind a blank, with the graphs widened."""
    taken: set[str] = set()
    left = room
    for column in sorted(columns, key=lambda column: column.rank):
        if column.width + 1 <= left:
            taken.add(column.title)
            left -= column.width + 1
    chosen = [column for column in columns if column.title in taken]
    graphs = sum(column.widest > 0 for column in chosen)
    widened = []
    for column in chosen:
        more = 0
        if column.widest:
            more = min(left // graphs, column.widest - column.width)
            graphs, left = graphs - 1, left - more
        widened.append(replace(column, width=column.width + more))
    return widened


def domain_table(rows: Sequence[Row], width: int, height: int | None) -> list[Text]:
    """Draw the domains, the worst of them where there is no room for all, and their average.

    Args:
        rows: In their order.
        width: Columns to fill at most.
        height: Lines to fill at most, at least 3; None: as many as there are.
    """
    if not rows:
        return []
    room = len(rows) if height is None else height - 2
    more = len(rows) - room
    shown = list(rows)
    if more > 0:
        shown = sorted(rows, key=lambda row: -row.badness)[: max(1, room - 1)]
    average = [_average(rows)] if len(rows) > 1 else []
    longest = max(cell_len(row.name) for row in [*rows, *average])
    name_width = min(LONGEST_NAME, max(longest, len("domain")))
    columns = _fitting(_columns([*rows, *average]), width - name_width)
    titles = ["domain".ljust(name_width)]
    for column in columns:
        title = column.title
        titles.append(title.ljust(column.width) if title == "ratio" else title.rjust(column.width))
    lines = [Text(" ".join(titles), "bold")]
    for row in [*shown, *average]:
        if row in average and more > 0:
            lines.append(Text(f"and {len(rows) - len(shown)} more", "italic"))
        line = Text(_fitted(row.name, name_width), row.style)
        lines.append(Text(" ").join([line, *(c.draw(row, c.width) for c in columns)]))
    return lines


def _fitted(name: str, width: int) -> str:
    if cell_len(name) > width:
        name = set_cell_size(name, width - 1) + "…"
    return set_cell_size(name, width)


def bar(share: float, width: int, style: str, mark: float = NAN, empty: str = " ") -> Text:
    """A bar that is filled to a share of its width.

    Args:
        share: From 0 to 1; what is outside is cut off.
        width: Columns.
        style: Of the filled part.
        mark: Share at which a line stands across the bar; NaN: none.
        empty: The character of the part that is not filled.
    """
    eighths = 0 if math.isnan(share) else round(8 * width * max(0.0, min(1.0, share)))
    filled, part = divmod(eighths, 8)
    characters = FULL * filled + (PARTS[part] if part else "")
    characters = characters.ljust(width, empty)
    if math.isnan(mark):
        return Text(characters, style)
    place = min(width - 1, int(width * max(0.0, mark)))
    before, after = characters[:place], characters[place + 1 :]
    return Text.assemble((before, style), (MARK, "bold"), (after, style))


def sparkline(values: Sequence[float]) -> str:
    """A character for each value, the higher the larger; a blank for one that is not finite."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(SPARKS) - 1

    def spark(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return SPARKS[round(top * (value - low) / (high - low)) if high > low else top // 2]

    return "".join(map(spark, values))
