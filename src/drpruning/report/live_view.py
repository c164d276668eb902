"""What a terminal shows of a run while it is trained, as text made from a `RunState`.

Nothing is read or measured here: the same state, moment and size give the same text. A domain keeps
its place and its colour; where not all fit, those are shown whose loss is farthest above its
reference, the worst first.
"""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from drpruning.common.console import seconds_text
from drpruning.report.formats import loss_text, signed
from drpruning.report.live_table import bar, domain_rows, domain_table
from drpruning.runs.follow import Progress, RunFollower, RunState, Status, current_state
from drpruning.runs.records import PhaseRecord, section

STATUS_STYLES: dict[Status, str] = {
    "waiting": "yellow",
    "running": "green",
    "stopped": "bold red",
    "finished": "bold cyan",
}
NARROWEST, WIDEST = 24, 160
FEWEST_LINES, LINES_ABOVE = 12, 4
"""Of the view of one's own run: its height at least, and what it leaves to messages above it."""
WIDEST_BAR, WIDEST_SPARSITY = 40, 38
FEWEST_DOMAINS, MOST_WARNINGS = 5, 3
_ASCII = str.maketrans("▁▂▃▄▅▆▇█▉▊▋▌▍▎▏░│▸×·–−…", "_.,-~=*####++++.|>x,--.")


def render(
    states: Sequence[RunState],
    now: float,
    width: int,
    height: int | None = None,
    *,
    ascii_only: bool = False,
) -> Text:
    """Draw a run, or the runs of several targets.

    Args:
        states: Of the run, or of the run of each target in their order.
        now: Seconds since the epoch.
        width: Columns to fill at most.
        height: Lines to fill at most; None: as many as there are.
        ascii_only: Whether the terminal has no other characters.
    """
    width = max(NARROWEST, min(width, WIDEST))
    state = current_state(states)
    lines = _targets(states, state, width) if len(states) > 1 else []
    lines += _head(state, now, width)
    sparsity, warnings = _sparsity(state, width), _warnings(state, width, brief=height is not None)
    rows = domain_rows(state)
    room, below = None, [*sparsity, *warnings]
    if height is not None:
        for below in ([*sparsity, *warnings], warnings, []):  # the domains tell most
            room = height - len(lines) - len(below)
            if room >= min(len(rows), FEWEST_DOMAINS) + 2:
                break
    lines += [*domain_table(rows, width, room), *below]
    for line in lines:
        if not line.plain.isprintable():  # names and messages of others may move the cursor
            line.plain = "".join(c if c.isprintable() else "?" for c in line.plain)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
    text = Text("\n", no_wrap=True).join(lines[:height])
    if ascii_only:
        return Text(text.plain.translate(_ASCII), spans=text.spans, no_wrap=True)
    return text


class OwnRunView:
    """The view of the run that this process trains, read from its folder like that of any other."""

    def __init__(self, folder: Path):
        """Show the run in `folder`, which need not have begun."""
        self._follower = RunFollower(folder, is_own=True)

    def __call__(self, console: Console, done: int, activity: str) -> Text:
        """The view at `done` steps, a few lines less high than the terminal."""
        state = replace(self._follower.read(), step=done, activity=activity)
        height = max(FEWEST_LINES, console.height - LINES_ABOVE)
        ascii_only = console.options.ascii_only
        return render([state], time.time(), console.width, height, ascii_only=ascii_only)


def _targets(states: Sequence[RunState], current: RunState, width: int) -> list[Text]:
    """One line for each target, and the steps of all of them."""
    whole = [state.run_progress() for state in states]
    done, total = sum(one.done for one in whole), sum(one.total for one in whole)
    names = [state.record.folder.name for state in states]
    longest = max(map(len, names))
    lines = [_progress_line("targets", Progress(done, total, None), "", width)]
    for name, state, progress in zip(names, states, whole, strict=True):
        line = Text(f"{'▸' if state is current else ' '} {name:<{longest}}  ")
        line.append(f"{state.status:<8}", STATUS_STYLES[state.status])
        if progress.total:
            line.append(f"  step {progress.done:,} of {progress.total:,}")
        lines.append(line)
    return lines


# The upper part: where the run stands.


def _head(state: RunState, now: float, width: int) -> list[Text]:
    policy = section(state.record.recipe, "scheduling").get("policy")
    lines = [_title(str(state.record.folder), "" if policy is None else str(policy), state, width)]
    style = "yellow" if state.status == "running" else STATUS_STYLES[state.status]
    lines += _wrapped(_notice(state, now), width, style)
    phase, progress = state.phase, state.progress()
    if phase is not None and progress is not None:
        took = f"took {seconds_text(phase.seconds)}" if phase.end is not None else ""
        lines.append(_progress_line(phase.name, progress, took, width))
        if len(state.phases) > 1:
            lines.append(_progress_line("run", state.run_progress(), "", width))
        if phase.end is not None and phase.end.stopped:
            lines += _wrapped(f"{phase.name} ended early: {phase.end.stopped}", width)
    return lines + _joined(_facts(state, now), width)


def _title(folder: str, policy: str, state: RunState, width: int) -> Text:
    words = [word for word in (policy, state.activity) if word]
    rest = "".join(f" · {word}" for word in words)
    room = max(8, width - len(rest) - len(state.status) - 3)
    folder = folder if len(folder) <= room else "…" + folder[1 - room :]
    line = Text.assemble((folder, "bold"), " · ", (state.status, STATUS_STYLES[state.status]))
    return line.append(rest)


def _notice(state: RunState, now: float) -> str:
    """What must be said of a run that does not simply train; "" if nothing."""
    silent = state.silence(now)
    quiet = "" if silent is None else f"no line for {seconds_text(silent)}"
    match state.status:
        case "waiting":
            return "no run has begun here yet"
        case "finished":
            return f"model: {state.result}"
        case "stopped":
            gone = "its process is gone: none on this machine works in the folder"
            resume = f"`drprune run {state.record.folder / 'recipe.yaml'}` resumes the run"
            return "; ".join(filter(None, (quiet, gone, resume)))
        case "running":
            return _starting_or_ending(state, now) or quiet


def _starting_or_ending(state: RunState, now: float) -> str:
    """What is done before the first step and after the last one of a phase, or of the run."""
    if state.has_result:
        return "all phases are done; the models are evaluated"
    if state.is_starting:
        since = "" if state.started is None else f" {seconds_text(max(0, now - state.started))} ago"
        return f"started{since}; the data are prepared and the models loaded before the next step"
    if state.phase is not None and state.phase.end is not None:
        return f"{state.phase.name} has ended; its model is written"
    return ""


def _progress_line(label: str, progress: Progress, note: str, width: int) -> Text:
    done, total, left = progress.done, progress.total, progress.seconds_left
    share = done / total if total else 0.0
    if not note and left:
        note = f"{seconds_text(left)} left"
    words = f" {done:,}/{total:,}  {int(100 * share)}%  {note}".rstrip()
    room = width - 9 - len(words)
    text = Text(f"{label:<9}")
    if room >= 4:
        text.append_text(bar(share, min(room, WIDEST_BAR), "green", empty="░"))
    return text.append(words)


def _facts(state: RunState, now: float) -> list[Text]:
    """Short statements on training and checkpoints."""
    phase = state.phase
    if phase is None:
        return []
    facts = _step_facts(phase)
    if skipped := len(phase.skipped):
        facts.append(Text(f"{skipped:,} step{'s' * (skipped > 1)} skipped", "yellow"))
    if (saved := state.checkpoint) is not None:
        age = seconds_text(max(0, now - saved.time))
        facts.append(Text(f"checkpoint {saved.phase} {saved.step:,}, {age} ago"))
    elif state.status != "finished":
        facts.append(Text("no checkpoint"))
    if state.last_line is not None and state.status != "finished":
        facts.append(Text(f"last line {seconds_text(max(0, now - state.last_line.time))} ago"))
    return facts


def _step_facts(phase: PhaseRecord) -> list[Text]:
    if not phase.steps:
        return []
    last = phase.steps[-1]
    change = ""
    if len(phase.steps) > 1:
        change = f" ({signed(last.loss - phase.steps[-2].loss)})"
    words = [f"loss {loss_text(last.loss)}{change}"]
    if last.divergence is not None:
        words.append(f"divergence from the teacher {loss_text(last.divergence)}")
    words.append(f"{last.tokens_per_second:,.0f} tokens/s")
    words.append(f"learning rate {last.learning_rate:.2g}")
    words.append(f"gradient norm {last.gradient_norm:.2f}")
    if last.expected_parameters is not None and phase.start is not None:
        final = phase.start.final_parameters
        words.append(f"{last.expected_parameters:,.0f} parameters (target {final:,.0f})")
    return [Text(word) for word in words]


# The lower part.


def _sparsity(state: RunState, width: int) -> list[Text]:
    """Share removed beside its target, as bars; several granularities on a line that is wide."""
    phase = state.phase
    last = phase.steps[-1] if phase is not None and phase.steps else None
    if last is None or not last.sparsity:
        return []
    targets = last.target_sparsity or {}
    columns = max(1, width // (WIDEST_SPARSITY + 2))
    room = min(WIDEST_SPARSITY, width)
    cells = []
    for name, value in last.sparsity.items():
        target = targets.get(name, float("nan"))
        cell = Text(f"{name:<12} ")
        cell.append_text(bar(value, max(4, room - 30), "blue", target))
        cell.append(f" {100 * value:5.1f}% of {100 * target:4.1f}%")
        cell.pad_right(max(0, room + 2 - cell.cell_len))
        cells.append(cell)
    lines = [Text("sparsity, and its target", "bold")]
    for first in range(0, len(cells), columns):
        lines.append(Text("").join(cells[first : first + columns]))
    return lines


def _warnings(state: RunState, width: int, *, brief: bool) -> list[Text]:
    """The latest warnings of the phase; `brief`: one line for each."""
    found = [] if state.phase is None else state.phase.warnings
    lines: list[Text] = []
    if (earlier := len(found) - MOST_WARNINGS) > 0:
        lines.append(Text(f"{earlier:,} earlier warnings are in metrics.jsonl", "yellow"))
    for warning in found[-MOST_WARNINGS:]:
        text = f"warning at step {warning.step:,}: {warning.message}"
        wrapped = _wrapped(text, width, "yellow")
        lines += [Text(text, "yellow")] if brief and len(wrapped) > 1 else wrapped
    return lines


def _wrapped(text: str, width: int, style: str = "") -> list[Text]:
    return [Text(line, style) for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def _joined(facts: Sequence[Text], width: int) -> list[Text]:
    """Facts side by side with dots between, on as many lines as they take."""
    lines: list[Text] = []
    for fact in facts:
        if lines and lines[-1].cell_len + 3 + fact.cell_len <= width:
            lines[-1].append(" · ").append_text(fact)
        else:
            lines.append(fact.copy())
    return lines
