"""Figures of training itself: loss of the batches, throughput, sparsity, convergence of masks."""

import math
from collections.abc import Callable

from drpruning.report.drawing import INK, LARGE, SMALL, ink_style, panel, percent, points
from drpruning.report.figure_parts import REFERENCE, Figure
from drpruning.report.formats import drawable, is_drawable
from drpruning.report.timeline import Timeline
from drpruning.runs.lines import StepPoint
from drpruning.runs.records import PhaseRecord, RunRecord


def training_loss(timeline: Timeline, prefix: str) -> Figure | None:
    """Language modelling loss of the training batches over steps."""
    figure = Figure(
        ident=f"{prefix}-training-loss",
        title="Training loss",
        caption="Mean loss of the training batches. These follow the data ratio, so the level also "
        "moves when the ratio does; compare models by their validation loss.",
        kind="perplexity",
        size=LARGE,
    )
    return _line(figure, timeline, "loss", lambda point: point.loss)


def throughput(timeline: Timeline, prefix: str) -> Figure | None:
    """Tokens per second over steps."""
    figure = Figure(
        ident=f"{prefix}-throughput",
        title="Throughput",
        caption="Tokens that were trained on per second, without the time of evaluations.",
        kind="number",
        unit="tokens per second",
        size=LARGE,
    )
    return _line(figure, timeline, "throughput", lambda point: point.tokens_per_second)


def _line(
    figure: Figure, timeline: Timeline, gid: str, pick: Callable[[StepPoint], float]
) -> Figure | None:
    """Draw one line of what was logged at steps; None where nothing was."""
    logged = [(x, pick(point)) for x, point in timeline.steps if is_drawable(pick(point))]
    if not logged:
        return None
    axis = panel(figure.size)
    places, values = zip(*logged, strict=True)
    axis.plot(places, values, color=INK, gid=gid, label=gid, **{"linewidth": 1.3} | points(values))
    if figure.kind == "number":
        from matplotlib.ticker import FuncFormatter

        axis.set_ylim(bottom=min(0.0, *values))
        axis.yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{v:,.0f}" if abs(v) < 1e6 else f"{v:.2g}")
        )
    figure.add(axis, timeline)
    return figure


def sparsity(timeline: Timeline, prefix: str) -> Figure | None:
    """Expected sparsity of each granularity against its scheduled target."""
    logged = [(x, point) for x, point in timeline.steps if point.sparsity]
    names = list(dict.fromkeys(name for _, point in logged for name in point.sparsity or {}))
    if not names:
        return None
    figure = Figure(
        ident=f"{prefix}-sparsity",
        title="Sparsity against its target",
        caption="Share of each kind of part that the masks remove in expectation; the solid line "
        "should settle on the dashed one.",
        kind="percent",
        unit="share removed",
    )
    figure.explain(("expected sparsity", {"color": INK}), ("its target", REFERENCE))
    places = [x for x, _ in logged]
    for name in names:
        axis = panel(SMALL, title=name)
        target = [drawable((p.target_sparsity or {}).get(name, math.nan)) for _, p in logged]
        actual = [drawable((p.sparsity or {}).get(name, math.nan)) for _, p in logged]
        axis.plot(places, target, gid=f"target-{name}", label="target", **REFERENCE)
        look = {"color": INK} | points(actual)
        axis.plot(places, actual, gid=f"sparsity-{name}", label="sparsity", **look)
        axis.set_ylim(bottom=0.0)
        percent(axis)
        figure.add(axis, timeline, name)
    return figure


def mask_convergence(run: RunRecord, prefix: str) -> Figure | None:
    """Agreement of the plan at each evaluation with the final plan (Appendix B.1, Figure 7)."""
    rows = run.similarity
    names = list(dict.fromkeys(name for row in rows for name in row.similarity))
    if not names:
        return None
    figure = Figure(
        ident=f"{prefix}-mask-convergence",
        title="Convergence of the masks",
        caption="Share of parts on which the plan that would have been cut at a step agrees with "
        "the plan that was cut. Masks have converged where all lines stay near 100%.",
        kind="percent",
        unit="same decision",
        size=LARGE,
    )
    timeline = Timeline.part(PhaseRecord("prune"), rows[0].step, rows[-1].step)
    place = timeline.stretches[0].place
    axis = panel(LARGE)
    for index, name in enumerate(names):
        values = [drawable(row.similarity.get(name, math.nan)) for row in rows]
        look = {**ink_style(index), **points(values)}
        places = [place(row.step) for row in rows]
        axis.plot(places, values, gid=f"similarity-{name}", label=name, **look)
        figure.explain((name, ink_style(index)))
    percent(axis)
    figure.add(axis, timeline)
    return figure
