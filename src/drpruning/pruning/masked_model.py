"""The user's own model with masks attached from outside, and its export to a smaller model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn

from drpruning.common.errors import BadInput
from drpruning.pruning.attachment import Attachment, attach, plain_name
from drpruning.pruning.families import undoes_centring
from drpruning.pruning.masks import INITIAL_PENALTY, Masks, Mode
from drpruning.pruning.plan import PruningPlan
from drpruning.pruning.shapes import PRUNABLE, ModelShape
from drpruning.pruning.surgery import build_model, check_model, slice_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


EXPORT_TOLERANCE = 1e-4
"""Allowed root mean square of the differences between the logits of the masked and of the exported
model, in float32. By this measure rounding stays two orders of magnitude below the smallest known
fault; by the largest single difference it does not."""

BFLOAT16_ROUNDING = 2.0**-8
"""Relative error of a number held in bfloat16, at most."""


class ExportError(RuntimeError):
    """The exported model does not compute what the masked model does; nothing was returned."""


class MaskedModel(nn.Module):
    """A model, its masks and their multipliers; called like the model. Made by `attach_masks`.

    `model` and `masks` stand side by side, so that a trainer can shard `masked.model` alone and
    replicate `masked.masks`. Gradient checkpointing must be non-reentrant (Transformers' default),
    and between a forward pass and its backward pass there must be no other forward pass of the
    same object, because recomputed layers read the latest masks. `model` called by itself computes
    under the masks of the last pass; to generate or to save, export.

    Attributes:
        model: the Transformers model, its gated weights parametrized.
        masks: log-alphas and multipliers.
        mode: which masks a forward pass uses.
    """

    def __init__(self, model: "PreTrainedModel", masks: Masks, attachment: Attachment) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.masks = masks
        self.mode: Mode = "sampled"
        self._attachment = attachment
        self.train(model.training)

    @property
    def source(self) -> ModelShape:
        """The shape of the model under the masks."""
        return self.masks.source

    @property
    def target(self) -> ModelShape:
        """The shape of the model that export returns."""
        return self.masks.target

    @property
    def config(self) -> "PreTrainedConfig":
        """The configuration of the model under the masks, at its own size."""
        return self.model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward pass under the masks of the current mode."""
        return self.run_with(self.masks.values(self.mode), *args, **kwargs)

    def run_with(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward pass under given mask values, differentiable in them.

        Args:
            values: granularity -> values shaped like its log-alphas; missing ones count as one.
            args: for the model.
            kwargs: for the model.
        """
        self._attachment.set(values, rescale=True)
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Switch to training with sampled masks, or to evaluation with deterministic ones."""
        super().train(mode)
        self.use_masks("sampled" if mode else "current")
        return self

    def use_masks(self, mode: Mode) -> None:
        """Choose the masks of the forward passes that follow, until the next train() or eval().

        Args:
            mode: `sampled` draws them from (seed, step, part); `current` has as many zeros as
                expected now; `target` has exactly the target's zeros; `ones` is the source model.

        Raises:
            BadInput: there is no such mode.
        """
        if mode not in get_args(Mode):
            raise BadInput(f"mask mode {mode!r} is none of {', '.join(get_args(Mode))}")
        self.mode = mode

    def set_step(self, step: int, progress: float, part: int = 0) -> None:
        """Choose the noise and the scheduled sparsity; see `Masks.set_step`."""
        self.masks.set_step(step, progress, part)

    def set_part(self, part: int) -> None:
        """Choose the noise of another part of the global batch at the same step."""
        self.masks.set_part(part)

    def lagrangian(self) -> Tensor:
        """The penalty to add to the loss, once per optimizer step; see `Masks.lagrangian`."""
        return self.masks.lagrangian()

    def expected_parameters(self) -> Tensor:
        """The expected number of parameters under the masks, a float64 scalar on the CPU."""
        return self.masks.parameter_count(self.masks.expected_scores())

    @torch.no_grad()
    def sparsity(self) -> dict[str, float]:
        """The expected share removed, the mean over layers, by granularity."""
        expected = self.masks.expected_sparsity()
        means = torch.stack([share.mean() for share in expected.values()]).tolist()
        return dict(zip(expected, means, strict=True))

    def target_sparsity(self) -> dict[str, float]:
        """The share that should be removed at this progress of the warm-up, by granularity."""
        return self.masks.target_sparsity()

    def sparsity_deviation(self) -> dict[str, float]:
        """The largest |expected - scheduled| sparsity over layers, by granularity."""
        return self.masks.deviation()

    def parameter_groups(
        self,
        *,
        learning_rate: float,
        mask_learning_rate: float,
        multiplier_learning_rate: float = 1.0,
        weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Parameter groups for one AdamW, each with a `name`: weights, masks, and multipliers.

        Multipliers ascend (`maximize`) where the others descend; see `Masks.lagrangian`.

        Args:
            learning_rate: of the weights.
            mask_learning_rate: of the log-alphas.
            multiplier_learning_rate: of the multipliers.
            weight_decay: of the weights; the other groups have none.
        """
        weights = [p for p in self.model.parameters() if p.requires_grad]
        masks = list(self.masks.log_alpha.values())
        multipliers = [*self.masks.linear.values(), *self.masks.quadratic.values()]
        fixed = {"weight_decay": 0.0}
        return [
            {"name": "weights", "params": weights, "lr": learning_rate,
             "weight_decay": weight_decay},
            {"name": "masks", "params": masks, "lr": mask_learning_rate, **fixed},
            {"name": "multipliers", "params": multipliers, "lr": multiplier_learning_rate,
             "maximize": True, **fixed},
        ]  # fmt: skip

    def plan(self) -> PruningPlan:
        """The plan by which the model would be cut to the target now."""
        return self.masks.plan()

    def plain_state_dict(self) -> dict[str, Any]:
        """The model's state without masks in effect, under the names it has without them."""
        state = self._attachment.model.state_dict()
        return {plain_name(name): value for name, value in state.items()}

    def load_plain_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `plain_state_dict` returned, or that of the model without masks."""
        model = self._attachment.model
        names = {plain_name(name): name for name in model.state_dict()}
        model.load_state_dict({names.get(name, name): value for name, value in state.items()})

    @torch.no_grad()
    def export(self, tolerance: float = EXPORT_TOLERANCE) -> "PreTrainedModel":
        """Fold the masks' values into the weights and cut to the exact target.

        The result is compared with the masked model on random tokens. Folding and comparison are in
        float32; a model of another type is held in float32 while they last.

        Args:
            tolerance: root mean square of the differences of logits that passes, for logits of
                order one; it grows with their standard deviation, as the rounding does.

        Returns:
            A plain Transformers model of the same family, type and device, in evaluation mode.

        Raises:
            ExportError: the logits differ by more than the tolerance.

        Attention kernels must take float32. FlashAttention does not: choose another with the
        model's `set_attn_implementation` before.
        """
        model = self._attachment.model
        mode, training = self.mode, self.training
        dtype = next(model.parameters()).dtype
        self.eval()
        try:
            with _full_precision(model):
                values = self.masks.values("target")
                self._attachment.set(values, rescale=False)
                plan = self.plan()
                exported = build_model(model, plan, slice_parameters(self._folded(values), plan))
                self._attachment.set(values, rescale=True)
                self._compare(exported, tolerance)
        finally:
            self.train(training)
            self.use_masks(mode)
        parameters = list(exported.parameters())
        _cast(parameters, [dtype] * len(parameters))
        exported.config.dtype = dtype
        return exported

    def _folded(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every parameter under its plain name, with the masks that act on it multiplied in."""
        attachment, family = self._attachment, self.source.family
        folded = {plain_name(n): p.detach() for n, p in attachment.model.named_parameters()}
        for name, (module, parameter) in attachment.parameters.items():
            # A tied matrix carries the masks to the output; the final norm must not do so again.
            if not (self.source.tied_embeddings and name.startswith(f"{family.final_norm}.")):
                folded[name] = getattr(module, parameter)
        if "hidden" in values:
            embedding = f"{family.embedding}.weight"
            folded[embedding] = folded[embedding] * values["hidden"]
        return folded

    def _compare(self, exported: "PreTrainedModel", tolerance: float) -> None:
        """Compare the logits of the exported model with those of the masked one.

        Raises:
            ExportError: they differ by more than the tolerance.
        """
        model = self._attachment.model
        length = min(64, getattr(model.config, "max_position_embeddings", 64))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.source.vocab_size, (2, length), generator=generator)
        tokens = tokens.to(next(model.parameters()).device)
        expected = model(input_ids=tokens, use_cache=False).logits
        with self._rounded_buffers(exported):
            found = exported(input_ids=tokens, use_cache=False).logits
        difference = (expected - found).square().mean().sqrt().item()
        allowed = tolerance * max(1.0, expected.std().item())
        if not difference <= allowed:
            raise ExportError(
                f"the exported model's logits differ from the masked model's by {difference:.3g} "
                f"(root mean square) where {allowed:.3g} is allowed; nothing was exported"
            )

    @contextmanager
    def _rounded_buffers(self, exported: "PreTrainedModel") -> Iterator[None]:
        """Give the exported model constants as rounded as the source's, while the block runs.

        A model held in bfloat16 may have rounded its rotary frequencies and the embedding's scale
        too. Then only weights and shape are compared, and not that rounding.
        """
        change = (self.target.hidden_size / self.source.hidden_size) ** 0.5
        own = dict(self._attachment.model.named_buffers())
        exact = {}
        for name, buffer in exported.named_buffers():
            if name in own and own[name].shape == buffer.shape and buffer.is_floating_point():
                scaled = self.source.family.scaled_embedding and buffer.ndim == 0
                rounded = own[name].float() * (change if scaled else 1.0)
                if torch.allclose(rounded, buffer.float(), rtol=BFLOAT16_ROUNDING, atol=0):
                    exact[buffer] = buffer.data
                    buffer.data = rounded
        try:
            yield
        finally:
            for buffer, value in exact.items():
                buffer.data = value


def attach_masks(
    model: "PreTrainedModel",
    target: ModelShape,
    seed: int = 0,
    initial_penalty: float = INITIAL_PENALTY,
) -> MaskedModel:
    """Attach masks to a model, in place: its gated weights become parametrized.

    A model whose configuration has a `pad_token_id` gets no gradient in that row of its embedding.
    Where training reads the token (often it is EOS), set `padding_idx` of
    `model.get_input_embeddings()` to None, as `drprune` does with the models that it loads.

    Args:
        model: a Transformers causal language model of a known family. If it is on the meta device,
            its masks are on the CPU and only a plan can be made.
        target: shape to prune to, see `ModelShape.pruned_to`.
        seed: of the initial masks and of all mask noise.
        initial_penalty: quadratic multipliers at the start (phi of Eq. 1).

    Raises:
        BadInput: the model is not of a known family or has masks already, or its dropout does not
            go with masks; the target is equal to its shape or cannot be reached from it.
    """
    if isinstance(model, MaskedModel):
        raise BadInput("the model has masks attached already")
    source = check_model(model)
    _check_target(source, target)
    device = model.get_parameter(f"{source.family.embedding}.weight").device
    device = torch.device("cpu") if device.type == "meta" else device
    masks = Masks(source, target, seed, device, initial_penalty)
    if "hidden" in masks.granularities and (dropout := undoes_centring(model.config.to_dict())):
        raise BadInput(dropout)
    return MaskedModel(model, masks, attach(model, source, set(masks.granularities)))


def _check_target(source: ModelShape, target: ModelShape) -> None:
    differences = source.differences(target)
    if not differences:
        raise BadInput("the target has the source's shape: there is nothing to prune")
    for name, (own, wanted) in differences.items():
        if name not in PRUNABLE:
            raise BadInput(f"the target has {name} {wanted}, the model {own}; it cannot be pruned")
    source.pruned_to(**{name: getattr(target, name) for name in PRUNABLE})


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """Compute in float32 without reduced-precision matrix products, while the block runs."""
    parameters = list(model.parameters())
    dtypes, precision = [p.dtype for p in parameters], torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        _cast(parameters, [torch.float32] * len(parameters))
        with torch.autocast(parameters[0].device.type, enabled=False):
            yield
    finally:
        _cast(parameters, dtypes)
        torch.set_float32_matmul_precision(precision)


def _cast(parameters: Iterable[Tensor], dtypes: Iterable[torch.dtype]) -> None:
    """Change the types of parameters in place; buffers such as rotary frequencies keep theirs."""
    for parameter, dtype in zip(parameters, dtypes, strict=True):
        parameter.data = parameter.data.to(dtype)
