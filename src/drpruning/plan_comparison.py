"""Pruning plans found in files and compared: how far they agree, what chance would give. No torch.

Source: Deng et al. (arXiv 2411.14055), Appendix B.1.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from drpruning.errors import BadInput
from drpruning.json_text import parse_json
from drpruning.pruning import PruningPlan
from drpruning.pruning.plan import DIMENSIONS

PLAN_FILE = "plan.json"
HISTORY_FILE = "plans.jsonl"
FINAL, LATEST = "final", "latest"
"""What the plan that a history is compared with is called: of a complete or of a running phase."""

_OUTSIDE_LAYERS = ("layer", "hidden")


@dataclass(frozen=True, kw_only=True)
class PlanComparison:
    """How far two plans of one source agree.

    Attributes:
        first: What the one plan is called.
        second: What the other is called.
        similarity: Granularity -> share of the source's parts on which they decide alike.
        chance: The same for random plans of these shapes, see `chance_similarity`.
        only_first: Layers that only the first keeps.
        only_second: Layers that only the second keeps.
        other_heads: Layers that both keep, but with other query heads.
    """

    first: str
    second: str
    similarity: dict[str, float]
    chance: dict[str, float]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    other_heads: tuple[int, ...]

    @classmethod
    def of(cls, first: str, one: PruningPlan, second: str, other: PruningPlan) -> "PlanComparison":
        """Compare two plans.

        Raises:
            BadInput: They cut different sources.
        """
        if differences := one.source.differences(other.source):
            told = ", ".join(f"{name} {a} and {b}" for name, (a, b) in differences.items())
            raise BadInput(
                f"{first} and {second} cut different models ({told}); compare plans of one source"
            )
        similarity = one.similarity(other)
        mine, theirs = set(one.layers), set(other.layers)
        heads = [dict(zip(plan.layers, plan.heads, strict=True)) for plan in (one, other)]
        return cls(
            first=first,
            second=second,
            similarity=similarity,
            chance=chance_similarity(one, other, similarity),
            only_first=tuple(sorted(mine - theirs)),
            only_second=tuple(sorted(theirs - mine)),
            other_heads=tuple(i for i in sorted(mine & theirs) if heads[0][i] != heads[1][i]),
        )


def chance_similarity(
    one: PruningPlan, other: PruningPlan, granularities: Iterable[str]
) -> dict[str, float]:
    """The similarity to expect of two independent, uniformly random plans of these shapes.

    A part stays in a plan with a probability p that is the same for every part of its kind: the
    share of layers for a layer; for a part of a layer that share times the share of such parts in
    a kept layer, because those of a removed layer count as removed. Two plans agree on it with
    probability p p' + (1 - p)(1 - p'), and by linearity the mean over parts is the same, however
    the parts of one plan depend on each other.

    Args:
        one: A plan.
        other: A plan for the same source.
        granularities: Some that `PruningPlan.similarity` has.

    Returns:
        Granularity -> expected share in [0, 1].
    """
    expected = {}
    for name in granularities:
        p, q = _kept_share(one, name), _kept_share(other, name)
        expected[name] = p * q + (1 - p) * (1 - q)
    return expected


def _kept_share(plan: PruningPlan, granularity: str) -> float:
    def share(name: str) -> float:
        size: int = getattr(plan.source, DIMENSIONS[name])
        kept: int = getattr(plan.target, DIMENSIONS[name])
        return kept / size

    return share(granularity) * (1 if granularity in _OUTSIDE_LAYERS else share("layer"))


def compare_plans(plans: Mapping[str, PruningPlan]) -> list[PlanComparison]:
    """All pairs of plans, in order.

    Args:
        plans: What to call it -> plan.

    Raises:
        BadInput: Two cut different sources.
    """
    return [
        PlanComparison.of(first, plans[first], second, plans[second])
        for first, second in combinations(plans, 2)
    ]


def compare_files(paths: Sequence[Path]) -> list[PlanComparison]:
    """All pairs of the plans in files, or the history of one run against its end.

    Args:
        paths: Several places of plans, see `find_plan`, or one run folder, see `compare_history`.

    Raises:
        BadInput: No plan is there, one is named twice, or two cut different sources.
    """
    if len(paths) == 1:
        return compare_history(paths[0])
    plans = {str(path): find_plan(path) for path in paths}
    if len(plans) < len(paths):
        raise BadInput("the same plan is named twice; name different ones")
    return compare_plans(plans)


def find_plan(path: Path) -> PruningPlan:
    """The plan in a file or folder.

    Args:
        path: A plan.json, a folder with one, a run folder, or a model folder in a run folder.

    Raises:
        BadInput: There is none, or it is no valid plan.
    """
    places = [path] if path.is_file() else [path / PLAN_FILE, path / "prune" / PLAN_FILE]
    if (path / "config.json").is_file():
        places.append(path.absolute().parent / "prune" / PLAN_FILE)
    for place in places:
        if place.is_file():
            return PruningPlan.load(place)
    if (path / "prune" / HISTORY_FILE).is_file():
        raise BadInput(
            f"{path}: pruning is not complete, so there is no plan yet; `drprune compare-plans "
            f"{path}` shows how far it has come"
        )
    raise BadInput(
        f"{path}: no pruning plan here; give a plan.json, a run folder with prune/plan.json, or a "
        "model in such a run folder"
    )


def compare_history(run: Path) -> list[PlanComparison]:
    """The plan at each evaluation of a run's pruning phase against its final plan.

    While the phase goes on, its latest plan takes the place of the final one.

    Args:
        run: A run folder with prune/plans.jsonl.

    Raises:
        BadInput: There is no history, or a line of it is no plan.
    """
    file = run / "prune" / HISTORY_FILE
    if not file.is_file():
        raise BadInput(
            f"{run}: has no history of plans (prune/{HISTORY_FILE}); give a run folder that has "
            "pruned, or a second plan to compare with"
        )
    plans = dict(_history(file))
    if not plans:
        raise BadInput(f"{file}: no evaluation in it yet")
    name, end = LATEST, list(plans.values())[-1]
    if (run / "prune" / PLAN_FILE).is_file():
        name, end = FINAL, find_plan(run)
    return [PlanComparison.of(f"step {step}", plan, name, end) for step, plan in plans.items()]


def _history(file: Path) -> Iterator[tuple[int, PruningPlan]]:
    """Step and plan of every whole line; the last may still be being written."""
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
