"""The teachers of a phase: frozen models that give the target distribution of every token."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from drpruning.common.console import Reporter
from drpruning.data import PreparedData
from drpruning.distillation import (
    TeacherChunk,
    TopTokens,
    chunk_size,
    chunked_logits,
    log_probabilities,
    quantise_linear_layers,
)
from drpruning.models.loading import load_model
from drpruning.models.memory import is_sharded
from drpruning.pruning import MaskedModel, ModelShape
from drpruning.recipe import Distill, Recipe, Training
from drpruning.training.distributed import any_rank, shard
from drpruning.training.rows import Rows
from drpruning.training.teacher_store import TopTokenStore
from drpruning.training.validation import autocast

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}
LogitsOf = Callable[[Tensor], Callable[[slice], Tensor]]
"""Blocks [B, T] -> a function of rows of the flattened tokens to logits [n, V]."""


def _load(
    path: str, settings: Distill, training: Training, accelerator: "Accelerator", field: str
) -> tuple[nn.Module, str | None]:
    """Load a teacher onto this rank's device, frozen: in shards, complete, or in int8.

    Also returns its digest, which only a cache needs; None without one.

    Args:
        path: A folder or a name on the Hub.
        settings: Give its type and whether it is sharded.
        training: Gives the kernels, and the parallelism where `shard` is absent.
        accelerator: Devices and ranks.
        field: What named it, for messages.

    Raises:
        BadInput: It cannot be loaded.
    """
    model: nn.Module = load_model(path, field, training, DTYPES[settings.dtype])
    model.eval().requires_grad_(requires_grad=False)
    digest = model_digest(model) if settings.cache else None
    if settings.dtype == "int8":
        quantise_linear_layers(model)
    elif accelerator.num_processes > 1 and is_sharded(settings, training):
        shard(model, accelerator)
    return model.to(accelerator.device), digest


def model_digest(model: "PreTrainedModel") -> str:
    """A digest of the settings and of some numbers of all weights, 32 hexadecimal digits."""
    settings = {k: v for k, v in model.config.to_dict().items() if not _is_of_loading(k)}
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, weight in model.state_dict().items():
        flat = weight.flatten()
        # An odd stride: one that is a multiple of a row's length would see a single column.
        sample = flat[:: len(flat) // 1024 | 1].float().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _is_of_loading(setting: str) -> bool:
    """Whether a setting says how a model was stored or loaded, not what it computes."""
    return setting.startswith("_") or setting in {"architectures", "dtype", "transformers_version"}


def load_teachers(
    recipe: Recipe,
    phase: str,
    data: PreparedData,
    accelerator: "Accelerator",
    reporter: Reporter,
    masked: MaskedModel | None = None,
) -> "Teachers":
    """Load the teachers of a phase that has some.

    Args:
        recipe: Names them.
        phase: `prune` or `pretrain`.
        data: What a cache of top tokens belongs to, and where it lies.
        accelerator: Devices and ranks.
        reporter: Shows what is loaded.
        masked: The model that is pruned, before it is wrapped; it teaches itself if the recipe
            says so.

    Raises:
        BadInput: One cannot be loaded.
    """
    settings, training = recipe.distillation(phase), recipe.training
    assert settings is not None  # noqa: S101 - the phase has teachers
    weights = recipe.teachers(phase)
    models: dict[str, LogitsOf] = {}
    parameters, digests = {}, []
    for name in weights:
        if settings.is_self:
            assert masked is not None  # noqa: S101 - the recipe was checked
            models[name] = unmasked_logits(masked, masked.model, training, accelerator)
            parameters[name] = masked.source.num_parameters()
            continue
        with reporter.status(f"loading the teacher {name}"):
            model, digest = _load(name, settings, training, accelerator, f"{phase}.distill")
        digests.append(digest)
        models[name] = frozen_logits(model)
        shape = ModelShape.of(model.config)
        parameters[name] = shape.num_parameters()
    teachers = Teachers(
        models, weights, parameters, temperature=settings.temperature, top_k=settings.top_k
    )
    if not settings.cache:
        return teachers
    made_of = [digests, list(weights.values()), settings.temperature, settings.dtype]
    store = TopTokenStore(data, made_of, settings.top_k or 1)
    return CachedTeachers(teachers, store, accelerator, chunk_size(shape.vocab_size))


class Teachers:
    """One teacher or several, whose probabilities are then averaged with weights by domain."""

    def __init__(
        self,
        models: Mapping[str, LogitsOf],
        weights: Mapping[str, Mapping[str, float]],
        parameters: Mapping[str, int],
        *,
        temperature: float,
        top_k: int | None,
    ) -> None:
        """Set them up.

        Args:
            models: Name -> what gives its logits.
            weights: Name -> domain -> its weight there; they sum to 1 in a domain.
            parameters: Name -> number of parameters, for the log.
            temperature: What logits are divided by.
            top_k: How many of the likeliest tokens are given; None: the vocabulary.
        """
        self._models, self._weights = models, weights
        self.parameters = dict(parameters)
        self._temperature, self._top_k = temperature, top_k

    def targets(self, rows: Rows) -> TeacherChunk:
        """Run every teacher's body on rows; their heads run chunk by chunk, when asked."""
        blocks_BT = rows.blocks
        with torch.autocast(blocks_BT.device.type, enabled=False):
            logits = {name: logits_of(blocks_BT) for name, logits_of in self._models.items()}
        weights = {
            name: torch.tensor(
                [self._weights[name][rows.names[i]] for i in rows.domains.tolist()],
            )
            .to(blocks_BT.device, non_blocking=True)
            .repeat_interleave(blocks_BT.shape[1])
            for name in (logits if len(logits) > 1 else ())
        }

        @torch.no_grad()
        def target(part: slice) -> Tensor | TopTokens:
            with torch.autocast(blocks_BT.device.type, enabled=False):
                if not weights:
                    (only,) = logits.values()
                    return log_probabilities(only(part), self._temperature, self._top_k)
                mean = torch.zeros((), device=blocks_BT.device)
                for name, logits_of in logits.items():
                    found = (logits_of(part).float() / self._temperature).softmax(-1)
                    mean = mean + weights[name][part, None] * found
            return log_probabilities(mean.log(), 1.0, self._top_k)

        return target


class CachedTeachers(Teachers):
    """Teachers whose top tokens of a block are computed once, and from then on read."""

    def __init__(
        self, teachers: Teachers, store: TopTokenStore, accelerator: "Accelerator", chunk: int
    ) -> None:
        """Put a store in front of teachers.

        Args:
            teachers: With a number of top tokens.
            store: That of exactly these teachers.
            accelerator: The ranks, of which all run the teachers if one must.
            chunk: Tokens of a block computed at a time, so that few have all their logits.
        """
        self._teachers, self._store, self._accelerator = teachers, store, accelerator
        self._chunk = chunk
        self.parameters = teachers.parameters

    def targets(self, rows: Rows) -> TeacherChunk:
        """Read the top tokens of all rows; where some are missing, compute and store these."""
        names = [rows.names[i] for i in rows.domains.tolist()]
        places = list(zip(names, rows.ids.tolist(), strict=True))
        found = [self._store.read(*place) for place in places]
        if any_rank(self._accelerator, any(one is None for one in found)):
            target, length = self._teachers.targets(rows), rows.blocks.shape[1]
            for index, place in enumerate(places):
                top = self._top_tokens(target, index * length, (index + 1) * length)
                if found[index] is None:
                    found[index] = self._store.write(*place, top)
        device = rows.blocks.device
        values, ids = (
            torch.from_numpy(np.concatenate(column)).to(device, non_blocking=True)
            for column in zip(*(one for one in found if one is not None), strict=True)
        )
        return lambda part: TopTokens(values[part].float(), ids[part].long())

    def _top_tokens(self, target: TeacherChunk, first: int, end: int) -> TopTokens:
        """The top tokens of some rows, chunk by chunk, as their logits may not fit at once."""
        parts = []
        for start in range(first, end, self._chunk):
            top = target(slice(start, min(start + self._chunk, end)))
            assert isinstance(top, TopTokens)  # noqa: S101 - a recipe with a cache has top_k
            parts.append(top)
        return TopTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def frozen_logits(model: nn.Module) -> LogitsOf:
    """What gives the logits of a model of its own."""

    def logits_of(blocks_BT: Tensor) -> Callable[[slice], Tensor]:
        return chunked_logits(model, input_ids=blocks_BT, use_cache=False)

    return logits_of


def unmasked_logits(
    masked: MaskedModel, inner: nn.Module, training: Training, accelerator: "Accelerator"
) -> LogitsOf:
    """What gives the logits of a masked model under masks of one, computed at once.

    They are not computed in chunks: a chunk is computed after the trained model's own forward pass,
    and then its head has the sampled masks.

    Args:
        masked: The model and its masks.
        inner: The Transformers model inside, without the wrapper of DDP.
        training: Gives the arithmetic of the trained model's forward pass.
        accelerator: Devices and ranks.
    """
    sharded = accelerator.num_processes > 1 and training.parallelism == "fsdp2"
    precision = "fp32" if sharded else training.precision  # as `DistributedModel` has it

    @torch.no_grad()
    def logits_of(blocks_BT: Tensor) -> Callable[[slice], Tensor]:
        wrapped, was_training = masked.model, masked.training
        masked.model = inner
        try:
            masked.eval()
            masked.use_masks("ones")
            with autocast(blocks_BT.device, precision):
                found = masked(input_ids=blocks_BT, use_cache=False).logits.flatten(0, 1)
        finally:
            masked.model = wrapped
            masked.train(was_training)
        return lambda rows: found[rows]

    return logits_of
