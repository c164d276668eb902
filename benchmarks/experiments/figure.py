"""Draw average against weighted loss from results of `run.py`: seeds small, their mean large.

    python benchmarks/experiments/figure.py docs/results.svg \\
        "trained on equal parts=benchmarks/experiments/results/main-en7.json"
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from table import figures_of

MARKS = {
    "constant": ("constant ratio", "#666666", "o"),
    "equal": ("equal shares", "#CC79A7", "s"),
    "sheared": ("Sheared's rule, a trained model's losses", "#D55E00", "D"),
    "paper": ("DRPruning, the paper's settings", "#0072B2", "^"),
    "default": ("DRPruning, the default", "#009E73", "P"),
    "naive": ("DRO as it is", "#56B4E9", "v"),
    "group": ("Group DRO", "#E69F00", "<"),
    "ado": ("ADO", "#8C564B", ">"),
}
"""Variant -> what people call it, colour (apart for the colour-blind too), mark."""


def main() -> None:
    """Draw the files of results that the arguments name side by side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="an SVG file")
    parser.add_argument("results", nargs="+", metavar="TITLE=FILE")
    args = parser.parse_args()
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "results", "font.size": 10})
    panels = [given.rpartition("=") for given in args.results]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 4.8 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for ax, (title, _, file) in zip(axes[0], panels, strict=True):
        draw(ax, json.loads(Path(file).read_text()))
        ax.set_title(title)
        ax.set_xlabel("loss weighted by the initial ratio, nats")
        ax.set_ylabel("mean loss of the domains, nats")
        ax.grid(alpha=0.3)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(args.output, metadata={"Date": None}, facecolor="white")


def draw(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the variants that `MARKS` names."""
    for variant, (label, colour, mark) in MARKS.items():
        own = [row for row in rows if row["variant"] == variant]
        if not own:
            continue
        weighted = [figures_of(row, {})["weighted"] for row in own]
        average = [fmean(row["loss"].values()) for row in own]
        ax.plot(weighted, average, mark, ms=4, alpha=0.45, color=colour, mew=0)
        ax.plot(fmean(weighted), fmean(average), mark, ms=9, color=colour, label=label)


if __name__ == "__main__":
    main()
