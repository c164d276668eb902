"""The pruning phase: masks, multipliers and weights are trained together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drpruning.data import Mixture
from drpruning.pruning import MaskedModel, PruningPlan
from drpruning.recipe import Prune
from drpruning.scheduling import Policy
from drpruning.training.loop import Loop, Setting
from drpruning.training.metrics import JsonLines


class PruningLoop(Loop):
    """The loop with masks: noise by part, the Lagrangian, the sparsity schedule, plans."""

    phase = "prune"

    def __init__(self, setting: Setting, masked: MaskedModel, policy: Policy, mixture: Mixture):
        """As `Loop`; `masked` is the source model with masks attached."""
        assert isinstance(setting.settings, Prune)  # noqa: S101 - for the type checker
        self.masked = masked
        self.masking = setting.settings
        self.parts = self.masking.mask_samples
        self.plans = JsonLines(setting.folder / "prune" / "plans.jsonl")
        super().__init__(setting, masked, policy, mixture)

    def trained(self) -> nn.Module:
        """Weights, masks and multipliers."""
        return self.masked

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Three groups: weights, masks, multipliers (these ascend)."""
        return self.masked.parameter_groups(
            learning_rate=self.masking.learning_rate,
            mask_learning_rate=self.masking.mask_learning_rate,
            multiplier_learning_rate=self.masking.multiplier_learning_rate,
            weight_decay=self.masking.weight_decay,
        )

    def wrap(self) -> None:
        """The inner model is wrapped alone: masks and multipliers stay whole on every rank."""
        self.masked.to(self.device)
        self.masked.model = self._wrapped(self.masked.model)

    def synchronised(self) -> nn.Module:
        """The inner model."""
        return self.masked.model

    def prepare_step(self) -> None:
        """Key the noise and set the scheduled sparsity (linear over the warm-up)."""
        warmup = self.masking.sparsity_warmup * self.masking.steps
        self.masked.set_step(self.step, min(1.0, self.step / warmup) if warmup else 1.0)

    def prepare_pass(self, part: int) -> None:
        """Key the noise to the part."""
        self.masked.set_part(part)

    def finish_gradients(self) -> dict[str, Tensor]:
        """The Lagrangian's gradients, then the mean of the masks' gradients over ranks."""
        lagrangian = self.masked.lagrangian()
        lagrangian.backward()  # type: ignore[no-untyped-call]
        if self.accelerator.num_processes > 1:
            for parameter in self.masked.masks.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return {"lagrangian": lagrangian.detach()}

    def step_fields(self) -> dict[str, Any]:
        """Sparsities against their targets, and the expected number of parameters."""
        return {
            "sparsity": self.masked.sparsity(),
            "target_sparsity": self.masked.target_sparsity(),
            "sparsity_deviation": self.masked.sparsity_deviation(),
            "expected_parameters": self.parameter_count(),
        }

    @torch.no_grad()
    def parameter_count(self) -> float:
        """Expected parameters under the masks."""
        return float(self.masked.expected_parameters())

    def final_parameter_count(self) -> float:
        """Parameters of the target."""
        return float(self.masked.target.num_parameters())

    def after_evaluation(self) -> None:
        """Keep the plan that would be cut now."""
        if self.accelerator.is_main_process:
            self.plans.path.parent.mkdir(exist_ok=True)
            if self.step == 0:
                self.plans.cut(0)
            plan = json.loads(self.masked.plan().to_json())
            self.plans.write({"step": self.step, "plan": plan})

    def extra_state(self) -> dict[str, Any]:
        """How much of plans.jsonl belongs to the checkpoint."""
        return {"plans_bytes": self.plans.size()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Cut plans.jsonl back."""
        if self.accelerator.is_main_process:
            self.plans.cut(state["plans_bytes"])

    def write_outcome(self) -> PruningPlan:
        """Write plan.json, masks.safetensors and similarity.json; returns the final plan."""
        folder: Path = self.plans.path.parent
        plan = self.masked.plan()
        plan.save(folder / "plan.json")
        masks = {n: t.detach().cpu() for n, t in self.masked.masks.state_dict().items()}
        save_file(masks, folder / "masks.safetensors")
        rows = []
        for record in self.plans.read():
            earlier = PruningPlan.from_json(json.dumps(record["plan"]))
            rows.append({"step": record["step"], "similarity": earlier.similarity(plan)})
        names = list(rows[-1]["similarity"])
        outcome = {"granularities": names, "rows": rows}
        (folder / "similarity.json").write_text(json.dumps(outcome))
        return plan
