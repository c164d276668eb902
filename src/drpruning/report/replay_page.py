"""Used and replayed data ratios side by side: their summary, figures and one HTML page."""

import math
from collections.abc import Sequence
from typing import Any

from drpruning.report.drawing import (
    INK,
    MUTED,
    SERIES_DARK,
    SERIES_LIGHT,
    legend,
    panels,
    percent,
    series_style,
    shorten,
    style,
)
from drpruning.report.figure_parts import Figure, drawable, finish
from drpruning.report.formats import PHASE_TITLES, loss_text, percentage, signed
from drpruning.report.own_pages import generator
from drpruning.report.page import render
from drpruning.runs.replay_curves import CAVEAT, ReplayCurves

_USED: dict[str, Any] = {"color": MUTED, "linestyle": "-", "linewidth": 1.2}
_DASHED = (0, (4, 1.6))


def share_figure(curves: ReplayCurves) -> Figure:
    """Used and replayed share of each domain over steps, in a panel of its own."""
    figure, axes = panels(len(curves.initial), columns=3, height=1.6)
    for axis, name in zip(axes, curves.initial, strict=True):
        colour = _colour(curves, name)
        for kind, shares, look in (
            ("used", curves.used[name], _USED),
            ("replayed", curves.replayed[name], {"color": colour, "linestyle": _DASHED}),
        ):
            steps = [*curves.steps, curves.last_step]
            held = [drawable(share) for share in (*shares, shares[-1])]
            axis.step(steps, held, where="post", gid=f"{kind}-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
        percent(axis)
    legend(figure, ("used", _USED), ("replayed", {"color": INK, "linestyle": _DASHED}))
    caption = (
        f"Share of each domain in the batches; every panel has its own scale. {curves.verdict()}"
    )
    return finish(figure, f"replay-{curves.phase}-ratio", "Data ratio", caption)


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
    figure, axes = panels(len(shown), columns=3, height=1.75)
    replayed_style = {"color": INK, "linestyle": _DASHED, "linewidth": 1.0}
    for axis, name in zip(axes, shown, strict=True):
        for kind, values, look in (
            ("loss", curves.loss[name], {"color": _colour(curves, name)}),
            ("used-reference", curves.used_reference[name], _USED),
            ("replayed-reference", curves.replayed_reference[name], replayed_style),
        ):
            axis.plot(curves.steps, list(map(drawable, values)), gid=f"{kind}-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
    axes[0].set_ylabel("nats per token")
    legend(
        figure,
        ("validation loss of the run", {"color": INK, "linewidth": 1.4}),
        ("reference loss used", _USED),
        ("reference loss replayed", replayed_style),
    )
    caption = (
        "Domains whose reference loss differs in the replay; every panel has its own scale. The "
        "distance from the loss to a reference loss draws data to a domain; where forecasts count "
        "beside it, so does the distance to the forecast. A line begins at the first evaluation "
        "with a reference loss."
    )
    return finish(figure, f"replay-{curves.phase}-reference", "Reference losses", caption)


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
        filters={"share": percent_text, "points": _signed, "signed": signed, "loss": loss_text},
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
