"""What the page says of each run and of each of its phases."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drpruning.pruning import PruningPlan
from drpruning.recipe.distillation import SELF
from drpruning.report.decision import (
    LastDecision,
    SkippedUpdates,
    decision_counts,
    last_decision,
    reference_origins,
    skipped_updates,
)
from drpruning.report.figure_parts import divergences
from drpruning.report.figures import RunFigures, run_figures
from drpruning.report.formats import PHASE_TITLES, duration, percentage
from drpruning.report.timeline import series
from drpruning.report.verdict import run_verdict, short
from drpruning.runs.counterfactuals import ForecastCheck, phase_checks
from drpruning.runs.folder import SOURCE
from drpruning.runs.records import PhaseRecord, RunRecord, section


@dataclass(frozen=True, kw_only=True)
class RatioRow:
    """One domain from the first evaluation of a phase to its last; NaN is not known.

    A domain of share 0 is only evaluated: it has losses and no share.
    """

    domain: str
    only_evaluated: bool
    initial: float
    ratio: float
    reference_ratio: float
    first_loss: float
    last_loss: float
    reference_loss: float
    last_divergence: float

    @property
    def ratio_factor(self) -> float:
        """By what factor the ratio differs from the initial one."""
        return self.ratio / self.initial if self.initial else math.nan

    @property
    def reference_factor(self) -> float:
        """By what factor the reference ratio differs from the initial one."""
        return self.reference_ratio / self.initial if self.initial else math.nan


@dataclass(frozen=True, kw_only=True)
class PhaseSection:
    """What the page says of one phase of one run."""

    run: str
    title: str
    ident: str
    facts: list[str]
    warnings: list[str]
    ratio_rows: list[RatioRow]
    decision: LastDecision | None
    decision_counts: dict[str, str]
    reference_origins: dict[str, str]
    skipped_updates: list[SkippedUpdates]
    forecast_checks: list[ForecastCheck]
    hits: list[str]

    @property
    def has_teacher(self) -> bool:
        """Whether a domain has a divergence from a teacher."""
        return any(math.isfinite(row.last_divergence) for row in self.ratio_rows)

    @property
    def forecast_domains(self) -> list[str]:
        """The domains with a forecast that was compared with the end, in the order of the page."""
        checked = {name for check in self.forecast_checks for name in check.error}
        return [row.domain for row in self.ratio_rows if row.domain in checked]


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What the page says of one run."""

    ident: str
    label: str
    verdict: str
    about: str
    cost: str
    phases: list[PhaseSection]
    plan: PruningPlan | None
    figures: RunFigures
    recipe_text: str
    provenance: list[str]


def ratio_rows(run: RunRecord, phase: PhaseRecord) -> list[RatioRow]:
    """Ratios and losses at the start and the end of a phase, as in the paper's Tables 3 and 7.

    The initial ratio is the recipe's; where the folder has no recipe, that of the first evaluation.
    """
    if not phase.evals:
        return []
    first, last = phase.evals[0], phase.evals[-1]
    initial = run.initial_ratio or first.ratio
    known = [*first.loss, *last.loss, *last.ratio]
    return [
        RatioRow(
            domain=name,
            only_evaluated=name in run.untrained,
            initial=initial.get(name, math.nan),
            ratio=last.ratio.get(name, math.nan),
            reference_ratio=last.reference_ratio.get(name, math.nan),
            first_loss=first.loss.get(name, math.nan),
            last_loss=last.loss.get(name, math.nan),
            reference_loss=last.reference_loss.get(name, math.nan),
            last_divergence=_last_divergence(phase, name),
        )
        for name in run.domains
        if name in known
    ]


def _last_divergence(phase: PhaseRecord, domain: str) -> float:
    """The latest of a domain, which has one only where it was trained on; NaN without any."""
    _, known = series([(point.step, point) for point in phase.evals], divergences, domain)
    return known[-1] if known else math.nan


def run_section(run: RunRecord, label: str, ident: str, domains: Sequence[str]) -> RunSection:
    """Collect and draw what the page says of a run.

    Args:
        run: Its records.
        label: Its name on the page.
        ident: Begins every id.
        domains: All domains of the page; the position of one decides its colour.
    """
    source = run.evaluations.get(SOURCE)
    return RunSection(
        ident=ident,
        label=label,
        verdict=run_verdict(run),
        about=_about(run),
        cost=cost(run),
        phases=[
            PhaseSection(
                run=label,
                title=PHASE_TITLES.get(phase.name, phase.name),
                ident=f"{ident}-{phase.name}",
                facts=_facts(phase),
                warnings=_warnings(phase),
                ratio_rows=ratio_rows(run, phase),
                decision=last_decision(phase, domains),
                decision_counts=decision_counts(phase),
                reference_origins=reference_origins(phase, domains),
                skipped_updates=skipped_updates(phase, domains),
                forecast_checks=(checks := phase_checks(phase)),
                hits=[_hits(phase, check) for check in checks],
            )
            for phase in run.phases.values()
        ],
        plan=run.plan,
        figures=run_figures(run, domains, source.loss if source else {}, ident),
        recipe_text=run.recipe_text,
        provenance=_provenance(run),
    )


def cost(run: RunRecord) -> str:
    """When, on what, how long and how fast a run was trained; empty where none of it is known."""
    parts = []
    starts = [phase.start for phase in run.phases.values() if phase.start]
    if starts and math.isfinite(starts[0].time):
        parts.append(time.strftime("%d %B %Y", time.gmtime(starts[0].time)).lstrip("0"))
    parts += dict.fromkeys(start.hardware for start in starts if start.hardware)
    seconds = sum(phase.seconds for phase in run.phases.values())
    tokens = sum(tokens_of(phase) for phase in run.phases.values())
    if seconds:
        trained = f" for {short(tokens)} tokens" if 0 < tokens < math.inf else ""
        parts.append(f"{duration(seconds)}{trained}")
    speeds = [p.tokens_per_second for phase in run.phases.values() for p in phase.steps]
    if known := [speed for speed in speeds if math.isfinite(speed)]:
        parts.append(f"{statistics.median(known):,.0f} tokens per second")
    return " · ".join(parts)


def tokens_of(phase: PhaseRecord) -> float:
    """Tokens that a phase was trained on so far; 0 where it is not known."""
    if phase.end is not None and math.isfinite(phase.end.tokens):
        return phase.end.tokens
    known = [point.tokens for point in phase.steps if math.isfinite(point.tokens)]
    return max(known, default=0.0)


def _hits(phase: PhaseRecord, check: ForecastCheck) -> str:
    """In how many domains the loss at the end lies in the interval forecast at a check."""
    made = next(point for point in phase.evals if point.step == check.step)
    end = phase.evals[-1].loss
    inside = [
        low <= end[name] <= high
        for name, (low, high) in made.explanation.forecast_interval.items()
        if name in check.error and math.isfinite(low) and math.isfinite(high)
    ]
    return f"{sum(inside)} of {len(inside)}" if inside else ""


def _about(run: RunRecord) -> str:
    policy = section(run.recipe, "scheduling").get("policy")
    where = f"From {run.folder}."
    return f"{where} Data scheduling: {policy}." if policy else where


def _facts(phase: PhaseRecord) -> list[str]:
    """Size, state and cost of a phase."""
    facts = []
    if phase.start:
        start = phase.start
        facts.append(
            f"{start.total_steps:,} steps of {start.global_batch:,} × {start.sequence_length:,} "
            "tokens"
        )
        facts += [_teacher(name, size) for name, size in (start.teachers or {}).items()]
        if phase.end is None:
            facts.append(f"not complete: last record at step {phase.last_step:,}")
        elif phase.end.stopped:
            facts.append(f"ended at step {phase.last_step:,}: {phase.end.stopped}")
    facts.append(f"{len(phase.evals)} evaluations")
    facts.append(f"{duration(phase.seconds)} in all")
    for name, seconds in (
        ("evaluation", [point.evaluation_seconds for point in phase.evals]),
        ("ratio updates", [point.update_seconds for point in phase.evals]),
    ):
        known = [value for value in seconds if math.isfinite(value)]
        if known:
            part = f" ({percentage(sum(known) / phase.seconds)})" if phase.seconds else ""
            facts.append(f"{name} {duration(sum(known))}{part}")
    return facts


def _teacher(model: str, parameters: float) -> str:
    size = f" of {parameters:,.0f} parameters" if math.isfinite(parameters) else ""
    name = "the model itself without its masks" if model == SELF else Path(model).name
    return f"taught by {name}{size}"


def _warnings(phase: PhaseRecord) -> list[str]:
    """Warnings in the order of time; those with the same words are one."""
    alike: dict[str, list[int]] = {}
    for warned in phase.warnings:
        alike.setdefault(warned.message, []).append(warned.step)
    lines = [
        f"Step {steps[0]:,}: {message}."
        if len(steps) == 1
        else f"{len(steps)} times, step {steps[0]:,} to {steps[-1]:,}: {message}."
        for message, steps in alike.items()
    ]
    if phase.skipped:
        steps, count = [skipped.step for skipped in phase.skipped], len(phase.skipped)
        first, last = min(steps), max(steps)
        where = f"step {first:,}" if count == 1 else f"{count} steps, {first:,} to {last:,}"
        lines.append(
            f"Skipped, because loss or gradient norm was not finite: {where}. metrics.jsonl has "
            "their blocks."
        )
    return lines


def _provenance(run: RunRecord) -> list[str]:
    """Versions and commits that the phases were run with, each once."""
    found: dict[str, None] = {}
    for phase in run.phases.values():
        if phase.start:
            start = phase.start
            versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
            commit = f"commit {start.commit}" if start.commit else "commit not known"
            found[f"{versions or 'versions not known'}; {commit}"] = None
    return list(found)
