"""Print what scheduling costs (paper, Appendix B.4): shares of the run time of finished runs.

Read from recipe, metrics.jsonl and sessions.jsonl of run folders; one row for each phase of runs of
the same name (a folder whose name is a number is a seed, and goes by the names of those above it).
"Training" includes reading the blocks of a batch, which the log does not tell apart. "Checkpoints"
is the time between records in which one was saved, "planning" that after an evaluation without one,
in which the blocks of the next segment are chosen and, in pruning, the plan is written. "Other" is
the rest: logging, and what lies around an interruption.

    python benchmarks/experiments/cost.py WORK/pilot-en7/*/[0-9]*
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.runs.folder import RunFolder
from drpruning.runs.lines import End, EvalPoint, Line, StepPoint, read_lines
from drpruning.runs.records import PhaseRecord, load_phases


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Where the seconds of one phase of one run went.

    Attributes:
        run: Its name.
        phase: `prune` or `pretrain`.
        updates: Updates of the ratio.
        total: Seconds of the phase, without the time between an interruption and the next start.
        training: Steps, blocks read.
        evaluation: Losses on the validation blocks.
        scheduling: Updates of the ratio, forecasts included.
        checkpoints: Saving them.
        planning: What an evaluation is followed by.
        other: The rest.
    """

    run: str
    phase: str
    updates: int
    total: float
    training: float
    evaluation: float
    scheduling: float
    checkpoints: float
    planning: float
    other: float


PARTS = ("training", "evaluation", "scheduling", "checkpoints", "planning", "other")


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or with --json the seconds of every run."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=__doc__[__doc__.index("    python") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run folders; unfinished phases are left out"
    )
    parser.add_argument("--json", action="store_true", help="print seconds as JSON, run by run")
    args = parser.parse_args(arguments)
    try:
        costs = [cost for folder in args.runs for cost in costs_of(folder)]
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if not costs:
        parser.exit(2, f"{parser.prog}: none of these runs has a finished phase\n")
    print(json.dumps([asdict(c) for c in costs], indent=1) if args.json else table(costs))


def table(costs: Iterable[Cost]) -> str:
    """The mean shares of runs of the same name, as Markdown."""
    rows: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        rows.setdefault((cost.run, cost.phase), []).append(cost)
    lines = [
        f"| run | phase | runs | seconds | {' | '.join(PARTS)} | ms an update |",
        f"|---|---|{'---:|' * (len(PARTS) + 3)}",
    ]
    for (run, phase), own in rows.items():
        total = sum(cost.total for cost in own)
        shares = [sum(getattr(cost, part) for cost in own) / total for part in PARTS]
        update = 1000 * sum(cost.scheduling for cost in own) / sum(cost.updates for cost in own)
        cells = " | ".join(f"{100 * share:.2f}%" for share in shares)
        seconds = fmean(cost.total for cost in own)
        lines.append(f"| {run} | {phase} | {len(own)} | {seconds:.0f} | {cells} | {update:.1f} |")
    return "\n".join(lines)


def costs_of(folder: Path) -> Iterator[Cost]:
    """The cost of every finished phase of a run.

    Raises:
        BadInput: It is no run folder, or a file in it is damaged.
    """
    record, files = load_phases(folder), RunFolder(folder)
    if not files.has_recipe:
        raise BadInput(f"{folder}: no run here (no {files.recipe.name})")
    *above, name = folder.resolve().parts
    name = "/".join(above[-2:]) if name.isdecimal() else name
    every = record.recipe["training"]["checkpoint"]["every_steps"]
    lines = [*read_lines(files.metrics)] if record.phases else []
    starts = _session_starts(files.sessions)
    for phase in record.phases.values():
        if phase.end is not None:
            own = [line for line in lines if line.phase == phase.name]
            yield _cost(name, phase, own, every, starts)


def _cost(
    name: str, phase: PhaseRecord, lines: list[Line], every: int, starts: list[float]
) -> Cost:
    assert phase.start is not None
    assert phase.end is not None
    batch = phase.start.global_batch * phase.start.sequence_length
    training, step = 0.0, 0
    for point in phase.steps:  # tokens per second are those of the steps since the point before
        training += (point.step - step) * batch / point.tokens_per_second
        step = point.step
    evaluation = sum(point.evaluation_seconds for point in phase.evals)
    scheduling = sum(point.update_seconds for point in phase.evals)
    between, last = {"checkpoints": 0.0, "planning": 0.0}, 0.0
    for line, seconds in _gaps(lines, batch, starts):
        if line.step and (line.step % every == 0 or line.step == phase.end.step):
            between["checkpoints"] += seconds
        elif isinstance(line, EvalPoint):
            between["planning"] += seconds
        if line.step == phase.end.step:  # the last checkpoint, which is not in the logged total
            last = seconds
    total = phase.end.total_seconds + last
    other = total - training - evaluation - scheduling - sum(between.values())
    return Cost(
        run=name,
        phase=phase.name,
        updates=len(phase.evals),
        total=total,
        training=training,
        evaluation=evaluation,
        scheduling=scheduling,
        other=other,
        **between,
    )


def _gaps(lines: list[Line], batch: int, starts: list[float]) -> Iterator[tuple[Line, float]]:
    """Seconds after the last record of a step that neither steps nor evaluations account for.

    A checkpoint of a step is saved after all its records. What lies around a new start of the
    command is left out, since it was down in between.
    """
    last, step = lines[0], 0
    for line in lines[1:]:
        seconds = line.time - last.time
        if isinstance(line, StepPoint):
            seconds -= (line.step - step) * batch / line.tokens_per_second
            step = line.step
        elif isinstance(line, EvalPoint):
            seconds -= line.evaluation_seconds + line.update_seconds
        restarted = any(last.time < start < line.time for start in starts)
        if not restarted and (line.step > last.step or isinstance(line, End)):
            yield last, seconds
        last = line


def _session_starts(file: Path) -> list[float]:
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return [parse_json(line)["time"] for line in lines]


if __name__ == "__main__":
    main()
