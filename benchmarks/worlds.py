"""How policies do against the constant ratio in simulated trainings (`simulated.py`), "worlds".

    OMP_NUM_THREADS=1 python benchmarks/worlds.py --worlds 100 --kind skewed even \
        --policies equal drpruning drpruning:reference_loss=source sheared \
        --set rho=0.5 bound=7 --json worlds.json

A policy is a name of `make_policy`, with settings after a colon: `drpruning:rho=0.5,bound=7`.
`reference_loss=source` and `reference_loss=trained` stand for the losses of the world's larger
source model and of its trained model of the target's size. `smoothing=0.3` raises the initial ratio
to this power first (0: equal shares). A kind is a shape of the initial ratio (skewed, even,
dirichlet), joined by + with what is wrong (noise, duplicates, exhausted, wrong, unreachable).

The table has, for each policy, the mean difference to the constant ratio in the same worlds in
nats, with its standard error: mean loss over the domains, worst domain, mean weighted by the
initial ratio, and the largest loss above the source model's own. Negative is better. `p90` is the
90th percentile over the worlds of the difference in the mean loss: how bad it gets. Then come the
share of worlds in which the policy is better than the constant ratio, and the churn: the mean of
sum |q_new - q_old| over the evaluations.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from drpruning.runs.provenance import commit, versions
from simulated import (
    DEFECTS,
    SHAPES,
    Candidate,
    Outcome,
    World,
    draw,
    read_world,
    run,
    setting_values,
)

FIGURES = ("average", "worst", "weighted", "behind")
ALL_KINDS = (*SHAPES, *(f"skewed+{defect}" for defect in DEFECTS))
DEFAULT_POLICIES = (
    "equal",
    "drpruning",
    "drpruning:reference_loss=source",
    "sheared",
    "sheared:reference_loss=source",
    "group_dro",
    "ado",
)

Job = tuple[World, Sequence[Candidate]]
Results = dict[str, dict[str, Any]]


def figures(outcome: Outcome) -> dict[str, Any]:
    """What is kept of an outcome."""
    numbers = {name: getattr(outcome, name) for name in (*FIGURES, "churn")}
    return {**numbers, "final": outcome.final.tolist(), "data": outcome.data.tolist()}


def outcomes(job: Job) -> Results:
    """What every candidate comes to in one world."""
    world, candidates = job
    return {candidate.label: figures(run(world, candidate)) for candidate in candidates}


def simulate(
    worlds: Sequence[World], candidates: Sequence[Candidate], jobs: int = 1
) -> Iterator[Results]:
    """The outcomes of all candidates in every world, in order."""
    work: list[Job] = [(world, candidates) for world in worlds]
    if jobs == 1:
        yield from map(outcomes, work)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(outcomes, work)


def table(results: Sequence[Results], labels: Iterable[str]) -> list[list[str]]:
    """Rows of text, header first."""

    def of(label: str, figure: str) -> npt.NDArray[np.float64]:
        return np.array([result[label][figure] for result in results])

    better = [f"better: {name}" for name in ("average", "worst", "behind")]
    rows = [["policy", *FIGURES, "p90", *better, "churn"]]
    for label in labels:
        cells = []
        for figure in FIGURES:
            difference = of(label, figure) - of("constant", figure)
            error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(results) > 1 else 0
            cells.append(f"{difference.mean():+.4f} ± {error:.4f}")
        difference = of(label, "average") - of("constant", "average")
        cells.append(f"{np.quantile(difference, 0.9):+.4f}")
        for figure in ("average", "worst", "behind"):
            wins = of(label, figure) < of("constant", figure) - 1e-9
            cells.append(f"{wins.mean():.0%}")
        rows.append([label, *cells, f"{of(label, 'churn').mean():.3f}"])
    return rows


def printed(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *others])


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about policies and output."""
    parser.add_argument("--policies", nargs="+", default=list(DEFAULT_POLICIES))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--seed", type=int, default=0, help="the first one; default 0")
    parser.add_argument("--json", type=Path, help="where to write all outcomes")


def candidates_of(args: argparse.Namespace) -> list[Candidate]:
    """The policies to compare, the constant ratio first."""
    more = setting_values(args.settings)
    return [Candidate.parse(text, more) for text in dict.fromkeys(["constant", *args.policies])]


def new_record(args: argparse.Namespace) -> dict[str, Any]:
    """What a JSON file says of how its outcomes came about."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }


def show(title: str, results: Sequence[Results]) -> None:
    """Print the table of all policies but the constant ratio."""
    labels = [label for label in results[0] if label != "constant"]
    print(f"\n## {title}\n\n{printed(table(results, labels))}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=100, help="of each kind; default 100")
    parser.add_argument("--kind", nargs="+", default=["skewed"], help="default skewed; all")
    parser.add_argument("--world", type=Path, help="a JSON file of a world, instead of kinds")
    parser.add_argument("--domains", type=int, help="default: 3 to 30, drawn for each world")
    parser.add_argument("--evaluations", type=int, help="default: 20 or 60, drawn for each world")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default 1")
    shared_arguments(parser)
    return parser.parse_args()


def worlds_of(args: argparse.Namespace, kind: str) -> list[World]:
    seeds = range(args.seed, args.seed + args.worlds)
    if args.world is not None:
        return [read_world(args.world, seed, args.evaluations) for seed in seeds]
    sizes = {"domains": args.domains, "evaluations": args.evaluations}
    return [draw(kind, seed, **sizes) for seed in seeds]


def main() -> None:
    args = parse()
    candidates = candidates_of(args)
    record = new_record(args) | {"kinds": {}}
    kinds = ALL_KINDS if args.kind == ["all"] else args.kind
    progress = Console(stderr=True)
    for kind in [args.world.stem] if args.world is not None else kinds:
        worlds = worlds_of(args, kind)
        pending = simulate(worlds, candidates, args.jobs)
        results = list(track(pending, kind, total=len(worlds), console=progress, transient=True))
        record["kinds"][kind] = [
            {"seed": w.seed, "domains": len(w.ratio), "evaluations": w.evaluations, "outcomes": r}
            for w, r in zip(worlds, results, strict=True)
        ]
        show(f"{kind}, {len(worlds)} worlds", results)
    if args.json is not None:
        args.json.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
