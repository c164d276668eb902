"""All figures of a phase, and those of training, masks and the comparison of runs."""

import math
from collections.abc import Callable, Sequence

from drpruning.report.drawing import (
    INK,
    ink_style,
    legend,
    panels,
    percent,
    points,
    shorten,
)
from drpruning.report.figure_parts import REFERENCE, Figure, drawable, finish, is_drawable
from drpruning.report.forecast_figures import forecast_curves
from drpruning.report.loss_figures import divergence, excess_loss, validation_loss
from drpruning.report.ratio_figures import ratio, realised_share, reference_ratio, steering
from drpruning.runs.records import PhaseRecord, RunRecord


def phase_figures(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> list[Figure]:
    """Draw all that the records of a phase can show.

    Args:
        phase: Its records.
        domains: All domains of the page; the position of one decides its colour.
        prefix: Begins the id of each figure.
    """
    prefix = f"{prefix}-{phase.name}"
    made = (
        training_loss(phase, prefix),
        validation_loss(phase, domains, prefix),
        divergence(phase, domains, prefix),
        forecast_curves(phase, domains, prefix),
        ratio(phase, domains, prefix),
        reference_ratio(phase, domains, prefix),
        steering(phase, prefix),
        realised_share(phase, domains, prefix),
        excess_loss(phase, domains, prefix),
        sparsity(phase, prefix),
    )
    return [figure for figure in made if figure is not None]


def training_loss(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Language modelling loss of the training batches over steps."""
    logged = [point for point in phase.steps if is_drawable(point.loss)]
    if not logged:
        return None
    figure, (axis,) = panels(1, columns=1, height=2.2)
    values = [point.loss for point in logged]
    axis.plot(
        [p.step for p in logged], values, color=INK, gid="loss", linewidth=1.1, **points(values)
    )
    axis.set_ylabel("nats per token")
    caption = (
        "Mean loss of the training batches. These follow the data ratio, so the level also moves "
        "when the ratio does; compare models by their validation loss."
    )
    return finish(figure, f"{prefix}-training-loss", "Training loss", caption)


def sparsity(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Expected sparsity per granularity against its scheduled target."""
    logged = [point for point in phase.steps if point.sparsity]
    names = list(dict.fromkeys(name for point in logged for name in point.sparsity or {}))
    if not names:
        return None
    figure, axes = panels(len(names), columns=4 if len(names) != 3 else 3, height=1.75)
    steps = [point.step for point in logged]
    for axis, name in zip(axes, names, strict=True):
        target = [drawable((point.target_sparsity or {}).get(name, math.nan)) for point in logged]
        actual = [drawable((point.sparsity or {}).get(name, math.nan)) for point in logged]
        axis.plot(steps, target, gid=f"target-{name}", **REFERENCE)
        axis.plot(steps, actual, gid=f"sparsity-{name}", color=INK, **points(actual))
        axis.set_title(shorten(name), loc="left", parse_math=False)
        axis.set_ylim(bottom=0.0)
        percent(axis)
    legend(
        figure,
        ("expected sparsity", {"color": INK, "linewidth": 1.4}),
        ("its target", REFERENCE),
    )
    caption = (
        "Share of each kind of part that the masks remove in expectation; the solid line should "
        "settle on the dashed one."
    )
    return finish(figure, f"{prefix}-sparsity", "Sparsity against its target", caption)


def mask_convergence(run: RunRecord, prefix: str) -> Figure | None:
    """Agreement of the plan at each evaluation with the final plan (Appendix B.1, Figure 7)."""
    rows = run.similarity
    names = list(dict.fromkeys(name for row in rows for name in row.similarity))
    if not names:
        return None
    figure, (axis,) = panels(1, columns=1, height=2.4)
    for index, name in enumerate(names):
        values = [drawable(row.similarity.get(name, math.nan)) for row in rows]
        look = {**ink_style(index), **points(values)}
        axis.plot([row.step for row in rows], values, gid=f"similarity-{name}", **look)
    percent(axis)
    axis.set_ylabel("same decision")
    legend(figure, *((shorten(name), ink_style(index)) for index, name in enumerate(names)))
    caption = (
        "Share of parts on which the plan that would have been cut at a step agrees with the plan "
        "that was cut. Masks have converged where all lines stay near 100%."
    )
    return finish(figure, f"{prefix}-mask-convergence", "Convergence of the masks", caption)


def comparison_figure(
    ident: str, runs: Sequence[tuple[str, PhaseRecord]], domains: Sequence[str]
) -> Figure | None:
    """Average and worst-domain validation loss of several runs in one phase, over common domains.

    Args:
        ident: The figure's id.
        runs: Label and records of each.
        domains: Those that all runs have. An evaluation at which the loss of one is not known
            leaves a gap: the average would be of other domains than the rest.
    """
    figure, axes = panels(2, columns=2, height=2.6)
    summaries: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
        ("average", lambda losses: sum(losses) / len(losses)),
        ("worst", max),
    )
    for axis, (kind, summary) in zip(axes, summaries, strict=True):
        for index, (_, phase) in enumerate(runs):
            rows = [[drawable(p.loss.get(d, math.nan)) for d in domains] for p in phase.evals]
            values = [math.nan if any(map(math.isnan, row)) else summary(row) for row in rows]
            look = ink_style(index) | points(values)
            axis.plot([p.step for p in phase.evals], values, gid=f"{kind}-{index}", **look)
        axis.set_title("average over domains" if kind == "average" else "worst domain", loc="left")
    axes[0].set_ylabel("nats per token")
    legend(figure, *((shorten(label, 30), ink_style(i)) for i, (label, _) in enumerate(runs)))
    caption = f"Validation loss, lower is better; over the domains {', '.join(domains)}."
    return finish(figure, ident, "Validation loss of the runs", caption)
