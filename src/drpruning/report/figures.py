"""Sentences under the figures, computed from the data they show."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    ink_style,
    label_lines,
    legend,
    panels,
    percent,
    points,
    series_style,
    shorten,
    signed,
    to_svg,
)
from drpruning.runs.records import EvalPoint, PhaseRecord, RunRecord, SimilarityPoint

Numbers = Mapping[str, float]


def finite(values: Numbers) -> list[float]:
    """The values that are known."""
    return [value for value in values.values() if math.isfinite(value)]


def range_of_changes(changes: Numbers) -> str:
    """Which domain's loss changed least and most."""
    lowest = min(changes, key=lambda name: changes[name])
    highest = max(changes, key=lambda name: changes[name])
    return (
        "From the first evaluation to the last the loss changed by between "
        f"{signed(changes[lowest])} ({lowest}) and {signed(changes[highest])} nats ({highest})."
    )


def largest_moves(evals: Sequence[EvalPoint], pick: Callable[[EvalPoint], Numbers]) -> str:
    """What grew and what shrank by the largest factor between first and last evaluation."""
    known = [pick(point) for point in evals if finite(pick(point))]
    first, last = known[0], known[-1]
    factors = {name: last[name] / first[name] for name in last if first.get(name, 0.0) > 0}
    factors = {name: factor for name, factor in factors.items() if math.isfinite(factor)}
    if not factors or max(abs(factor - 1) for factor in factors.values()) < 0.005:
        return "It has not moved."
    up = max(factors, key=lambda name: factors[name])
    down = min(factors, key=lambda name: factors[name])
    return (
        f"Between the first and the last evaluation {up} moved most upwards (to "
        f"{factors[up]:.2f} times its share) and {down} most downwards ({factors[down]:.2f} times)."
    )


def settled_step(rows: Sequence[SimilarityPoint], names: Sequence[str], level: float) -> int | None:
    """The first step from which all similarities stay at ``level`` or above."""
    settled = None
    for row in reversed(rows):
        if not all(row.similarity.get(name, 0.0) >= level for name in names):
            break
        settled = row.step
    return settled


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page.

    Attributes:
        ident: The ``id`` of its ``<svg>``.
        title: What it shows.
        caption: One or two sentences that say what to read from it; the SVG's description too.
        svg: The element itself.
    """

    ident: str
    title: str
    caption: str
    svg: str


REFERENCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (5, 2)), "linewidth": 1.0}
"""How a line is drawn that another one should follow."""


def finish(figure: Any, ident: str, title: str, caption: str) -> Figure:
    """Render a drawing as a figure of the page; its caption describes the SVG too."""
    caption = caption.strip()
    svg = to_svg(figure, ident=ident, title=title, description=caption)
    return Figure(ident=ident, title=title, caption=caption, svg=svg)


def present(
    evals: Sequence[EvalPoint], domains: Sequence[str], pick: Callable[[EvalPoint], Numbers]
) -> list[str]:
    """The domains for which at least one evaluation knows the value."""
    return [
        name
        for name in domains
        if any(math.isfinite(pick(point).get(name, math.nan)) for point in evals)
    ]


def series(
    evals: Sequence[EvalPoint], pick: Callable[[EvalPoint], Numbers], name: str
) -> tuple[list[int], list[float]]:
    """Steps and values at which the value is known."""
    known = [(point.step, pick(point).get(name, math.nan)) for point in evals]
    known = [(step, value) for step, value in known if math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


def own_colour(domains: Sequence[str], name: str) -> dict[str, Any]:
    """For a panel of its own: the domain's colour, solid (dashes there mean the reference)."""
    return {"color": series_style(domains.index(name))["color"]}


def height_for(lines: int) -> float:
    """Inches that a panel needs for the names of so many lines at their ends."""
    return max(2.5, 0.9 + 0.155 * lines)


def draw_labelled(
    axis: Any,
    evals: Sequence[EvalPoint],
    domains: Sequence[str],
    shown: Sequence[str],
    pick: Callable[[EvalPoint], Numbers],
    **style: Any,
) -> None:
    """One line a domain with its name at the right end."""
    ends = []
    for name in shown:
        steps, values = series(evals, pick, name)
        look = series_style(domains.index(name))
        axis.plot(steps, values, gid=f"line-{name}", **look, **points(values), **style)
        ends.append((steps[-1], values[-1], name, look["color"]))
    label_lines(axis, ends)


def draw_shares(
    evals: Sequence[EvalPoint], domains: Sequence[str], pick: Callable[[EvalPoint], Numbers]
) -> Any:
    """A drawing of shares over steps; None where there are none."""
    shown = present(evals, domains, pick)
    if not shown:
        return None
    figure, (axis,) = panels(1, columns=1, height=height_for(len(shown)))
    positive = [v for point in evals for v in pick(point).values() if v > 0]
    if positive and max(positive) > 8 * min(positive):
        axis.set_yscale("log")
    percent(axis)
    draw_labelled(axis, evals, domains, shown, pick, drawstyle="steps-post")
    axis.set_ylabel("share, log scale" if axis.get_yscale() == "log" else "share")
    return figure


_FORECAST: dict[str, Any] = {
    "color": MUTED,
    "linestyle": "",
    "marker": "x",
    "markersize": 3.2,
    "markeredgewidth": 0.7,
}
_REFUSED: dict[str, Any] = _FORECAST | {"marker": "o", "markerfacecolor": "none"}
_INTERVAL: dict[str, Any] = {"color": MUTED, "alpha": 0.2, "linewidth": 0}
_MOST_MARKS = 30


def validation_loss(phase: PhaseRecord, domains: Sequence[str], prefix: str) -> Figure | None:
    """Loss, reference loss and forecasts of each domain in a panel of its own."""
    shown = present(phase.evals, domains, lambda point: point.loss)
    if not shown:
        return None
    figure, axes = panels(len(shown), columns=3, height=1.75)
    beyond = False
    for axis, name in zip(axes, shown, strict=True):
        beyond |= _draw_forecasts(axis, phase.evals, name)
        references = series(phase.evals, lambda point: point.reference_loss, name)
        axis.plot(*references, gid=f"reference-{name}", **REFERENCE)
        steps, losses = series(phase.evals, lambda point: point.loss, name)
        look = own_colour(domains, name) | points(losses)
        axis.plot(steps, losses, gid=f"loss-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
    axes[0].set_ylabel("nats a token")
    legend(figure, *_entries(phase.evals), columns=5)
    caption = _loss_caption(phase.evals, shown, beyond=beyond)
    return finish(figure, f"{prefix}-validation-loss", "Validation loss per domain", caption)


def _draw_forecasts(axis: Any, evals: Sequence[EvalPoint], name: str) -> bool:
    """Draw intervals and forecasts, those not used apart; return whether any lies outside."""
    low, high = _limits(evals, name)
    axis.set_ylim(low, high)
    band = _band(evals, name, (2 * low - high, 2 * high - low))
    axis.fill_between(*band, gid=f"interval-{name}", **_INTERVAL)
    used = series([p for p in evals if name not in p.explanation.refused], _forecast, name)
    refused = series([p for p in evals if name in p.explanation.refused], _forecast, name)
    axis.plot(*used, gid=f"forecast-{name}", markevery=_every(used[0]), **_FORECAST)
    axis.plot(*refused, gid=f"refused-{name}", markevery=_every(refused[0]), **_REFUSED)
    return any(not low <= value <= high for value in used[1] + refused[1])


def _every(steps: Sequence[int]) -> int:
    """Of how many marks one is drawn, so that they can be told apart."""
    return math.ceil(len(steps) / _MOST_MARKS) or 1


def _forecast(point: EvalPoint) -> dict[str, float]:
    return point.forecast


def _limits(evals: Sequence[EvalPoint], name: str) -> tuple[float, float]:
    """The scale of a panel: its losses and references, whatever the forecasts are."""
    kept = series(evals, lambda point: point.loss, name)[1]
    kept += series(evals, lambda point: point.reference_loss, name)[1]
    margin = 0.06 * (max(kept) - min(kept)) or 0.05
    return min(kept) - margin, max(kept) + margin


def _band(
    evals: Sequence[EvalPoint], name: str, limits: tuple[float, float]
) -> tuple[list[float], list[float], list[float]]:
    """The intervals as x, low and high of a band with gaps, cut off at the limits.

    Each interval reaches half-way to the evaluations before and after.
    """
    steps = [float(point.step) for point in evals]
    middles = [(before + after) / 2 for before, after in pairwise(steps)]
    edges = [steps[0], *middles, steps[-1]] if middles else [steps[0] - 0.5, steps[0] + 0.5]
    x: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    for point, (left, right) in zip(evals, pairwise(edges), strict=True):
        pair = point.explanation.forecast_interval.get(name, (math.nan, math.nan))
        low, high = (min(max(value, limits[0]), limits[1]) for value in pair)
        if math.isnan(pair[0]) or math.isnan(pair[1]):
            low = high = math.nan
        x += [left, right]
        lows += [low, low]
        highs += [high, high]
    return x, lows, highs


def _entries(evals: Sequence[EvalPoint]) -> list[tuple[str, dict[str, Any]]]:
    """The legend: what there is to see."""
    entries: list[tuple[str, dict[str, Any]]] = [
        ("validation loss", {"color": INK, "linewidth": 1.4}),
        ("reference loss", REFERENCE),
        ("forecast", _FORECAST),
    ]
    if any(point.explanation.refused for point in evals):
        entries.append(("forecast not used", _REFUSED))
    if any(point.explanation.forecast_interval for point in evals):
        entries.append(("90% interval", _INTERVAL | {"linewidth": 7}))
    return entries


def _loss_caption(evals: Sequence[EvalPoint], shown: Sequence[str], *, beyond: bool) -> str:
    losses = {name: series(evals, lambda point: point.loss, name)[1] for name in shown}
    changes = {name: values[-1] - values[0] for name, values in losses.items()}
    said = ["Each panel is one domain with its own scale.", range_of_changes(changes)]
    if any(finite(point.reference_loss) for point in evals):
        said.append(
            "The distance from the solid line to the dashed one is the excess loss that draws data "
            "to a domain."
        )
    else:
        said.append("This run had no reference losses yet.")
    if any(point.explanation.forecast_interval for point in evals):
        said.append(
            "At each step the band is the 90% interval of what was then forecast for the end of "
            "training: the narrower, the more the forecast can be trusted. A forecast counts for "
            "at most the smallest loss seen of a model of final size, so it can lie below its "
            "interval."
        )
    made = sum(len(finite(point.forecast)) for point in evals)
    refused = sum(
        math.isfinite(value) and name in point.explanation.refused
        for point in evals
        for name, value in point.forecast.items()
    )
    if made > _MOST_MARKS * len(shown):
        said.append("Not every forecast has its mark.")
    if refused:
        said.append(f"Circles: {refused:,} of {made:,} forecasts were not used.")
    if beyond:
        said.append("Forecasts far from the curves lie outside the panels.")
    return " ".join(said)


_KEPT: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 6,
    "markeredgewidth": 0.7,
}


def steering(phase: PhaseRecord, prefix: str) -> Figure | None:
    """How far the ball was used, how many domains were at their floor and had a used forecast."""
    told = [point for point in phase.evals if point.explanation.has_ball]
    if not told:
        return None
    counts = {
        "floor": ("domains at their floor", [(p.step, len(_at_floor(p))) for p in told]),
        "forecast": (
            "domains whose forecast was used",
            [(p.step, _used_forecasts(p)) for p in told if _asked_for_forecasts(p)],
        ),
    }
    drawn = {kind: count for kind, count in counts.items() if count[1]}
    figure, axes = panels(1 + len(drawn), columns=3, height=1.75)
    _draw_ball(axes[0], told)
    most = max(len(point.ratio) for point in told) or 1
    for axis, (kind, (title, count)) in zip(axes[1:], drawn.items(), strict=True):
        steps, values = zip(*count, strict=True)
        axis.plot(steps, values, gid=kind, color=INK, **points(values))
        axis.set_xlim(axes[0].get_xlim())
        axis.set_ylim(-0.04 * most, 1.04 * most)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, loc="left")
    kept = [("ratio not updated", _KEPT)] if _kept(told) else []
    legend(figure, ("radius of the ball", REFERENCE), *kept)
    return finish(figure, f"{prefix}-steering", "Steering of the ratio", _caption(told, most))


def _draw_ball(axis: Any, told: Sequence[EvalPoint]) -> None:
    """The divergence of each ratio from its reference ratio, under the radius."""
    steps = [point.step for point in told]
    used = [point.explanation.divergence for point in told]
    radius = [point.explanation.rho for point in told]
    axis.plot(steps, radius, gid="radius", **REFERENCE)
    axis.plot(steps, used, gid="ball", color=INK, **points(used))
    kept = _kept(told)
    axis.plot([p.step for p in kept], [p.explanation.divergence for p in kept], gid="kept", **_KEPT)
    top = max(used + radius) or 1.0
    axis.set_ylim(-0.04 * top, 1.08 * top)
    axis.set_title("divergence from the reference ratio", loc="left")


def _kept(told: Sequence[EvalPoint]) -> list[EvalPoint]:
    return [point for point in told if point.explanation.ratio_updated is False]


def _at_floor(point: EvalPoint) -> list[str]:
    return [name for name, binds in point.explanation.at_floor.items() if binds]


def _asked_for_forecasts(point: EvalPoint) -> bool:
    return bool(point.forecast or point.explanation.no_forecast)


def _used_forecasts(point: EvalPoint) -> int:
    refused = point.explanation.refused
    return sum(math.isfinite(v) and name not in refused for name, v in point.forecast.items())


def _caption(told: Sequence[EvalPoint], domains: int) -> str:
    """What happened, in numbers."""
    kept = len(_kept(told))
    bound = sum(point.explanation.ball_binds for point in told if point not in _kept(told))
    updates = len(told) - kept
    said = ["The ratio may depart from the reference ratio by no more than the radius of the ball."]
    if updates:
        said.append(f"It went to the edge at {bound:,} of {_counted(updates, 'update')}.")
    if bound < updates:
        said.append(
            "Elsewhere it stayed inside: the floors left no more, or no domain was farther behind "
            "than another."
        )
    at_floor = Counter(name for point in told for name in _at_floor(point))
    if at_floor:
        most = max(len(_at_floor(point)) for point in told)
        name, times = at_floor.most_common(1)[0]
        said.append(
            f"At most {most} of {domains} domains were at their floor, most often {name} "
            f"(at {times:,} of {_counted(len(told), 'evaluation')})."
        )
    moved = [point.step for point in told if point.explanation.reference_ratio_updated]
    if moved:
        said.append(
            f"The reference ratio moved at {_counted(len(moved), 'evaluation')}, first at step "
            f"{moved[0]:,}."
        )
    if kept:
        said.append(f"At {_counted(kept, 'evaluation')} the ratio was not updated (circles).")
    return " ".join(said)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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
