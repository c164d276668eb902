"""Hard-concrete masks over the parts of a model, and the constraints that bring them to a target.

Granularities and the shape of their masks: `layer` [layers], `hidden` [hidden size], `head`
[layers, heads], `intermediate` [layers, intermediate size]. With grouped-query attention there is
`group` [layers, key-value heads], and `head` is [layers, key-value heads, query heads of each]: a
query head counts as kept where its group is. Every row (the last dimension) has one constraint. A
granularity whose count in a row the target leaves alone has no mask and no multiplier. Where kinds
of layers alternate, `layer` has one mask for each run of `ModelShape.layer_period` layers. Source:
Deng et al. (arXiv 2411.14055), section 2.1.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from drpruning.pruning import hard_concrete
from drpruning.pruning.families import Axis, count_parameters
from drpruning.pruning.plan import PruningPlan
from drpruning.pruning.shapes import ModelShape

Mode = Literal["sampled", "current", "target", "ones"]
"""Which masks are in effect: random ones; deterministic ones with as many zeros as expected now;
deterministic ones with exactly the target's zeros; none."""

INITIAL_PENALTY = 100.0
"""The quadratic multipliers at the start. The paper starts them at 0. They can only grow, by about
their learning rate per step (AdamW's steps do not depend on the size of the gradient), so within
hundreds of steps they never become large enough to damp the oscillation of the masks."""


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
        self,
        source: ModelShape,
        target: ModelShape,
        seed: int,
        device: torch.device | None = None,
        initial_penalty: float = INITIAL_PENALTY,
    ) -> None:
        """Create masks near one.

        Args:
            source: shape of the model.
            target: shape to reach, at most the source's in every dimension.
            seed: of the initial masks and of all noise.
            device: where the parameters live.
            initial_penalty: quadratic multipliers at the start; the linear ones are zero.
        """
        super().__init__()
        self.source, self.target, self.seed = source, target, seed
        self._kept = _row_sizes(target, like=source)
        generator = _generator(seed, 0)
        self.log_alpha, self.linear, self.quadratic = (nn.ParameterDict() for _ in range(3))
        for name, shape in _mask_shapes(source).items():
            if self._kept[name] == shape[-1]:
                continue
            # Drawn on the CPU, so that masks depend neither on the device nor on the rank.
            noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            noise *= hard_concrete.INITIAL_DEVIATION
            self.log_alpha[name] = nn.Parameter((hard_concrete.INITIAL_MEAN + noise).to(device))
            constraints = shape[:-1] or (1,)
            zeros = torch.zeros(constraints, dtype=torch.float32, device=device)
            self.linear[name] = nn.Parameter(zeros)
            penalty = torch.full_like(zeros, initial_penalty)
            self.quadratic[name] = nn.Parameter(penalty)
        self.set_step(0, 0.0)

    @property
    def granularities(self) -> tuple[str, ...]:
        """Names of the masked granularities, in a fixed order."""
        return tuple(self.log_alpha)

    def set_step(self, step: int, progress: float, part: int = 0) -> None:
        """Choose the noise and the scheduled sparsity of the forward passes that follow.

        Args:
            step: optimizer step, from 0.
            progress: share of the sparsity warm-up that is done, in [0, 1]; the scheduled sparsity
                is this share of the final one.
            part: part of the global batch; each part has noise of its own.

        Raises:
            ValueError: `progress` is outside [0, 1].
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
        """Choose the units that stay, as booleans; of every kind at least one does."""
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
                name: torch.rand(
                    log_alpha.shape, generator=generator, dtype=torch.float32, device="cpu"
                ).to(log_alpha.device, non_blocking=True)
                for name, log_alpha in self.log_alpha.items()
            }
        return self._noise

    def expected_sparsity(self) -> dict[str, Tensor]:
        """The expected share of units removed (s of Eq. 1), one entry per constraint.

        Shapes: [1] for layer and hidden, [layers] for what lies within layers, [layers, groups] for
        query heads within groups.
        """
        self.clamp()
        return {
            name: 1 - hard_concrete.expected_score(a).mean(-1).reshape(self.linear[name].shape)
            for name, a in self.log_alpha.items()
        }

    def final_sparsity(self) -> dict[str, float]:
        """The share of units that the target removes, by granularity."""
        sizes = _row_sizes(self.source, like=self.source)
        return {name: 1 - self._kept[name] / sizes[name] for name in self.log_alpha}

    def target_sparsity(self) -> dict[str, float]:
        """The share of units that should be removed at this progress of the warm-up, t of Eq. 1."""
        return {name: self.progress * share for name, share in self.final_sparsity().items()}

    def lagrangian(self) -> Tensor:
        """The penalty of Eq. 1, lambda (s - t) + phi (s - t)^2, as a scalar.

        It is averaged over the constraints of a granularity (layers; layers and groups) and summed
        over granularities. Descend in the masks, ascend in the multipliers.
        """
        # Each layer has a constraint of its own: the exported model is uniform, so every layer must
        # come to the target's width, not only their mean. As the multipliers ascend, lambda adds up
        # the deviation until that is gone; the term with phi damps the oscillation on the way.
        targets = self.target_sparsity()
        terms = []
        for name, sparsity in self.expected_sparsity().items():
            deviation = sparsity - targets[name]
            term = self.linear[name] * deviation + self.quadratic[name] * deviation.square()
            terms.append(term.mean())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def deviation(self) -> dict[str, float]:
        """The largest |expected - scheduled| sparsity over the constraints of each granularity."""
        targets = self.target_sparsity()
        return {
            name: (sparsity - targets[name]).abs().max().item()
            for name, sparsity in self.expected_sparsity().items()
        }

    @torch.no_grad()
    def expected_scores(self) -> dict[str, Tensor]:
        """P(mask != 0) of every unit, by granularity."""
        self.clamp()
        return {n: hard_concrete.expected_score(a) for n, a in self.log_alpha.items()}

    @torch.no_grad()
    def parameter_count(self, scores: dict[str, Tensor]) -> Tensor:
        """The expected number of parameters: the product of the scores along each weight.

        Args:
            scores: granularity -> P(kept) of every unit; with zeros and ones the result is the
                number of parameters of the model that is left.

        Returns:
            float64 scalar on the CPU.
        """
        shape = self.source
        ones = {n: torch.ones(s, dtype=torch.float64) for n, s in _mask_shapes(shape).items()}
        full = ones | {name: score.to("cpu", torch.float64) for name, score in scores.items()}
        groups, heads = heads_by_axis(full)
        axes: dict[Axis, Any] = {
            **shape.axis_sizes(),
            "hidden": full["hidden"].sum(),
            "query": heads.sum(-1) * shape.head_dim,
            "key": groups.sum(-1) * shape.head_dim,
            "intermediate": full["intermediate"].sum(-1),
        }
        family = shape.family
        per_layer = count_parameters(family.layer_table(shape.switches), axes)
        outside = count_parameters(family.global_table(tied=shape.tied_embeddings), axes)
        layers = each_layer(full["layer"], shape)
        total: Tensor = (layers * per_layer).sum() + outside
        return total

    def plan(self) -> PruningPlan:
        """The plan at the exact target: the highest log-alphas of every row stay."""
        kept = {n: torch.ones(s, dtype=torch.bool) for n, s in _mask_shapes(self.source).items()}
        kept |= {name: chosen.cpu() for name, chosen in self.kept("target").items()}
        layers = _indices(each_layer(kept["layer"], self.source))
        groups, heads = heads_by_axis(kept)
        return PruningPlan(
            source=self.source,
            target=self.target,
            layers=layers,
            hidden=_indices(kept["hidden"]),
            kv_groups=tuple(_indices(groups[layer]) for layer in layers),
            heads=tuple(_indices(heads[layer]) for layer in layers),
            intermediate=tuple(_indices(kept["intermediate"][layer]) for layer in layers),
        )


def each_layer(values: Tensor, shape: ModelShape) -> Tensor:
    """The values of layers, from those by granularity: neighbours that go together share one."""
    return values.repeat_interleave(shape.layer_period)


def heads_by_axis(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The values of key-value heads and of query heads, from those by granularity.

    Args:
        values: has `head`, and with grouped-query attention `group` too.

    Returns:
        [layers, key-value heads] and [layers, query heads], where a query head has the product of
        its own value and its group's.
    """
    heads = values["head"]
    if "group" not in values:
        return heads, heads
    groups = values["group"]
    return groups, (groups[..., None] * heads).flatten(1)


def _row_sizes(shape: ModelShape, *, like: ModelShape) -> dict[str, int]:
    """The number of units in a row of each granularity, of a shape that `like` is pruned to."""
    sizes = {
        "layer": shape.num_layers // like.layer_period,
        "hidden": shape.hidden_size,
        "head": shape.num_heads,
        "intermediate": shape.intermediate_size,
    }
    if like.grouped:
        sizes |= {"group": shape.num_kv_heads, "head": shape.queries_per_group}
    return sizes


def _mask_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The shapes of all masks, in the order in which their noise is drawn."""
    layers, sizes = shape.num_layers, _row_sizes(shape, like=shape)
    shapes: dict[str, tuple[int, ...]] = {"layer": (sizes["layer"],), "hidden": (sizes["hidden"],)}
    if shape.grouped:
        shapes["group"] = (layers, sizes["group"])
        shapes["head"] = (layers, sizes["group"], sizes["head"])
    else:
        shapes["head"] = (layers, sizes["head"])
    return shapes | {"intermediate": (layers, sizes["intermediate"])}


def _generator(seed: int, *key: int) -> torch.Generator:
    # Distinct keys give independent streams, where sums such as seed + step would repeat them.
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]) >> 1)


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
