"""Draw docs/tau.svg: what `tau` trades, in the world that was fitted to real runs.

OMP_NUM_THREADS=1 python benchmarks/tau_figure.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track

from simulated import Candidate, Outcome, read_world, run

HERE = Path(__file__).parent
WORLD = HERE / "experiments" / "en7-world.json"
TAUS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
SEEDS = range(4)
SOURCE = {"reference_loss": "source"}
OTHERS = {
    "constant": ("constant", {}),
    "equal shares": ("equal", {}),
    "the paper's settings": ("drpruning", {"reference": "paper"}),
    "Sheared's rule, a trained model's losses": ("sheared", {"reference_loss": "trained"}),
}


def main() -> None:
    """Run the world under every setting and draw average against weighted loss."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tau", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for label, given in (("with the source's losses", SOURCE), ("nothing given", {})):
        curve = [mean("drpruning", given | {"tau": tau}) for tau in track(TAUS, label)]
        for ax, y in zip(axes, ("average", "behind"), strict=True):
            ax.plot([c["weighted"] for c in curve], [c[y] for c in curve], "o-", ms=4, label=label)
            for tau, c in zip(TAUS, curve, strict=True):
                if given and tau in (0.2, 0.5, 2.0):
                    place = (c["weighted"], c[y])
                    ax.annotate(f"{tau:g}", place, xytext=(4, 5), textcoords="offset points")
    for (label, (name, settings)), mark in zip(OTHERS.items(), "sDX^", strict=True):
        found = mean(name, settings)
        for ax, y in zip(axes, ("average", "behind"), strict=True):
            ax.plot(found["weighted"], found[y], mark, ms=8, label=label)
    names = {"average": "mean loss of the domains", "behind": "largest loss above the source's"}
    for ax, y in zip(axes, names, strict=True):
        ax.set_xlabel("loss weighted by the initial ratio, nats")
        ax.set_ylabel(f"{names[y]}, nats")
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(HERE.parent / "docs" / "tau.svg", metadata={"Date": None}, facecolor="white")


def mean(policy: str, settings: dict[str, object]) -> dict[str, float]:
    """The mean figures over the seeds of the evaluation noise."""
    candidate = Candidate(label=policy, policy=policy, settings=settings)
    found: list[Outcome] = [run(read_world(WORLD, seed), candidate) for seed in SEEDS]
    return {
        name: float(np.mean([getattr(outcome, name) for outcome in found]))
        for name in ("average", "weighted", "behind")
    }


if __name__ == "__main__":
    main()
