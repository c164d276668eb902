"""Used and replayed data ratios side by side: their summary, figures and one HTML page."""

import math
from collections.abc import Sequence
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    SERIES_DARK,
    SERIES_LIGHT,
    SMALL,
    panel,
    percent,
    series_style,
    style,
)
from drpruning.report.figure_parts import Figure
from drpruning.report.formats import (
    PHASE_TITLES,
    drawable,
    exp_text,
    loss_text,
    percentage,
    signed,
)
from drpruning.report.own_pages import generator
from drpruning.report.page import render
from drpruning.report.timeline import Timeline
from drpruning.runs.records import PhaseRecord
from drpruning.runs.replay_curves import CAVEAT, ReplayCurves

_USED: dict[str, Any] = {"color": MUTED, "linestyle": "-", "linewidth": 1.2}
_DASHED = (0, (4, 1.6))


def share_figure(curves: ReplayCurves) -> Figure:
    """Used and replayed share of each domain over steps, in a panel of its own."""
    figure = Figure(
        ident=f"replay-{curves.phase}-ratio",
        title="Data ratio",
        caption="Share of each domain in the batches; every panel has its own scale. "
        f"{curves.verdict()}",
        kind="percent",
    )
    figure.explain(("used", _USED), ("replayed", {"color": INK, "linestyle": _DASHED}))
    timeline = _timeline(curves)
    place = timeline.stretches[0].place
    for name in curves.initial:
        axis = panel(SMALL, title=name)
        colour = _colour(curves, name)
        for kind, shares, look in (
            ("used", curves.used[name], _USED),
            ("replayed", curves.replayed[name], {"color": colour, "linestyle": _DASHED}),
        ):
            places = list(map(place, [*curves.steps, curves.last_step]))
            held = [drawable(share) for share in (*shares, shares[-1])]
            axis.step(places, held, where="post", gid=f"{kind}-{name}", label=kind, **look)
        percent(axis)
        figure.add(axis, timeline, name)
    return figure


def _timeline(curves: ReplayCurves) -> Timeline:
    return Timeline.part(PhaseRecord(curves.phase), 0, curves.last_step)


def reference_figure(curves: ReplayCurves) -> Figure | None:
    """The two reference losses under the validation loss; None where they are the same."""
    shown = [
        name
        for name in curves.initial
        if any(
            old != new and not (math.isnan(old) and math.isnan(new))
            for old, new in zip(
                curves.used_reference[name], curves.replayed_reference[name], strict=True
            )
        )
    ]
    if not shown:
        return None
    figure = Figure(
        ident=f"replay-{curves.phase}-reference",
        title="Reference losses",
        caption="Domains whose reference loss differs in the replay; every panel has its own "
        "scale. The distance from the loss to a reference loss draws data to a domain; where "
        "forecasts count beside it, so does the distance to the forecast. A line begins at the "
        "first evaluation with a reference loss.",
        kind="perplexity",
    )
    replayed_style = {"color": INK, "linestyle": _DASHED, "linewidth": 1.3}
    figure.explain(
        ("validation loss of the run", {"color": INK}),
        ("reference loss used", _USED),
        ("reference loss replayed", replayed_style),
    )
    timeline = _timeline(curves)
    place = timeline.stretches[0].place
    for name in shown:
        axis = panel(SMALL, title=name)
        for kind, values, look in (
            ("loss", curves.loss[name], {"color": _colour(curves, name)}),
            ("used-reference", curves.used_reference[name], _USED),
            ("replayed-reference", curves.replayed_reference[name], replayed_style),
        ):
            places = list(map(place, curves.steps))
            label = kind.replace("-", " ")
            axis.plot(
                places, list(map(drawable, values)), gid=f"{kind}-{name}", label=label, **look
            )
        figure.add(axis, timeline, name)
    return figure


def render_replay_page(
    *, run: str, used: str, replayed: str, notes: Sequence[str], phases: Sequence[ReplayCurves]
) -> str:
    """The page as text; it opens without a network.

    Args:
        run: What was replayed.
        used: Policy and settings of the run, in words.
        replayed: Those of the replay.
        notes: Sentences that the reader should know.
        phases: What to show of each phase.
    """
    with style():
        figures = {
            curves.phase: [f for f in (share_figure(curves), reference_figure(curves)) if f]
            for curves in phases
        }
    return render(
        "replay.html.j2",
        filters={
            "share": percent_text,
            "points": _signed,
            "signed": signed,
            "loss": loss_text,
            "exp": exp_text,
        },
        generator=generator("replay"),
        run=run,
        used=used,
        replayed=replayed,
        notes=notes,
        caveat=CAVEAT,
        phases=phases,
        titles=PHASE_TITLES,
        figures=figures,
        series_light=SERIES_LIGHT,
        series_dark=SERIES_DARK,
    )


def percent_text(share: float) -> str:
    """A share in percent; `?` where it is not known."""
    return percentage(share, unknown="?")


def points_text(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "?" if math.isnan(difference) else f"{100 * difference:+.2f}"


def _signed(difference: float) -> str:
    return points_text(difference).replace("-", "−")


def _colour(curves: ReplayCurves, name: str) -> str:
    colour: str = series_style(list(curves.initial).index(name))["color"]
    return colour
