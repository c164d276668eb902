"""Pruning plans in files, and how far they agree with one another or over one run.

Source: Deng et al. (arXiv 2411.14055), Appendix B.1.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.pruning import PruningPlan
from drpruning.pruning.similarity import PlanComparison, compare_plans
from drpruning.runs.folder import PLAN_FILE, RunFolder

FINAL, LATEST = "final", "latest"
"""Names of the plan that a history is compared with: of a complete phase, of one under way."""


def compare_files(paths: Sequence[Path]) -> list[PlanComparison]:
    """Compare all pairs of the plans in files, or the history of one run with its end.

    Args:
        paths: Several places of plans, see `find_plan`, or one run folder, see `compare_history`.

    Raises:
        BadInput: A place holds no plan, one is named twice, or two cut different sources.
    """
    if len(paths) == 1:
        return compare_history(paths[0])
    plans = {str(path): find_plan(path) for path in paths}
    if len(plans) < len(paths):
        raise BadInput("the same plan is named twice; name different ones")
    return compare_plans(plans)


def find_plan(path: Path) -> PruningPlan:
    """Find the plan in a file or folder.

    Args:
        path: A plan.json, a folder with one, a run folder, or a model folder in a run folder.

    Raises:
        BadInput: There is none, or it is not valid.
    """
    run = RunFolder(path)
    places = [path] if path.is_file() else [path / PLAN_FILE, run.plan]
    if (path / "config.json").is_file():
        places.append(RunFolder(path.absolute().parent).plan)
    for place in places:
        if place.is_file():
            return PruningPlan.load(place)
    if run.plan_history.is_file():
        raise BadInput(
            f"{path}: pruning is not complete, so there is no plan yet; `drprune compare-plans "
            f"{path}` shows how far it has come"
        )
    raise BadInput(
        f"{path}: no pruning plan here; give a plan.json, a run folder with prune/plan.json, or a "
        "model in such a run folder"
    )


def compare_history(run: Path) -> list[PlanComparison]:
    """Compare the plan at each evaluation of a run's pruning phase with its final plan.

    Until the phase is complete, its latest plan takes the place of the final one.

    Args:
        run: A run folder with prune/plans.jsonl.

    Raises:
        BadInput: There is no history, or a line of it is no plan.
    """
    file = RunFolder(run).plan_history
    if not file.is_file():
        raise BadInput(
            f"{run}: has no history of plans (prune/{file.name}); give a run folder that has "
            "pruned, or a second plan to compare with"
        )
    plans = dict(_history(file))
    if not plans:
        raise BadInput(f"{file}: no evaluation in it yet")
    name, end = LATEST, list(plans.values())[-1]
    if RunFolder(run).plan.is_file():
        name, end = FINAL, find_plan(run)
    return [PlanComparison.of(f"step {step}", plan, name, end) for step, plan in plans.items()]


def _history(file: Path) -> Iterator[tuple[int, PruningPlan]]:
    """Read step and plan of every complete line; the last may still be being written."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            record = parse_json(line)
            yield int(record["step"]), PruningPlan.from_json(json.dumps(record["plan"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{file}, line {number}: no plan of an evaluation: {error}") from None
