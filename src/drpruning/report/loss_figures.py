"""Figures of validation losses: against the source and references, and the excess steered by."""

from collections.abc import Mapping, Sequence
from typing import Any

from drpruning.report.drawing import INK, LARGE, MUTED, SMALL, panel, points
from drpruning.report.figure_parts import (
    REFERENCE,
    Figure,
    average,
    divergences,
    draw_labelled,
    own_colour,
)
from drpruning.report.formats import is_drawable
from drpruning.report.timeline import Points, Timeline, present, series
from drpruning.runs.lines import EvalPoint
from drpruning.runs.reference_origin import is_combined

SOURCE_STYLE: dict[str, Any] = {"color": INK, "linestyle": (0, (1.2, 1.8)), "linewidth": 1.2}

_LOSS_CAPTION = (
    "Each panel is one domain with its own scale. The distance from the loss to its reference loss "
    "is the excess loss that draws data to a domain."
)
_COMBINED_CAPTION = (
    "Each panel is one domain with its own scale. Two distances draw data to a domain: from the "
    "loss to its reference loss, and from the loss to its forecast (at most what the curve still "
    "falls). The excess loss is their geometric mean, with weights 3/4 and 1/4."
)


def against_source(
    timeline: Timeline, domains: Sequence[str], source: Mapping[str, float], prefix: str
) -> Figure | None:
    """The perplexity of each domain over the source model's; plain where there is no source.

    Args:
        timeline: The phases of the run.
        domains: All domains of the page; the position of one decides its colour.
        source: Losses of the source model in nats, measured on the same blocks; may be empty.
        prefix: Begins the id of the figure.
    """
    evals = timeline.evals
    shown = present(evals, domains, lambda point: point.loss)
    if source:
        shown = [name for name in shown if is_drawable(source.get(name))]
    if not shown:
        return None
    figure = Figure(
        ident=f"{prefix}-overview",
        title="Perplexity against the source model" if source else "Perplexity",
        caption="Validation perplexity of each domain over the source model's: 1× is as good as "
        "the source."
        if source
        else "Validation perplexity of each domain; lower is better.",
        kind="times" if source else "perplexity",
        size=LARGE,
    )
    lines = {}
    for name in shown:
        places, losses = series(evals, lambda point: point.loss, name)
        lines[name] = places, [loss - source.get(name, 0.0) for loss in losses]

    def prepare(axis: Any) -> None:
        if source:
            axis.axhline(0.0, **SOURCE_STYLE)
        if len(shown) > 1:
            places, means = average(evals, shown)
            base = sum(source.get(name, 0.0) for name in shown) / len(shown)
            means = [mean - base for mean in means]
            axis.plot(places, means, gid="average", label="average", color=INK, linewidth=3.0)

    if source:
        figure.explain(("the source", SOURCE_STYLE))
    if len(shown) > 1:
        figure.explain(("average over domains", {"color": INK, "linewidth": 3.0}))
    draw_labelled(figure, timeline, domains, lines, prepare)
    return figure


def perplexity(
    timeline: Timeline, domains: Sequence[str], source: Mapping[str, float], prefix: str
) -> Figure | None:
    """Loss and reference loss of each domain, and the source's, in a panel of its own."""
    evals = timeline.evals
    shown = present(evals, domains, lambda point: point.loss)
    if not shown:
        return None
    figure = Figure(
        ident=f"{prefix}-perplexity",
        title="Perplexity of each domain",
        caption=_COMBINED_CAPTION if are_combined(evals) else _LOSS_CAPTION,
        kind="perplexity",
    )
    has_reference = bool(present(evals, domains, lambda point: point.reference_loss))
    figure.explain(
        ("the model on validation data", {"color": INK}),
        *([("its reference loss", REFERENCE)] if has_reference else []),
        *([("the source model", SOURCE_STYLE)] if source else []),
    )
    for name in shown:
        axis = panel(SMALL, title=name)
        if is_drawable(source.get(name)):
            axis.axhline(source[name], gid=f"source-{name}", **SOURCE_STYLE)
        references = series(evals, lambda point: point.reference_loss, name)
        axis.plot(*references, gid=f"reference-{name}", label="reference", **REFERENCE)
        places, losses = series(evals, lambda point: point.loss, name)
        look = own_colour(domains, name) | points(losses)
        axis.plot(places, losses, gid=f"loss-{name}", label="model", **look)
        figure.add(axis, timeline, name)
    return figure


def are_combined(evals: Points) -> bool:
    """Whether reference losses and forecasts both counted at an evaluation."""
    return any(is_combined(point, name) for _, point in evals for name in point.excess)


def excess_loss(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """Excess losses: the scores that the ratio follows."""
    combined = (
        ", combined with validation loss minus forecast once there is one (the geometric mean of "
        "the two with weights 3/4 and 1/4, 0 where one of them is negative)"
        if are_combined(timeline.evals)
        else ""
    )
    figure = Figure(
        ident=f"{prefix}-excess",
        title="Excess loss",
        caption=f"Validation loss minus reference loss{combined}. Policies that follow it give "
        "more data to the domains that are above the others.",
        kind="nats",
        size=LARGE,
    )
    return _from_zero(figure, timeline, domains, "excess")


def divergence(timeline: Timeline, domains: Sequence[str], prefix: str) -> Figure | None:
    """Divergence from the teacher in the training batches of each domain."""
    figure = Figure(
        ident=f"{prefix}-divergence",
        title="Divergence from the teacher",
        caption="KL divergence from the teacher's distribution of the next token to the trained "
        "model's: the mean over the tokens that a domain was trained on since the evaluation "
        "before. At 0 the model predicts what the teacher does.",
        kind="nats",
        size=LARGE,
    )
    return _from_zero(figure, timeline, domains, "divergence")


def _from_zero(
    figure: Figure, timeline: Timeline, domains: Sequence[str], field: str
) -> Figure | None:
    """Draw one line per domain and a line at 0; None where there is nothing to draw."""

    def pick(point: EvalPoint) -> Mapping[str, float]:
        return point.excess if field == "excess" else divergences(point)

    evals = timeline.evals
    lines = {name: series(evals, pick, name) for name in present(evals, domains, pick)}
    if not lines:
        return None

    def prepare(axis: Any) -> None:
        axis.axhline(0.0, color=MUTED, linewidth=1.0)

    draw_labelled(figure, timeline, domains, lines, prepare)
    return figure
