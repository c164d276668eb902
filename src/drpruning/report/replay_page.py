"""Used and replayed data ratios side by side: their summary, figures and one HTML page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drpruning.report.curves import Figure, finish
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
from drpruning.report.formats import PHASE_TITLES, percentage
from drpruning.report.templates import render

CAVEAT = (
    "The losses are those of the run as it was: a replay shows what the policy would have decided "
    "at each evaluation given them, not what training under it would have given."
)
_USED: dict[str, Any] = {"color": MUTED, "linestyle": "-", "linewidth": 1.2}
_ROUNDING = 1e-9
"""Shares closer than this count as equal."""
_DASHED = (0, (4, 1.6))


@dataclass(frozen=True, kw_only=True)
class ReplayRow:
    """One domain over a phase; shares, NaN where not known.

    Attributes:
        domain: Its name.
        initial: Share at the start of the run.
        used_end: Share after the last evaluation, as used.
        replayed_end: The same, replayed.
        used_mean: Mean over the steps of training, as used.
        replayed_mean: The same, replayed.
        difference: Replayed less used where the two are farthest apart.
        step: The step of that evaluation.
    """

    domain: str
    initial: float
    used_end: float
    replayed_end: float
    used_mean: float
    replayed_mean: float
    difference: float
    step: int


@dataclass(frozen=True, kw_only=True)
class ReplayCurves:
    """One phase: numbers of each domain at each of its m evaluations; NaN where not known.

    Attributes:
        phase: Its name.
        steps: Steps of the evaluations [m].
        last_step: The last step that there is a record of.
        initial: Share of each domain at the start of the run; its order is that of the page.
        identical: Whether used and replayed shares are the same to the bit.
        loss: Validation losses in nats [m] a domain.
        used: Shares that were used from each evaluation on [m] a domain.
        replayed: Shares that the replayed policy gives [m] a domain.
        used_reference: Reference losses of the run [m] a domain.
        replayed_reference: Those of the replay [m] a domain.
    """

    phase: str
    steps: list[int]
    last_step: int
    initial: dict[str, float]
    identical: bool
    loss: dict[str, list[float]]
    used: dict[str, list[float]]
    replayed: dict[str, list[float]]
    used_reference: dict[str, list[float]]
    replayed_reference: dict[str, list[float]]

    def rows(self) -> list[ReplayRow]:
        """A summary of every domain."""
        return [self._row(domain) for domain in self.initial]

    def verdict(self) -> str:
        """In one sentence, how far the two ratios are apart."""
        count = len(self.steps)
        at = f"all {count} evaluations" if count > 1 else "the only evaluation"
        if self.identical:
            return f"The replayed ratio is identical to the run's at {at}."
        row = max(self.rows(), key=lambda row: _size(row.difference))
        if math.isnan(row.difference):
            return "The log does not say which ratio was used."
        if abs(row.difference) <= _ROUNDING:
            return f"The replayed ratio is that of the run up to rounding at {at}."
        return (
            f"The ratios differ from step {self._first_difference():,} on, by at most "
            f"{100 * abs(row.difference):.2f} percentage points ({row.domain}, step {row.step:,})."
        )

    def _first_difference(self) -> int:
        """Step of the first evaluation at which the two ratios are apart; they must be at one."""
        return next(
            step
            for index, step in enumerate(self.steps)
            for name in self.initial
            if abs(self.replayed[name][index] - self.used[name][index]) > _ROUNDING
        )

    def _row(self, domain: str) -> ReplayRow:
        used, replayed = self.used[domain], self.replayed[domain]
        apart = [new - old for old, new in zip(used, replayed, strict=True)]
        at = max(range(len(apart)), key=lambda index: _size(apart[index]))
        return ReplayRow(
            domain=domain,
            initial=self.initial[domain],
            used_end=used[-1],
            replayed_end=replayed[-1],
            used_mean=self._mean(used),
            replayed_mean=self._mean(replayed),
            difference=apart[at],
            step=self.steps[at],
        )

    def _mean(self, shares: Sequence[float]) -> float:
        """Mean over the steps of training; a share holds from its evaluation to the next one."""
        ends = [*self.steps[1:], self.last_step]
        lengths = [end - start for start, end in zip(self.steps, ends, strict=True)]
        if not sum(lengths):
            return shares[-1]
        held = [share * n for share, n in zip(shares, lengths, strict=True) if n]
        return math.fsum(held) / sum(lengths)


def share_figure(curves: ReplayCurves) -> Figure:
    """Used and replayed share of each domain over steps, in a panel of its own."""
    figure, axes = panels(len(curves.initial), columns=3, height=1.6)
    for axis, name in zip(axes, curves.initial, strict=True):
        colour = _colour(curves, name)
        for kind, shares, look in (
            ("used", curves.used[name], _USED),
            ("replayed", curves.replayed[name], {"color": colour, "linestyle": _DASHED}),
        ):
            steps, held = [*curves.steps, curves.last_step], [*shares, shares[-1]]
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
            axis.plot(curves.steps, values, gid=f"{kind}-{name}", **look)
        axis.set_title(shorten(name, 28), loc="left", parse_math=False)
    axes[0].set_ylabel("nats a token")
    legend(
        figure,
        ("validation loss of the run", {"color": INK, "linewidth": 1.4}),
        ("reference loss used", _USED),
        ("reference loss replayed", replayed_style),
    )
    caption = (
        "Domains whose reference loss is another in the replay; every panel has its own scale. "
        "The distance from the loss to a reference loss is the excess loss that draws data to a "
        "domain. A line begins where there is a reference loss."
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
        filters={"share": percent_text, "points": _signed},
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


def _size(difference: float) -> float:
    """How large a difference is; one that is not known is the smallest."""
    return -1.0 if math.isnan(difference) else abs(difference)
