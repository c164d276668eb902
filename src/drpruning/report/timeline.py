"""One horizontal axis for the steps of all phases of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drpruning.report.drawing import MUTED
from drpruning.report.formats import PHASE_TITLES, is_drawable
from drpruning.runs.lines import EvalPoint, StepPoint
from drpruning.runs.records import PhaseRecord

_NARROWEST = 0.3
"""Share of the axis that a phase has at least: 3,200 steps of pruning show beside 48,000."""
_TICK = 14.0
"""Pixels between the labels of two ticks, at least."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The part of the axis that belongs to one phase.

    Attributes:
        phase: Its records.
        first: The step at its left end.
        last: The step at its right end.
        left: Where it begins, from 0 to 1.
        width: Its share of the axis.
    """

    phase: PhaseRecord
    first: float
    last: float
    left: float
    width: float

    @property
    def title(self) -> str:
        """The phase's name for people."""
        return PHASE_TITLES.get(self.phase.name, self.phase.name)

    def place(self, step: float) -> float:
        """Where a step is on the axis, from 0 to 1."""
        return self.left + self.width * (step - self.first) / (self.last - self.first)


@dataclass(frozen=True)
class Timeline:
    """The phases of a run beside each other, each with a scale of its own."""

    stretches: Sequence[Stretch]

    @classmethod
    def of(cls, phases: Sequence[PhaseRecord]) -> "Timeline":
        """Lay out phases in the order of time, by their steps but none too narrow to be read."""
        steps = [max(phase.last_step, 1) for phase in phases]
        shares = [max(count / sum(steps), _NARROWEST) for count in steps]
        stretches, left = [], 0.0
        for phase, count, share in zip(phases, steps, shares, strict=True):
            width = share / sum(shares)
            stretches.append(Stretch(phase=phase, first=0, last=count, left=left, width=width))
            left += width
        return cls(stretches)

    @classmethod
    def part(cls, phase: PhaseRecord, first: float, last: float) -> "Timeline":
        """Only the steps of one phase from the first to the last."""
        last = max(last, first + 1)
        return cls([Stretch(phase=phase, first=first, last=last, left=0.0, width=1.0)])

    @property
    def evals(self) -> list[tuple[float, EvalPoint]]:
        """Place on the axis of every evaluation."""
        return [(s.place(point.step), point) for s in self.stretches for point in s.phase.evals]

    @property
    def steps(self) -> list[tuple[float, StepPoint]]:
        """Place on the axis of every logged step."""
        return [(s.place(point.step), point) for s in self.stretches for point in s.phase.steps]

    def configure(self, axis: Any, *, name_phases: bool = False) -> None:
        """Set limits, ticks and the line between the phases; with their names where asked for."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

        axis.set_xlim(-0.02, 1.02)
        pixels = axis.get_window_extent().width
        ticks: dict[float, str] = {}
        for stretch in self.stretches:
            label = _TICK + 7.4 * len(f"{stretch.last:,.0f}")
            count = max(1, int(stretch.width * pixels // label))
            locator = MaxNLocator(count, integer=True)
            begin = stretch is self.stretches[0]
            end = 1.0 if stretch is self.stretches[-1] else 1 - 30 / (pixels * stretch.width)
            for step in locator.tick_values(stretch.first, stretch.last):
                done = (step - stretch.first) / (stretch.last - stretch.first)
                if (done >= 0 if begin else done > 0) and done <= end + 1e-9:
                    ticks[stretch.place(step)] = f"{step:,.0f}"
            if stretch.left:
                axis.axvline(stretch.left, color=MUTED, linewidth=0.9, linestyle=(0, (1.5, 1.5)))
            if name_phases and len(self.stretches) > 1:
                axis.annotate(
                    stretch.title.lower(),
                    (stretch.left, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3 if stretch.left else 0, 6),
                    textcoords="offset points",
                    color=MUTED,
                )
        axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axis.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))

    def pixels(self, axis: Any) -> list[list[Any]]:
        """For each phase, the pixels at its ends with their steps, and its name."""
        box = axis.get_window_extent()
        low, high = axis.get_xlim()

        def pixel(place: float) -> float:
            return round(float(box.x0 + box.width * (place - low) / (high - low)), 2)

        return [
            [pixel(s.left), pixel(s.left + s.width), s.first, s.last, s.title.lower()]
            for s in self.stretches
        ]


Points = Sequence[tuple[float, EvalPoint]]


def present(
    evals: Points, domains: Sequence[str], pick: Callable[[EvalPoint], Mapping[str, float]]
) -> list[str]:
    """The domains that have a value to draw at one evaluation or more."""
    values = [pick(point) for _, point in evals]
    return [name for name in domains if any(is_drawable(v.get(name)) for v in values)]


def series(
    evals: Points, pick: Callable[[EvalPoint], Mapping[str, float]], name: str
) -> tuple[list[float], list[float]]:
    """Places and values at which the value can be drawn."""
    known = [(x, pick(point).get(name)) for x, point in evals]
    drawn = [(x, value) for x, value in known if value is not None and is_drawable(value)]
    return [x for x, _ in drawn], [value for _, value in drawn]
