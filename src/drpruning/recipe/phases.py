"""The two phases of a recipe: pruning and continued pretraining."""

import math
from bisect import bisect_left
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from drpruning.recipe.distillation import DistillSetting
from drpruning.recipe.section import (
    Count,
    Decay,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    Share,
)

PHASES = ("prune", "pretrain")
"""The phases that a recipe may have, in their order."""


class Phase(Section):
    """One phase of training: optimizer, schedule, evaluations."""

    steps: Count
    """Optimizer steps."""
    global_batch: Count
    """Blocks per step, over all ranks and micro-batches."""
    evaluate_every: Count
    """Steps between evaluations; the ratio changes at each."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of the weights."""
    warmup: Fraction
    """Share of the steps over which the learning rates rise linearly."""
    final_learning_rate: Fraction = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.95)
    """AdamW's decay rates."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay of the weights."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    distill: DistillSetting = None
    """A teacher beside the text, or `none`; absent: in `pretrain` the model that is pruned."""


class Stop(Section):
    """When mask learning may end before its last step; the model is then cut as it is."""

    similarity: Share = 0.98
    """Share of the parts on which a plan must agree with the one before, in every granularity."""
    evaluations: PositiveInt = 3
    """Evaluations in a row that must find it so, all after the sparsity warm-up."""


class Prune(Phase):
    """The pruning phase (paper, section 2.1)."""

    global_batch: Count = 32
    evaluate_every: Count = 50
    warmup: Fraction = 0.1
    mask_learning_rate: PositiveFloat = 1.0
    """Peak learning rate of the masks."""
    multiplier_learning_rate: PositiveFloat = 1.0
    """Peak learning rate of the Lagrange multipliers."""
    mask_samples: Count = 4
    """Parts of the global batch with mask noise of their own."""
    initial_penalty: NonNegativeFloat = 100.0
    """Quadratic multipliers at the start. With the paper's 0 they grow by about
    `multiplier_learning_rate` a step, too slowly for runs of some hundred steps."""
    sparsity_warmup: Fraction = 0.2
    """Share of the steps over which the target sparsity rises from 0 to its final value."""
    initial_masks: Literal["noise", "taylor"] = "noise"
    """What orders the masks at first: noise, or the Taylor importance of their parts."""
    calibration_batches: Count = 8
    """Global batches over which that importance is measured."""
    stop: Stop | None = None
    """End early once the plan is stable (`{}` takes the defaults); absent: after `steps`."""

    @property
    def sparsity_warmup_steps(self) -> float:
        """Steps over which the target sparsity rises."""
        return self.sparsity_warmup * self.steps

    @model_validator(mode="after")
    def _can_stop(self) -> Self:
        if self.stop is not None:
            times = range(0, self.steps, self.evaluate_every)
            most = len(times) - bisect_left(times, self.sparsity_warmup_steps) - 1
            if self.stop.evaluations > most:
                raise ValueError(
                    f"stop.evaluations ({self.stop.evaluations}) could never be met: there are "
                    f"{len(times)} evaluations before the last step, and after the sparsity "
                    f"warm-up {max(most, 0)} that follow another"
                )
        return self

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.global_batch % self.mask_samples:
            root = range(1, math.isqrt(self.global_batch) + 1)
            small = [n for n in root if self.global_batch % n == 0]
            divisors = sorted({*small, *(self.global_batch // n for n in small)})
            raise ValueError(
                f"mask_samples ({self.mask_samples}) must divide global_batch "
                f"({self.global_batch}); choose one of {divisors}"
            )
        return self


class Pretrain(Phase):
    """The continued-pretraining phase."""

    global_batch: Count = 256
    evaluate_every: Count = 400
    warmup: Fraction = 0.03
