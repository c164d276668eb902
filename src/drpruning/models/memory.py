"""Memory of a training step on each GPU, from the shape alone. Importable without torch.

Counted at the moments where a step can be at its largest: the loss, the backward pass of a layer,
and (sharded) the gradients of embedding and head being reduced. Everything else is smaller.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from drpruning.pruning import ModelShape
from drpruning.recipe import Training

BYTES_PER_PARAMETER = 16
"""float32 weights, gradients and two AdamW moments."""
SHARDED_OVER = (1, 4, 8)
"""GPUs that a plan shows."""
EAGER_BY_DEFAULT = {"gemma2"}
"""Families that Transformers gives no other attention unless asked."""

_LOSS = 12
"""Bytes a logit in the backward pass of the cross-entropy: three in float32."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a GPU needs for a training step.

    Attributes:
        whole: Weights and optimizer are whole on each GPU.
        sharded: GPUs -> bytes on each under FSDP2.
    """

    whole: int
    sharded: dict[int, int]


class _Arithmetic(NamedTuple):
    """Bytes a number takes."""

    stream: int
    """In the residual stream."""
    compute: int
    """In matrix products."""


@dataclass(frozen=True)
class _Step:
    """What a micro-batch of a shape keeps."""

    shape: ModelShape
    training: Training
    tokens: int
    length: int
    arithmetic: _Arithmetic

    def _normed(self, readers: int) -> int:
        """A norm's float32 input, its normalised values, and what its readers keep of its output.

        Under autocast every reader keeps a copy of its own.
        """
        stream, compute = self.arithmetic
        return self.shape.hidden_size * (4 + stream + compute * (readers, 1)[stream == compute])

    def layer(self) -> int:
        """Activations of a layer that wait for its backward pass."""
        shape = self.shape
        heads = shape.head_dim * (shape.num_heads + shape.num_kv_heads)
        inner = self.arithmetic.compute * (2 * heads + 4 * shape.intermediate_size)
        a_token = self._normed(3) + self._normed(2) + inner + 4 * shape.num_heads
        return self.tokens * (a_token + self.scores())

    def scores(self) -> int:
        """Attention weights a token where these are written out: in float32, and cast."""
        chosen = self.training.attention
        eager = chosen == "eager" or (chosen is None and self.shape.model_type in EAGER_BY_DEFAULT)
        width = 4 if self.arithmetic.compute == 4 else 4 + self.arithmetic.compute
        return width * self.shape.num_heads * self.length if eager else 0

    def backward(self) -> int:
        """Gradients of activations at the widest place of a layer."""
        wide = self.shape.hidden_size + 2 * self.shape.intermediate_size
        return self.tokens * max(self.arithmetic.compute * wide, 2 * self.scores())

    def kept(self) -> int:
        """Activations of the whole model, of a layer its input alone with checkpointing."""
        one = self.layer()
        if self.training.gradient_checkpointing:
            one = self.tokens * self.shape.hidden_size * self.arithmetic.stream
        return self.shape.num_layers * one + self.tokens * self._normed(1)

    def loss(self, width: int = _LOSS) -> int:
        """Logits; Liger's loss never holds more than a part of them."""
        return 0 if self.training.liger else self.tokens * self.shape.vocab_size * width


def estimate_memory(
    shape: ModelShape,
    training: Training,
    sequence_length: int,
    *,
    masked: bool,
    gpus: Iterable[int] = SHARDED_OVER,
) -> MemoryEstimate:
    """Bytes a GPU needs for a training step with gradient accumulation and a fused AdamW.

    Whole: float32 weights, bfloat16 arithmetic by autocast. Sharded: `fully_shard` on every layer
    and on the root, bfloat16 parameters by its mixed-precision policy, gradients reduced in float32
    after every micro-batch. Masks and multipliers are whole on each.

    Against torch's own trackers the estimate is off by at most 0.1% on Llama2-7B and Llama3-8B
    (bfloat16, checkpointing; 8 GPUs, and whole), by 3% on smaller Llamas with a vocabulary of
    32,000, and by 8% where the vocabulary is so small that the loss is not the peak. On a GPU it
    has not been measured. Other families are counted as if their layers were Llama's: two norms, a
    gated feed-forward network. Not counted: the device's context and workspaces (about 1 GiB) and
    what its allocator loses to fragmentation.

    Args:
        shape: Of the model that is trained.
        training: Micro-batch, precision, checkpointing and kernels.
        sequence_length: Tokens a block.
        masked: Whether masks lie over the model.
        gpus: Numbers of GPUs to shard over.
    """
    tokens = training.micro_batch * sequence_length
    half = training.precision == "bf16"

    def step(arithmetic: _Arithmetic) -> _Step:
        return _Step(shape, training, tokens, sequence_length, arithmetic)

    compute = 2 if half else 4
    whole = step(_Arithmetic(4, compute))
    shards = step(_Arithmetic(compute, compute))
    return MemoryEstimate(
        whole=_whole(whole, masked=masked),
        sharded={count: _sharded(shards, count, masked=masked) for count in gpus},
    )


def _parts(shape: ModelShape) -> tuple[int, int]:
    """Parameters of a layer, and of everything outside the layers."""
    root = shape.num_embedding_parameters() + shape.hidden_size
    return (shape.num_parameters() - root) // shape.num_layers, root


def _masks(shape: ModelShape) -> int:
    """Bytes of masks and multipliers with gradients and moments."""
    a_layer = shape.num_heads + shape.num_kv_heads + shape.intermediate_size + 6
    return BYTES_PER_PARAMETER * (shape.hidden_size + shape.num_layers * (1 + a_layer))


def _folded(shape: ModelShape) -> int:
    """Parameters of a layer that are multiplied with masks: what writes into the stream."""
    return shape.hidden_size * (shape.num_heads * shape.head_dim + shape.intermediate_size)


def _whole(step: _Step, *, masked: bool) -> int:
    shape, recompute = step.shape, step.training.gradient_checkpointing
    layer, _ = _parts(shape)
    head = shape.vocab_size * shape.hidden_size
    cast = 2 if step.arithmetic.compute == 2 else 0  # bytes a parameter of autocast's copies
    every_copy = cast * (shape.num_layers * layer + head)
    waiting = cast * head if recompute else every_copy
    kept = step.kept()
    folded = 0
    if masked:
        kept += 4 * step.tokens * shape.hidden_size
        folded = 4 * _folded(shape) * (1 if recompute or cast else shape.num_layers)
        waiting += 0 if recompute else folded
    moments = [
        kept + waiting + step.loss(),
        kept + waiting + step.loss(4) + (4 + cast) * head,  # the head's gradient
        kept + every_copy + step.loss(8 + cast),  # the end of the forward pass
    ]
    if recompute:
        moments.append(kept + cast * layer + folded + step.layer() + step.backward())
    state = BYTES_PER_PARAMETER * shape.num_parameters() + (_masks(shape) if masked else 0)
    return state + max(moments)


def _sharded(step: _Step, gpus: int, *, masked: bool) -> int:
    shape, recompute = step.shape, step.training.gradient_checkpointing
    layer, root = _parts(shape)
    width = step.arithmetic.compute
    kept = step.kept()
    in_layer = max(step.backward(), width * layer)
    if recompute:
        in_layer += step.layer()
    else:  # while gradients of a layer are on their way, its activations are gone
        in_layer -= step.layer()
    if masked:
        kept += step.tokens * shape.hidden_size * width
        folded = width * _folded(shape)
        kept += folded * (1 if recompute else shape.num_layers)
    prefetched = width * layer if gpus > 1 else 0
    reduced = 4 * layer  # the gradients of the layer before, on their way
    moments = [
        width * root + prefetched + kept + step.loss(),
        width * (root + layer) + prefetched + reduced + kept + in_layer,
        root * (max(width + 4, 5 * width // 2) if gpus > 1 else width // 2 + 8),
    ]
    share = -(-BYTES_PER_PARAMETER * shape.num_parameters() // gpus)
    return share + (_masks(shape) if masked else 0) + max(moments)
