"""The figures of the report. Each answers None where its data is not there yet."""

import math
from collections.abc import Callable, Sequence

from drpruning.report.captions import finite, largest_moves, settled_step
from drpruning.report.curves import (
    REFERENCE,
    Figure,
    draw_labelled,
    draw_shares,
    finish,
    height_for,
    own_colour,
    present,
    series,
)
from drpruning.report.drawing import (
    INK,
    MUTED,
    ink_style,
    legend,
    panels,
    percent,
    points,
    shorten,
    signed,
)
from drpruning.report.loss_figure import validation_loss
from drpruning.report.records import PhaseRecord, RunRecord
from drpruning.report.steering_figure import steering


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
    logged = [point for point in phase.steps if math.isfinite(point.loss)]
    if not logged:
        return None
    figure, (axis,) = panels(1, columns=1, height=2.2)
    values = [point.loss for point in logged]
    axis.plot(
        [p.step for p in logged], values, color=INK, gid="loss", linewidth=1.1, **points(values)
    )
    axis.set_ylabel("nats a token")
    caption = (
        f"Mean loss of the training batches: {values[0]:.3f} at step {logged[0].step}, "
        f"{values[-1]:.3f} at step {logged[-1].step}. The batches follow the data ratio, so the "
        "level also moves when the ratio does; compare models by their validation loss."
    )
    return finish(figure, f"{prefix}-training-loss", "Training loss", caption)


def ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The data ratio over steps."""
    figure = draw_shares(phase.evals, domains, lambda point: point.ratio)
    if figure is None:
        return None
    return finish(
        figure,
        f"{prefix}-ratio",
        "Data ratio",
        "Share of each domain in the batches, set at each evaluation for the steps that follow. "
        + largest_moves(phase.evals, lambda point: point.ratio),
    )


def reference_ratio(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """The reference ratio over steps: the centre of the ball of the optimization."""
    figure = draw_shares(phase.evals, domains, lambda point: point.reference_ratio)
    if figure is None:
        return None
    return finish(
        figure,
        f"{prefix}-reference-ratio",
        "Reference ratio",
        "The ratio from which the data ratio may depart only so far; it follows slowly, from the "
        "point of training at which it is released. "
        + largest_moves(phase.evals, lambda point: point.reference_ratio),
    )


def realised_share(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Share of the blocks that were trained on, against the ratio that was asked for."""
    shown = present(phase.evals, domains, lambda point: point.realised_share)
    if not shown:
        return None
    pairs = list(zip(phase.evals, phase.evals[1:], strict=False))
    figure, axes = panels(len(shown), columns=3, height=1.6)
    worst, worst_name = 0.0, shown[0]
    for axis, name in zip(axes, shown, strict=True):
        asked = series(phase.evals, lambda point: point.ratio, name)
        axis.step(*asked, where="post", gid=f"ratio-{name}", color=MUTED, linewidth=1.0)
        middle = [(before.step + after.step) / 2 for before, after in pairs]
        got = [after.realised_share.get(name, math.nan) for _, after in pairs]
        colour = own_colour(domains, name)["color"]
        axis.plot(middle, got, linestyle="", marker="o", color=colour, gid=f"realised-{name}")
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
        percent(axis)
        for (before, _), share in zip(pairs, got, strict=True):
            gap = abs(share - before.ratio.get(name, math.nan))
            if gap > worst:
                worst, worst_name = gap, name
    legend(
        figure,
        ("ratio", {"color": MUTED, "linewidth": 1.0}),
        ("realised share of the segment", {"color": INK, "linestyle": "", "marker": "o"}),
    )
    caption = (
        "Dots are the shares of the segments as trained, the line is what was asked for; they "
        f"should lie on it. The largest difference is {100 * worst:.2f} percentage points "
        f"({worst_name})."
    )
    return finish(figure, f"{prefix}-realised-share", "Realised share against ratio", caption)


def excess_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Loss minus reference loss: the score that the ratio follows."""
    shown = present(phase.evals, domains, lambda point: point.excess)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    axis.axhline(0.0, color=MUTED, linewidth=0.8)
    draw_labelled(axis, phase.evals, domains, shown, lambda point: point.excess)
    axis.set_ylabel("nats a token")
    last = {n: series(phase.evals, lambda point: point.excess, n)[1][-1] for n in shown}
    top = max(last, key=lambda name: last[name])
    caption = (
        "Validation loss minus reference loss. Policies that follow it give more "
        "data to the domains that are above the others. At "
        f"the last evaluation {top} is farthest from its reference ({signed(last[top])})."
    )
    return finish(figure, f"{prefix}-excess", "Excess loss", caption)


def sparsity(phase: PhaseRecord, prefix: str) -> Figure | None:
    """Expected sparsity per granularity against its scheduled target."""
    names = list(dict.fromkeys(name for point in phase.steps for name in point.sparsity))
    if not names:
        return None
    figure, axes = panels(len(names), columns=4 if len(names) != 3 else 3, height=1.75)
    steps = [point.step for point in phase.steps]
    gaps = {}
    for axis, name in zip(axes, names, strict=True):
        target = [point.target_sparsity.get(name, math.nan) for point in phase.steps]
        actual = [point.sparsity.get(name, math.nan) for point in phase.steps]
        axis.plot(steps, target, gid=f"target-{name}", **REFERENCE)
        axis.plot(steps, actual, gid=f"sparsity-{name}", color=INK, **points(actual))
        axis.set_title(shorten(name), loc="left", parse_math=False)
        axis.set_ylim(bottom=0.0)
        percent(axis)
        gaps[name] = abs(actual[-1] - target[-1])
    legend(
        figure,
        ("expected sparsity", {"color": INK, "linewidth": 1.4}),
        ("its target", REFERENCE),
    )
    widest = max(gaps, key=lambda name: gaps[name])
    caption = (
        "Share of each kind of part that the masks remove in expectation; the solid line should "
        "settle on the dashed one. At the last logged step the largest gap is "
        f"{100 * gaps[widest]:.2f} percentage points ({widest})."
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
        values = [row.similarity.get(name, math.nan) for row in rows]
        look = {**ink_style(index), **points(values)}
        axis.plot([row.step for row in rows], values, gid=f"similarity-{name}", **look)
    percent(axis)
    axis.set_ylabel("same decision")
    legend(figure, *((shorten(name), ink_style(index)) for index, name in enumerate(names)))
    settled = settled_step(rows, names, 0.95)
    caption = (
        "Share of parts on which the plan that would have been cut at a step agrees with the one "
        "that was cut. "
    )
    if settled is not None:
        caption += f"From step {settled} on every granularity agrees on at least 95%."
    return finish(figure, f"{prefix}-mask-convergence", "Convergence of the masks", caption)


def comparison(title: str, ident: str, runs: Sequence[tuple[str, PhaseRecord]]) -> Figure | None:
    """Average and worst-domain validation loss of several runs in one phase.

    Args:
        title: What to call the phase.
        ident: The figure's id.
        runs: Label and records of each.
    """
    runs = [(label, phase) for label, phase in runs if any(finite(p.loss) for p in phase.evals)]
    if len(runs) < 2:
        return None
    figure, axes = panels(2, columns=2, height=2.6)
    summaries: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
        ("average", lambda losses: sum(losses) / len(losses)),
        ("worst", max),
    )
    entries = [(shorten(label, 30), ink_style(index)) for index, (label, _) in enumerate(runs)]
    said = []
    for axis, (kind, summary) in zip(axes, summaries, strict=True):
        ends = []
        for index, (label, phase) in enumerate(runs):
            evals = [point for point in phase.evals if finite(point.loss)]
            values = [summary(finite(point.loss)) for point in evals]
            axis.plot(
                [point.step for point in evals],
                values,
                gid=f"{kind}-{index}",
                **ink_style(index),
                **points(values),
            )
            ends.append(f"{values[-1]:.3f} ({label}, step {evals[-1].step})")
        axis.set_title("average over domains" if kind == "average" else "worst domain", loc="left")
        said.append(f"{kind} {', '.join(ends)}")
    axes[0].set_ylabel("nats a token")
    legend(figure, *entries)
    caption = f"Validation loss, lower is better. Last evaluation: {'; '.join(said)}."
    return finish(figure, ident, f"{title}: validation loss of the runs", caption)
