"""All figures of a run, and those that compare runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drpruning.report.drawing import INK, MARKERS, MUTED, SMALL, Size, ink_style, panel, points
from drpruning.report.figure_parts import Figure
from drpruning.report.forecast_figures import forecast_curves, forecasts
from drpruning.report.formats import drawable, is_drawable
from drpruning.report.loss_figures import (
    SOURCE_STYLE,
    against_source,
    divergence,
    excess_loss,
    perplexity,
)
from drpruning.report.ratio_figures import ratio, realised_share, reference_ratio, steering
from drpruning.report.scales import two_units
from drpruning.report.timeline import Timeline
from drpruning.report.training_figures import mask_convergence, sparsity, throughput, training_loss
from drpruning.runs.records import PhaseRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """The figures of one run by the part of the page that they belong to."""

    overview: Figure | None
    losses: list[Figure]
    ratios: list[Figure]
    forecasts: list[Figure]
    masks: list[Figure]
    training: list[Figure]


def run_figures(
    run: RunRecord, domains: Sequence[str], source: Mapping[str, float], prefix: str
) -> RunFigures:
    """Draw all that the records of a run can show.

    Args:
        run: Its records.
        domains: All domains of the page; the position of one decides its colour.
        source: Losses of the source model on the run's validation data; empty where not known.
        prefix: Begins the id of each figure.
    """
    both = Timeline.of([p for p in run.phases.values() if p.evals or p.steps])
    pruned = Timeline.of([p for p in run.phases.values() if any(s.sparsity for s in p.steps)])

    def made(*figures: Figure | None) -> list[Figure]:
        return [figure for figure in figures if figure is not None]

    return RunFigures(
        overview=against_source(both, domains, source, prefix),
        losses=made(perplexity(both, domains, source, prefix), divergence(both, domains, prefix)),
        ratios=made(
            ratio(both, domains, prefix),
            reference_ratio(both, domains, prefix),
            excess_loss(both, domains, prefix),
            steering(both, prefix),
            realised_share(both, domains, prefix),
        ),
        forecasts=made(
            forecasts(both, domains, prefix),
            *(forecast_curves(phase, domains, prefix) for phase in run.phases.values()),
        ),
        masks=made(mask_convergence(run, prefix), sparsity(pruned, prefix)),
        training=made(throughput(both, prefix), training_loss(both, prefix)),
    )


def comparison_figure(
    ident: str, runs: Sequence[tuple[str, PhaseRecord]], domains: Sequence[str]
) -> Figure:
    """Average and worst-domain validation loss of several runs in one phase, over common domains.

    Args:
        ident: The figure's id.
        runs: Label and records of each.
        domains: Those that all runs have. An evaluation at which the loss of one is not known
            leaves a gap: the average would be of other domains than the rest.
    """
    figure = Figure(
        ident=ident,
        title="Perplexity of the runs",
        caption=f"On validation data, lower is better; over the domains {', '.join(domains)}.",
        kind="perplexity",
    )
    figure.explain(*((label, ink_style(i)) for i, (label, _) in enumerate(runs)))
    longest = max((phase for _, phase in runs), key=lambda phase: phase.last_step)
    timeline = Timeline.of([longest])
    place = timeline.stretches[0].place
    summaries: tuple[tuple[str, str, Callable[[Sequence[float]], float]], ...] = (
        ("average", "average over domains", lambda losses: sum(v / len(losses) for v in losses)),
        ("worst", "worst domain", max),
    )
    for kind, title, summary in summaries:
        axis = panel(SMALL, title=title)
        for index, (label, phase) in enumerate(runs):
            rows = [[drawable(p.loss.get(d, math.nan)) for d in domains] for p in phase.evals]
            values = [math.nan if any(map(math.isnan, row)) else summary(row) for row in rows]
            look = ink_style(index) | points(values)
            places = [place(point.step) for point in phase.evals]
            axis.plot(places, values, gid=f"{kind}-{index}", label=label, **look)
        figure.add(axis, timeline, title)
    return figure


def times_source_figure(
    ident: str, domains: Sequence[str], models: Mapping[str, Mapping[str, float]]
) -> Figure | None:
    """What several models ended with, per domain: perplexity over the source's.

    Args:
        ident: The figure's id.
        domains: Those to show, from top to bottom.
        models: Label -> domain -> factor.
    """
    rows = [
        name
        for name in domains
        if any(v > 0 and is_drawable(v) for v in (f.get(name, math.nan) for f in models.values()))
    ]
    if not rows:
        return None
    figure = Figure(
        ident=ident,
        title="Perplexity against the source model",
        caption="Perplexity of the models that the runs ended with, over the source model's: 1× is "
        "as good as the source.",
        kind="times",
        size=Size(430, 62 + 24 * len(rows)),
    )
    figure.explain(("the source", SOURCE_STYLE))
    axis = panel(figure.size, left=24 + 7.4 * max(len(name[:14]) for name in rows))
    axis.axvline(0.0, **SOURCE_STYLE)
    for index, (label, factors) in enumerate(models.items()):
        look = {
            "color": (INK, MUTED)[index % 2],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 7,
            "linestyle": "",
            "markerfacecolor": (INK, "none")[index % 2],
        }
        known = [
            (math.log(factor), row)
            for row, name in enumerate(rows)
            if is_drawable(factor := factors.get(name, math.nan)) and factor > 0
        ]
        axis.plot([x for x, _ in known], [y for _, y in known], gid=f"model-{index}", **look)
        figure.explain((label, look))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(
        range(len(rows)), [name if len(name) <= 14 else name[:13] + "…" for name in rows]
    )
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    two_units(axis, "times", horizontal=True)
    figure.add(axis, None)
    return figure
