"""Hard-concrete masks over the parts of a model, and the constraints that bring them to a target.

Granularities and the shape of their masks: `layer` [layers], `hidden` [hidden size], `head`
[layers, key-value heads], `intermediate` [layers, intermediate size]. A granularity whose size the
target leaves alone has no mask and no multiplier. Source: Deng et al. (arXiv 2411.14055),
section 2.1.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from drpruning.pruning import hard_concrete
from drpruning.pruning.families import Axis, count_parameters
from drpruning.pruning.plan import GRANULARITIES, PruningPlan, query_heads
from drpruning.pruning.shapes import ModelShape

Mode = Literal["sampled", "current", "target", "ones"]
"""Random masks; deterministic ones with as many zeros as expected now; deterministic ones with
exactly the target's zeros; no masks."""


class Masks(nn.Module):
    """Masks and Lagrange multipliers, small enough to be replicated on every rank.

    Attributes:
        source: shape of the model that the masks lie over.
        target: shape that they are driven to.
        log_alpha: granularity -> parameter of its masks.
        linear: granularity -> multiplier of the deviation (lambda of Eq. 1), one per constraint.
        quadratic: granularity -> multiplier of its square (phi of Eq. 1).
    """

    def __init__(
        self, source: ModelShape, target: ModelShape, seed: int, device: torch.device | None = None
    ) -> None:
        """Masks near one and multipliers at zero.

        Args:
            source: shape of the model.
            target: shape to reach, at most the source's in every dimension.
            seed: of the initial masks and of all noise.
            device: where the parameters live.
        """
        super().__init__()
        self.source, self.target, self.seed = source, target, seed
        self._kept = _unit_counts(target)
        generator = _generator(seed, 0)
        self.log_alpha, self.linear, self.quadratic = (nn.ParameterDict() for _ in range(3))
        for name, shape in _mask_shapes(source).items():
            if self._kept[name] == shape[-1]:
                continue
            noise = torch.randn(shape, generator=generator) * hard_concrete.INITIAL_DEVIATION
            self.log_alpha[name] = nn.Parameter((hard_concrete.INITIAL_MEAN + noise).to(device))
            constraints = shape[:-1] or (1,)
            self.linear[name] = nn.Parameter(torch.zeros(constraints, device=device))
            self.quadratic[name] = nn.Parameter(torch.zeros(constraints, device=device))
        self.set_step(0, 0.0)

    @property
    def granularities(self) -> tuple[str, ...]:
        """Names of the masked granularities, in a fixed order."""
        return tuple(self.log_alpha)

    def set_step(self, step: int, progress: float, part: int = 0) -> None:
        """Choose the noise and the scheduled sparsity.

        Args:
            step: optimizer step, from 0.
            progress: share of the sparsity warm-up that is done, in [0, 1]; the scheduled sparsity
                is this share of the final one.
            part: part of the global batch.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], not {progress}")
        self.step, self.progress = step, float(progress)
        self.set_part(part)

    def set_part(self, part: int) -> None:
        """Choose the noise of another part of the global batch at the same step."""
        self.part = part
        self._noise: dict[str, Tensor] | None = None

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring every log-alpha back into its range, in place."""
        for log_alpha in self.log_alpha.values():
            log_alpha.clamp_(hard_concrete.SMALLEST_LOG_ALPHA, hard_concrete.LARGEST_LOG_ALPHA)

    def values(self, mode: Mode) -> dict[str, Tensor]:
        """Mask values by granularity; empty for `ones`.

        Sampled values are differentiable, the others are not. The same (seed, step, part) gives the
        same noise on every device and rank.
        """
        if mode == "ones":
            return {}
        self.clamp()
        if mode == "sampled":
            noise = self._uniform()
            return {n: hard_concrete.sample(a, noise[n]) for n, a in self.log_alpha.items()}
        with torch.no_grad():
            kept = self.kept(mode)
            return {n: hard_concrete.soft_value(a) * kept[n] for n, a in self.log_alpha.items()}

    @torch.no_grad()
    def kept(self, mode: Literal["current", "target"]) -> dict[str, Tensor]:
        """Which units stay, as booleans; never none of a kind."""
        self.clamp()
        kept = {}
        for name, log_alpha in self.log_alpha.items():
            count: Tensor | int = self._kept[name]
            if mode == "current":
                expected = hard_concrete.expected_score(log_alpha).sum(-1, keepdim=True)
                count = expected.round().clamp(min=1)
            kept[name] = hard_concrete.keep_highest(log_alpha, count)
        return kept

    def _uniform(self) -> dict[str, Tensor]:
        if self._noise is None:
            generator = _generator(self.seed, 1, self.step, self.part)
            self._noise = {
                name: torch.rand(log_alpha.shape, generator=generator).to(log_alpha.device)
                for name, log_alpha in self.log_alpha.items()
            }
        return self._noise

    def expected_sparsity(self) -> dict[str, Tensor]:
        """Expected share of units removed, one entry per constraint: [1] or [layers]."""
        self.clamp()
        return {
            name: 1 - hard_concrete.expected_score(log_alpha).mean(-1, keepdim=True).flatten()
            for name, log_alpha in self.log_alpha.items()
        }

    def final_sparsity(self) -> dict[str, float]:
        """Share of units that the target removes."""
        sizes = _unit_counts(self.source)
        return {name: 1 - self._kept[name] / sizes[name] for name in self.log_alpha}

    def target_sparsity(self) -> dict[str, float]:
        """Share of units that should be removed at this progress of the warm-up."""
        return {name: self.progress * share for name, share in self.final_sparsity().items()}

    def lagrangian(self) -> Tensor:
        """Eq. 1: deviation x lambda + deviation^2 x phi, a scalar.

        Averaged over layers for head and intermediate, summed over granularities. Descend in the
        masks, ascend in the multipliers.
        """
        targets = self.target_sparsity()
        terms = []
        for name, sparsity in self.expected_sparsity().items():
            deviation = sparsity - targets[name]
            term = self.linear[name] * deviation + self.quadratic[name] * deviation.square()
            terms.append(term.mean())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def deviation(self) -> dict[str, float]:
        """Largest |expected - scheduled| sparsity over the constraints of each granularity."""
        targets = self.target_sparsity()
        return {
            name: (sparsity - targets[name]).abs().max().item()
            for name, sparsity in self.expected_sparsity().items()
        }

    @torch.no_grad()
    def expected_scores(self) -> dict[str, Tensor]:
        """P(mask != 0) of every unit."""
        self.clamp()
        return {n: hard_concrete.expected_score(a) for n, a in self.log_alpha.items()}

    @torch.no_grad()
    def parameter_count(self, scores: dict[str, Tensor]) -> Tensor:
        """Parameters of the model in expectation: the product of the scores along each weight.

        Args:
            scores: granularity -> P(kept) of every unit; with zeros and ones the result is the
                number of parameters of the model that is left.

        Returns:
            float64 scalar on the CPU.
        """
        shape = self.source
        sizes = {
            name: scores[name].to("cpu", torch.float64).sum(-1)
            if name in scores
            else torch.tensor(float(_unit_counts(shape)[name]), dtype=torch.float64)
            for name in ("hidden", "head", "intermediate")
        }
        layers = scores.get("layer", torch.ones(shape.num_layers)).to("cpu", torch.float64)
        family = shape.family
        axes: dict[Axis, Any] = {
            **shape.axis_sizes(),
            "hidden": sizes["hidden"],
            "query": sizes["head"] * shape.queries_per_group * shape.head_dim,
            "key": sizes["head"] * shape.head_dim,
            "intermediate": sizes["intermediate"],
        }
        per_layer = count_parameters(family.layer_table(shape.switches), axes)
        outside = count_parameters(family.global_table(tied=shape.tied_embeddings), axes)
        total: Tensor = (layers * per_layer).sum() + outside
        return total

    def plan(self) -> PruningPlan:
        """What stays at the exact target: the highest log-alphas, in every layer."""
        kept = self.kept("target")
        shapes = _mask_shapes(self.source)
        chosen = {
            name: kept[name].cpu() if name in kept else torch.ones(shapes[name], dtype=torch.bool)
            for name in GRANULARITIES
        }
        layers = _indices(chosen["layer"])
        groups = tuple(_indices(chosen["head"][layer]) for layer in layers)
        return PruningPlan(
            source=self.source,
            target=self.target,
            layers=layers,
            hidden=_indices(chosen["hidden"]),
            kv_groups=groups,
            heads=tuple(query_heads(kept, self.source.queries_per_group) for kept in groups),
            intermediate=tuple(_indices(chosen["intermediate"][layer]) for layer in layers),
        )


def _unit_counts(shape: ModelShape) -> dict[str, int]:
    return {
        "layer": shape.num_layers,
        "hidden": shape.hidden_size,
        "head": shape.num_kv_heads,
        "intermediate": shape.intermediate_size,
    }


def _mask_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    per_layer = {"head", "intermediate"}
    return {
        name: (shape.num_layers, count) if name in per_layer else (count,)
        for name, count in _unit_counts(shape).items()
    }


def _generator(seed: int, *key: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]) >> 1)


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
