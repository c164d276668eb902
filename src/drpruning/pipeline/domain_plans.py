"""What each domain has and what is asked of it, counted or estimated, and where it runs out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.data import DomainSource, PreparedData, estimate_tokens
from drpruning.recipe import Phase, Recipe

MOST_WARNINGS = 20
"""Domains that are named one by one where their text runs out."""


@dataclass(frozen=True)
class DomainPlan:
    """What one domain has, and what is asked of it under the initial ratio.

    Attributes:
        share: Initial share.
        planned: Tokens trained on, both phases.
        available: Training tokens that it has; None where that is not known yet.
        exact: Whether `available` was counted, not guessed from file sizes.
        exhausted_at: (phase, step) at which it has been read once; None where it lasts.
        on_exhausted: What follows then; see docs/recipe.md.
    """

    share: float
    planned: int
    available: int | None
    exact: bool
    exhausted_at: tuple[str, int] | None
    on_exhausted: str

    @property
    def epochs(self) -> float | None:
        """Passes over the domain; at most one where it does not repeat."""
        if not self.available:
            return None
        most = math.inf if self.on_exhausted == "repeat" else 1.0
        return min(self.planned / self.available, most)


def first_exhausted(phases: dict[str, Phase], share: float, blocks: int) -> tuple[str, int] | None:
    """Phase and step at which a domain of this many blocks is exhausted under a constant share."""
    left = float(blocks)
    for name, phase in phases.items():
        per_step = share * phase.global_batch
        if per_step * phase.steps > left + 1e-9:  # the shares' rounding is no block
            return name, int(left / per_step) + 1
        left -= per_step * phase.steps
    return None


def plan_domains(
    recipe: Recipe, sources: Sequence[DomainSource], prepared: PreparedData | None
) -> dict[str, DomainPlan]:
    """What each domain has, counted in the prepared data or else estimated, and what is asked."""
    length = recipe.data.sequence_length
    total = sum(p.steps * p.global_batch * length for p in recipe.phases.values())
    plans = {}
    for source in sources:
        share = recipe.data.domains[source.name].share or 0.0
        if not source.trained:
            blocks: int | None = 0
        elif prepared is not None:
            blocks = len(prepared.domains[source.name].train)
        else:
            tokens = estimate_tokens(source, recipe.model.tokenizer_source)
            blocks = None if tokens is None else max(1, tokens // length)
        plans[source.name] = DomainPlan(
            share=share,
            planned=round(total * share),
            available=None if blocks is None else blocks * length,
            exact=prepared is not None or not source.trained,
            exhausted_at=None if blocks is None else first_exhausted(recipe.phases, share, blocks),
            on_exhausted=recipe.data.domains[source.name].on_exhausted,
        )
    return plans


def repetition_warnings(domains: dict[str, DomainPlan]) -> list[str]:
    """Warn of domains that have less text than their share asks for, one line for each."""
    lines = []
    for name, plan in domains.items():
        if plan.exhausted_at is None or plan.epochs is None:
            continue
        phase, step = plan.exhausted_at
        about = "" if plan.exact else "about "
        place, when = f"data.domains.{name}: {about}{plan.available:,} tokens", f"{about}{step}"
        follows = {
            "repeat": f"will be used {plan.epochs:.1f} times; they run out at {phase} step {when}",
            "redistribute": f"run out at {phase} step {when}; the other domains get its share from "
            "there on",
            "stop": f"run out at {phase} step {when}; the next evaluation then ends {phase}, and "
            "every later phase at its start",
        }
        lines.append(f"{place} {follows[plan.on_exhausted]}")
    if (more := len(lines) - MOST_WARNINGS) > 0:
        lines[MOST_WARNINGS:] = [f"data.domains: {more:,} more domains run out before the end"]
    known = [plan.available for plan in domains.values() if plan.available is not None]
    planned = sum(plan.planned for plan in domains.values())
    rules = {plan.on_exhausted for plan in domains.values() if plan.share}
    if len(known) == len(domains) and "repeat" not in rules and sum(known) < planned:
        lines.append(
            f"data.domains: {sum(known):,} tokens in all, {planned:,} planned, and no domain "
            "repeats; training ends where they do"
        )
    return lines
