"""What `drprune replay` prints and writes."""

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpruning.common.console import make_table
from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_output_file, dumps, parse_json
from drpruning.common.unknown import record_fields
from drpruning.recipe import Scheduling
from drpruning.report import render_replay_page
from drpruning.report.own_pages import is_page
from drpruning.report.replay_page import percent_text, points_text
from drpruning.runs.replay import Replay, ReplayPoint
from drpruning.runs.replay_curves import CAVEAT, CHECKED, ReplayCurves

JSON_VERSION = 1
_JSON_KEYS = ("version", "run", "used", "replayed", "notes", "phases")
PAGE_PACKAGES = ("matplotlib", "jinja2")
"""What a page is made with; they are not part of the base install."""
MOST_ENTRIES, MOST_INNER_ENTRIES = 8, 3
"""Entries that are shown of a mapping: of a setting, and of a mapping inside one."""
BLOCKS, DIGITS = "▁▂▃▄▅▆▇█", "0123456789"
"""The levels of a line of shares, lowest first; digits where the terminal knows only ASCII."""
NARROWEST = 8
"""Characters that a line of shares has at least."""
_SCALE = "right: lowest and highest share"
_ONCE = ("initial", "end", "mean")
_TWICE = (
    "initial",
    "used\nend",
    "replayed\nend",
    "used\nmean",
    "replayed\nmean",
    "most\napart",
    "at\nstep",
)


def print_replay(replay: Replay, console: Console | None = None) -> None:
    """Print what was replayed, and for each phase a table and the shares over the steps."""
    console = console or Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False)

    say(f"replay of {replay.folder}")
    say(f"  used:     {describe(replay.used)}")
    say(f"  replayed: {describe(replay.replayed)}")
    for note in replay.notes:
        say(f"note: {note}", "yellow")
    for curves in replay.curves():
        console.print()
        say(curves.phase, "bold")
        say(curves.verdict())
        console.print(_table(curves))
        for sentence in filter(None, (curves.churn_text(), curves.bases_text())):
            say(sentence)
        if curves.replayed_checks:
            say(CHECKED)
            console.print(_check_table(curves))
        console.print()
        console.print(_figure(curves, console))
    console.print()
    say(CAVEAT)


def sparkline(shares: Sequence[float], low: float, high: float, levels: str) -> str:
    """One character a share, its height between `low` and `high`; a blank where not known."""
    width = high - low

    def mark(share: float) -> str:
        if math.isnan(share):
            return " "
        height = (share - low) / width if width > 0 else 0.0
        return levels[min(int(height * len(levels)), len(levels) - 1)]

    return "".join(map(mark, shares))


def _table(curves: ReplayCurves) -> Table:
    """Shares of every domain; where both are the same, once."""
    table = make_table("share", *(_ONCE if curves.identical else _TWICE))
    table.collapse_padding = True
    table.columns[0].min_width = 4
    for row in curves.rows():
        if curves.identical:
            shares = [row.initial, row.used_end, row.used_mean]
        else:
            ends, means = (row.used_end, row.replayed_end), (row.used_mean, row.replayed_mean)
            shares = [row.initial, *ends, *means]
        apart = (points_text(row.difference), f"{row.step:,}") if row.difference else ("none", "")
        table.add_row(
            Text(row.domain), *map(percent_text, shares), *(() if curves.identical else apart)
        )
    return table


def _check_table(curves: ReplayCurves) -> Table:
    """Errors of the replayed forecasts; those that were not used in brackets."""
    checks = curves.replayed_checks
    table = make_table(
        "nats",
        *(f"at {check.done:.0%}\nstep {check.step:,}" for check in checks),
    )
    for name in curves.initial:
        errors = [_error_text(check.error_of(name)) for check in checks]
        refused = [name in check.refused for check in checks]
        cells = [f"({e})" if no else e for e, no in zip(errors, refused, strict=True)]
        table.add_row(Text(name), *cells)
    table.add_row("mean size", *(_size_text(check.mean_error) for check in checks))
    if not curves.identical and curves.used_checks:
        used = {check.step: check.mean_error for check in curves.used_checks}
        sizes = [_size_text(used.get(check.step, math.nan)) for check in checks]
        table.add_row("mean size in the run", *sizes)
    return table


def _error_text(error: float) -> str:
    return "" if math.isnan(error) else f"{error:+.3f}"


def _size_text(size: float) -> str:
    return "" if math.isnan(size) else f"{size:.3f}"


def _figure(curves: ReplayCurves, console: Console) -> Text:
    """One line per domain where used and replayed agree throughout, else one above the other."""
    levels = BLOCKS if console.encoding.lower().startswith("utf") else DIGITS
    longest = max(map(len, curves.initial))
    columns = _columns(len(curves.steps), max(NARROWEST, console.width - longest - 26))
    lines = [_legend(curves, len(columns), levels)]
    for name in curves.initial:
        used = [curves.used[name][index] for index in columns]
        replayed = [curves.replayed[name][index] for index in columns]
        known = [share for share in (*used, *replayed) if not math.isnan(share)]
        low, high = min(known, default=math.nan), max(known, default=math.nan)
        scale = f"{percent_text(low)} {percent_text(high)}"
        first = f"{'used' if used != replayed else 'both':<8} "
        lines.append(f"{name:<{longest}} {first}{sparkline(used, low, high, levels)} {scale}")
        if used != replayed:
            line = sparkline(replayed, low, high, levels)
            lines.append(f"{'':<{longest}} replayed {line}")
    return Text("\n".join(lines), no_wrap=True, overflow="crop")


def _legend(curves: ReplayCurves, shown: int, levels: str) -> str:
    count, first, last = len(curves.steps), curves.steps[0], curves.steps[-1]
    some = f"{count}" if shown == count else f"{shown} of {count}"
    scale = "0 lowest, 9 highest, as at the right" if levels == DIGITS else _SCALE
    return f"{some} evaluations, steps {first:,} to {last:,}; {scale}"


def _columns(count: int, width: int) -> list[int]:
    """The evaluations to show: all, or as many as fit, evenly spread with both ends."""
    if count <= width:
        return list(range(count))
    return [round(index * (count - 1) / (width - 1)) for index in range(width)]


# Policies and settings for people.


def describe(section: Scheduling) -> str:
    """A policy and its settings in one line: numbers rounded, long mappings cut short."""
    chosen = section.options() | section.model_dump(
        include={"handover", "start"}, exclude_defaults=True, exclude_none=True
    )
    settings = ", ".join(f"{name}={_short(value, MOST_ENTRIES)}" for name, value in chosen.items())
    return f"{section.policy} ({settings})" if settings else f"{section.policy} (its defaults)"


def _short(value: Any, most: int) -> str:
    if isinstance(value, Mapping):
        shown = list(value.items())[:most]
        parts = [f"{name}: {_short(inner, MOST_INNER_ENTRIES)}" for name, inner in shown]
        more = len(value) - len(shown)
        return "{" + ", ".join([*parts, f"and {more} more"] if more else parts) + "}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, bool) else str(value)


# Files.


def check_outputs(outputs: Sequence[Path]) -> None:
    """Refuse files that could not be written, before the work whose result goes there.

    Raises:
        BadInput: A name ends neither in .html nor in .json, there is something else than an earlier
            replay in its place, or a page is wanted and what it is made with is not installed.
    """
    for output in outputs:
        if output.suffix not in {".html", ".json"}:
            raise BadInput(f"--output {output}: write a name that ends in .html or .json")
        lacking = [name for name in PAGE_PACKAGES if importlib.util.find_spec(name) is None]
        if output.suffix == ".html" and lacking:
            raise BadInput(
                f"--output {output}: a page needs {' and '.join(lacking)}: pip install "
                "'drpruning[train]', or write a name that ends in .json"
            )
    for output in outputs:
        check_output_file(output, "--output", _is_replay)


def _is_replay(path: Path) -> bool:
    """Whether a file was written by `write_replay`."""
    if path.suffix == ".html":
        return is_page(path, "replay")
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and tuple(found) == _JSON_KEYS


def write_replay(replay: Replay, outputs: Sequence[Path]) -> None:
    """Write a replay to files: .html is a page with figures, .json has every number.

    All of them are made before the first is written.

    Raises:
        BadInput: As `check_outputs`, or a file cannot be written all the same.
    """
    check_outputs(outputs)
    texts = {output: _file_text(replay, output.suffix) for output in outputs}
    for output, text in texts.items():
        try:
            atomic_write(output, text)
        except OSError as error:
            raise BadInput(f"--output {output}: {error.strerror}; name another file") from None


def _file_text(replay: Replay, suffix: str) -> str:
    if suffix == ".json":
        return dumps(_as_json(replay), indent=1) + "\n"
    return render_replay_page(
        run=str(replay.folder),
        used=describe(replay.used),
        replayed=describe(replay.replayed),
        notes=replay.notes,
        phases=replay.curves(),
    )


def _as_json(replay: Replay) -> dict[str, Any]:
    def point(of: ReplayPoint) -> dict[str, Any]:
        used = {name: getattr(of.logged, name) or None for name in _DECIDED}
        return {
            "step": of.logged.step,
            "loss": of.logged.loss,
            "parameters": of.logged.parameters,
            "used": used,
            "replayed": record_fields(of.decision),
        }

    return {
        "version": JSON_VERSION,
        "run": str(replay.folder),
        "used": replay.used.model_dump(mode="json"),
        "replayed": replay.replayed.model_dump(mode="json"),
        "notes": replay.notes,
        "phases": {
            phase.phase: {
                "identical": phase.is_identical,
                "evaluations": [point(of) for of in phase.points],
            }
            for phase in replay.phases
        },
    }


_DECIDED = ("ratio", "reference_ratio", "reference_loss", "forecast", "excess", "data")
