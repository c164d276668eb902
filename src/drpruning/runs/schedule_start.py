"""What a run has found, as a file that `scheduling.start` of another recipe takes. No torch."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_output_file
from drpruning.recipe import Start
from drpruning.recipe.paths import escape_path
from drpruning.recipe.validation_text import explain
from drpruning.recipe.yaml_io import dump_yaml, parse_yaml
from drpruning.runs.folder import RunFolder
from drpruning.runs.lines import EvalPoint
from drpruning.runs.records import PhaseRecord, RunRecord, load_phases, section
from drpruning.runs.reference_origin import origins

_KEPT = (
    "a run that begins here keeps these reference losses, and its own forecasts count beside them; "
    "scheduling.forecast: replace makes its forecasts replace them"
)
_TITLE = "Where another recipe can begin, with scheduling: {start: THIS_FILE}"


@dataclass(frozen=True, kw_only=True)
class ExportedSchedule:
    """The schedule of a run at its last evaluation.

    Attributes:
        start: What `scheduling.start` takes: `ratio`, `reference_ratio` and `reference_loss` by
            domain, those that are known.
        comments: Where it is from, for people.
        warnings: Why it may not be what was wanted.
    """

    start: dict[str, dict[str, float]]
    comments: list[str]
    warnings: list[str]


def export_schedule(folder: Path, phase: str | None = None) -> ExportedSchedule:
    """Read from a run folder where its schedule has come to.

    Args:
        folder: The run; nothing but its recipe and metrics.jsonl is needed.
        phase: `prune` or `pretrain`; by default the last that has an evaluation.

    Raises:
        BadInput: There is no such run, phase or evaluation, or a recipe could not start there.
    """
    record = load_phases(folder)
    evaluated = record.evaluated
    if not evaluated:
        raise BadInput(f"{folder}: no evaluation in its metrics.jsonl, so nothing to export")
    if phase is not None and phase not in evaluated:
        raise BadInput(
            f"--phase {phase}: {folder} has no evaluation in it; choose one of "
            f"{', '.join(evaluated)}"
        )
    chosen = evaluated[phase or list(evaluated)[-1]]
    last = chosen.evals[-1]
    incomplete = _incomplete(record, chosen, asked=phase is not None)
    found = {
        "ratio": last.ratio,
        "reference_ratio": last.reference_ratio,
        "reference_loss": {d: v for d, v in last.reference_loss.items() if d in last.ratio},
    }
    lacking = [d for d in last.ratio if not math.isfinite(last.reference_loss.get(d, math.nan))]
    if not any(found["reference_loss"].values()):  # NaiveDRO without any goes by zeros
        del found["reference_loss"]
    elif lacking:
        del found["reference_loss"]
        incomplete.append(f"no reference losses: {', '.join(lacking)} had none at the end")
    start = {name: dict(values) for name, values in found.items() if values}
    origin = f"{RunFolder(folder).metrics}: the evaluation of {chosen.name} at step {last.step}"
    _checked(start, set(record.initial_ratio or last.ratio or last.loss), origin)
    return ExportedSchedule(
        start=start,
        comments=_comments(record, chosen, last, with_losses="reference_loss" in start),
        warnings=incomplete,
    )


def start_text(start: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """YAML, under the comments if there are any; numbers keep every bit."""
    lines = [line for comment in comments for line in comment.splitlines()]
    header = "".join(f"# {line}".rstrip() + "\n" for line in [_TITLE, *lines] if lines)
    return header + dump_yaml(dict(start))


def next_command(path: Path) -> str:
    """How another recipe is told to begin with this file."""
    assignment = shlex.quote(f"scheduling.start={escape_path(str(path))}")
    return f"saved: {path}; start from it with: drprune run RECIPE --set {assignment}"


def check_start_file(path: Path) -> None:
    """Refuse an `--output` that cannot be written, or that is no file for `scheduling.start`.

    Raises:
        BadInput: There is another file, or there can be no file.
    """
    check_output_file(path, "--output", _is_start_file)


def _is_start_file(path: Path) -> bool:
    """Whether a file holds what `scheduling.start` takes, or the comments of `write_start`."""
    try:
        text = path.read_text(encoding="utf-8")
        found = parse_yaml(text, str(path))
    except (OSError, ValueError):
        return False
    if not found:  # nothing but comments, which must be ours
        return text.startswith(f"# {_TITLE}\n")
    return isinstance(found, dict) and set(found) <= set(Start.model_fields)


def write_start(path: Path, start: Mapping[str, Any], comments: Sequence[str]) -> None:
    """Write a file for `scheduling.start` in one step; it replaces only such a file.

    Raises:
        BadInput: There is another file, or it cannot be written.
    """
    check_start_file(path)
    try:
        atomic_write(path, start_text(start, comments))
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror}; name another file") from None


def _checked(start: dict[str, dict[str, float]], domains: set[str], origin: str) -> None:
    """Refuse what no recipe would take."""
    try:
        Start.model_validate(start)
        if "ratio" not in start:
            raise BadInput("ratio: there is none")
        if odd := [name for name, values in start.items() if set(values) != domains]:
            raise BadInput(f"{odd[0]}: is not of the domains {', '.join(sorted(domains))}")
    except ValidationError as error:
        problems = "; ".join(explain(error, Start))
    except BadInput as error:
        problems = str(error)
    else:
        return
    raise BadInput(f"{origin} is nothing to start from: {problems}")


def _incomplete(record: RunRecord, phase: PhaseRecord, *, asked: bool) -> list[str]:
    """What is missing at the end of the phase, and after it where no phase was asked for."""
    lines = []
    if phase.end is None:
        total = phase.total_steps or "?"
        lines.append(
            f"{phase.name} is not complete (step {phase.evals[-1].step} of {total}); this is "
            "what it has found so far"
        )
    if not asked and phase.name == "prune" and record.recipe.get("pretrain"):
        lines.append("pretrain has not begun; this is what pruning has found")
    return lines


def _comments(
    record: RunRecord, phase: PhaseRecord, last: EvalPoint, *, with_losses: bool
) -> list[str]:
    policy = section(record.recipe, "scheduling").get("policy", "not known")
    try:
        when = f"{datetime.fromtimestamp(last.time, UTC):%Y-%m-%d %H:%M UTC}"
    except (ValueError, OverflowError, OSError):
        when = "not known"
    shares = dump_yaml(record.initial_ratio, default_flow_style=True)
    found = origins(last.explanation) if with_losses else {}
    made = {"forecast", "smallest loss"} & set(last.explanation.reference_origin.values())
    return [
        f"run: {record.folder}",
        f"phase: {phase.name}, step {last.step} of {phase.total_steps or '?'}",
        f"policy: {policy}",
        f"date: {when}",
        f"initial shares: {shares}".strip(),
        *(f"reference losses of {', '.join(names)}: {text}" for text, names in found.items()),
        *([_KEPT] if found and made else []),
    ]
