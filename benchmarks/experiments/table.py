"""Print what `run.py` found as Markdown: one row a variant, means over its seeds.

Average perplexity is exp of the mean loss over domains; "worst" the largest loss of a domain,
"weighted" the mean loss by the recipe's shares, and "behind" the largest loss above the reference
model's (the model that was pruned, or --behind VARIANT), all in nats. The last column is the mean
difference of average perplexity to --against, over the seeds that both have, with its standard
error where there are at least two. `--pair A B` adds a line of paired differences of A to B in
every figure: mean and standard error, p of a two-sided paired t-test, and a 95% interval of the
mean by the bootstrap over seeds (percentiles of 10,000 draws).

    python benchmarks/experiments/table.py benchmarks/experiments/results/pilot-en7.json
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import bootstrap, ttest_1samp

Row = dict[str, Any]


def main() -> None:
    """Print the table of one file of results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--against", default="constant", help="variant to compare with")
    parser.add_argument("--behind", help="variant whose losses take the source's place")
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help="variants"
    )
    parser.add_argument("--domains", action="store_true", help="losses and shares by domain too")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.results.read_text())
    if not rows:
        parser.error(f"{args.results} has no results")
    reference = (
        _mean_losses([r for r in rows if r["variant"] == args.behind]) if args.behind else {}
    )
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    base = {row["seed"]: row for row in rows if row["variant"] == args.against}
    print(
        "| variant | seeds | average ppl | worst | weighted | behind | churn | "
        f"ppl against {args.against} |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant]
        print(_line(variant, own, base, reference))
    if args.pair:
        _print_pairs(rows, args.pair, reference)
    if args.domains:
        _print_domains(rows, variants)


def _line(variant: str, own: list[Row], base: dict[int, Row], reference: dict[str, float]) -> str:
    figures = [figures_of(row, reference) for row in own]
    mean = {name: fmean(f[name] for f in figures) for name in figures[0]}
    change = [
        100 * (math.exp(fmean(r["loss"].values()) - fmean(base[r["seed"]]["loss"].values())) - 1)
        for r in own
        if r["seed"] in base
    ]
    error = f" ± {stdev(change) / math.sqrt(len(change)):.1f}" if len(change) > 1 else ""
    against = f"{fmean(change):+.1f}%{error}" if change else ""
    return (
        f"| {variant} | {len(own)} | {mean['average']:.2f} | {mean['worst']:.3f} | "
        f"{mean['weighted']:.3f} | {mean['behind']:.2f} | {mean['churn']:.2f} | {against} |"
    )


def figures_of(row: Row, reference: dict[str, float]) -> dict[str, float]:
    """The figures of one run; `reference` are the losses to be behind of, else the source's."""
    loss, shares = row["loss"], row["initial_ratio"]
    goal = reference or row["source"]
    return {
        "average": math.exp(fmean(loss.values())),
        "worst": max(loss.values()),
        "weighted": sum(shares[d] * loss[d] for d in loss),
        "behind": max((loss[d] - goal[d] for d in goal), default=math.nan),
        "churn": row["churn"],
    }


def _print_pairs(rows: list[Row], pairs: list[list[str]], reference: dict[str, float]) -> None:
    """Differences over the seeds that both variants have, of the perplexity in percent."""
    found = {(row["variant"], row["seed"]): figures_of(row, reference) for row in rows}
    columns = ["average", "worst", "weighted", "behind"]
    print(f"\n| | seeds | {' | '.join(columns)} |\n|---|---:|{'---:|' * len(columns)}")
    for one, other in pairs:
        seeds = [seed for name, seed in found if name == one and (other, seed) in found]
        cells = []
        for column in columns:
            pair = [(found[one, seed][column], found[other, seed][column]) for seed in seeds]
            if column == "average":
                cells.append(_difference([100 * (a / b - 1) for a, b in pair], "+.1f", "%"))
            else:
                cells.append(_difference([a - b for a, b in pair], "+.3f", ""))
        print(f"| {one} to {other} | {len(seeds)} | {' | '.join(cells)} |")


def _difference(values: list[float], form: str, unit: str) -> str:
    """Mean, its standard error, p that it is 0, and its interval over the seeds."""
    mean = f"{fmean(values):{form}}{unit}"
    if len(values) < 2:
        return mean
    error = f"{stdev(values) / math.sqrt(len(values)):{form[1:]}}"
    p = float(ttest_1samp(values, 0).pvalue)
    drawn = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0)
    low, high = drawn.confidence_interval
    return f"{mean} ± {error} (p {p:.2g}; {low:{form}} to {high:{form}})"


def _mean_losses(rows: list[Row]) -> dict[str, float]:
    return {d: fmean(row["loss"][d] for row in rows) for d in rows[0]["loss"]}


def _print_domains(rows: list[Row], variants: list[str]) -> None:
    domains = list(rows[0]["loss"])
    print(f"\n| loss (share) | {' | '.join(domains)} |\n|---|{'---:|' * len(domains)}")
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant]
        loss = _mean_losses(own)
        share = {d: fmean(row["share"][d] for row in own) for d in domains}
        cells = (f"{loss[d]:.3f} ({100 * share[d]:.0f}%)" for d in domains)
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
