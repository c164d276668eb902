"""What a phase minimises: the language-modelling loss, or a mix with distillation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drpruning.distillation import distillation_loss, next_tokens
from drpruning.training.rows import Rows
from drpruning.training.teacher import Teachers
from drpruning.training.validation import autocast, language_modelling_loss


class Losses(NamedTuple):
    """The loss of some rows, and what is logged of it.

    Attributes:
        total: Their part of what is minimised, differentiable.
        parts: Name -> mean over the rows, detached.
        by_domain: [2, domains]: sums over the rows of their divergence, and how many rows; empty
            without distillation.
    """

    total: Tensor
    parts: dict[str, Tensor]
    by_domain: Tensor


class LanguageModelling:
    """The mean cross-entropy of the next token."""

    teachers: Mapping[str, int] | None = None
    """Teacher -> parameters, for the log."""

    def losses(
        self,
        model: nn.Module,
        rows: Rows,
        precision: str,
        *,
        share: float,
        progress: float,  # noqa: ARG002
    ) -> Losses:
        """The loss of rows, computed by the model's own forward pass.

        Args:
            model: The trained model.
            rows: What it is computed on.
            precision: `bf16` under autocast, or `fp32`.
            share: Of the rows in those of the step on this rank.
            progress: Of the phase, from 0 to 1 at its last step.
        """
        with autocast(rows.blocks.device, precision):
            loss = language_modelling_loss(model, rows.blocks)
        return Losses(loss * share, {"loss": loss.detach()}, loss.new_zeros(0))


class Distillation(LanguageModelling):
    """A mix of cross-entropy and the divergence from teachers; see `drpruning.distillation`."""

    def __init__(
        self, teachers: Teachers, weight: float, final_weight: float | None, temperature: float
    ) -> None:
        """Set the loss.

        Args:
            teachers: Give the target distributions, at the same temperature.
            weight: Of the divergence at the first step; the cross-entropy has the rest.
            final_weight: At the last step, approached linearly; None: always `weight`.
            temperature: What logits are divided by.
        """
        self._source, self.temperature = teachers, temperature
        self.teachers = teachers.parameters
        self.weight, self.final_weight = weight, weight if final_weight is None else final_weight

    def losses(
        self, model: nn.Module, rows: Rows, precision: str, *, share: float, progress: float
    ) -> Losses:
        """The loss of rows; the teacher is called before the model, so that its activations go."""
        blocks_BT, device = rows.blocks, rows.blocks.device
        target = self._source.targets(rows)
        with autocast(device, precision):
            logits_NV = model(input_ids=blocks_BT, use_cache=False).logits.flatten(0, 1)
        count = len(rows) * (blocks_BT.shape[1] - 1)
        found = distillation_loss(
            logits_NV,
            next_tokens(blocks_BT),
            target,
            weight=self.weight + (self.final_weight - self.weight) * progress,
            temperature=self.temperature,
            # Not a factor of the loss, which would be rounded to the type of the logits.
            tokens=count / share,
        )
        divergence_B = found.divergence.view(len(rows), -1).double().sum(1)
        parts = {
            "loss": found.cross_entropy.double().sum() / count,
            "divergence": divergence_B.sum() / count,
        }
        # A product, not `index_add_`, which on a GPU adds in an order that varies.
        index_B = torch.from_numpy(rows.domains).to(device, non_blocking=True)
        is_of_BD = index_B[:, None] == torch.arange(len(rows.names), device=device)
        means_B = divergence_B / (blocks_BT.shape[1] - 1)
        by_domain = torch.stack([means_B, torch.ones_like(means_B)]) @ is_of_BD.double()
        return Losses(found.loss, parts, by_domain)


class DomainMeans:
    """Means by domain over the steps since the last evaluation, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, sums: Tensor, skipped: Tensor, ranks: int) -> None:
        """Add the sums of a step.

        Args:
            sums: [2, domains], the mean over ranks: of the numbers, and how many there were.
            skipped: 1 where the step changed nothing, which then is not counted; else 0.
            ranks: How many there are; a run that is resumed may have others.
        """
        kept = torch.where(skipped > 0, torch.zeros_like(sums), sums * ranks)
        self._sums = kept if self._sums is None else self._sums + kept

    def take(self, names: Sequence[str]) -> dict[str, float] | None:
        """The means of the domains that had any, which then begin anew; None without any step."""
        if self._sums is None:
            return None
        (sums, counts), self._sums = self._sums.tolist(), None
        return {n: s / c for n, s, c in zip(names, sums, counts, strict=True) if c}

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain JSON values; nothing before the first step, or without any."""
        return {} if self._sums is None else {"divergence": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` gave, from a state that may have other entries too."""
        sums = state.get("divergence")
        known = torch.tensor(sums, dtype=torch.float64, device=device) if sums else None
        self._sums = known
