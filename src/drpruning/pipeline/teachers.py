"""Teachers of a recipe that distills: what their files say, and what they cost."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.common.errors import BadInput
from drpruning.data import PreparedData, tokenizer_digest
from drpruning.data.memory import total_memory
from drpruning.models.files import positions, read_config
from drpruning.models.inspect import SOURCE_FIELD, check_model
from drpruning.models.memory import (
    SHARDED_OVER,
    MemoryEstimate,
    estimate_memory,
    teacher_memory,
)
from drpruning.models.tokenizer import vocabulary
from drpruning.pipeline.reference_losses import original_model
from drpruning.pruning import ModelShape
from drpruning.recipe import Distill, Recipe, Training
from drpruning.recipe.distillation import SELF
from drpruning.runs.folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator


COSTLY = 3.0
"""How many times as long as without a teacher a step may take: beyond that `plan` warns. In our
experiments a quarter to a half of the steps reached the loss of the text alone."""


@dataclass(frozen=True)
class Teacher:
    """A teacher of a phase, and what it costs.

    Attributes:
        name: A folder, a name on the Hub, or `self`.
        shape: Its shape; of `self` that of the model under masks.
        memory: Bytes on each GPU, beside those of the training step.
    """

    name: str
    shape: ModelShape
    memory: MemoryEstimate


@dataclass(frozen=True)
class SourceModel:
    """The model that a run, or the first one of a chain of runs, starts from.

    Attributes:
        name: As teachers are named.
        label: What a person reads: the name, or `model.shape` where only that is given.
        shape: Its shape.
        config: Its config.json.
    """

    name: str
    label: str
    shape: ModelShape
    config: Mapping[str, Any]


def plan_teacher(
    recipe: Recipe, phase: str, name: str, own: SourceModel, first: SourceModel | None = None
) -> Teacher:
    """Look at a teacher's files and count what it costs; torch is not needed.

    Args:
        recipe: The run.
        phase: The phase that it teaches.
        name: One of `recipe.teachers(phase)`.
        own: The model of `model.source`.
        first: That of a chain of targets of which this run is one, whose files need not be read.

    Raises:
        BadInput: It is missing, incomplete, of another tokenizer or vocabulary, takes shorter
            blocks, or is the model that it would teach.
    """
    distill = recipe.distillation(phase)
    assert distill is not None  # noqa: S101 - it has a teacher
    field = teacher_field(phase, distill)
    known = {} if first is None else {first.name: first}
    known |= {SELF: replace(own, label=SELF), own.name: own}
    teacher = known.get(name)
    if teacher is None:
        _check_is_another(recipe, phase, name, field)
        teacher = SourceModel(name, name, check_model(name, field), read_config(name, field))
        _check_vocabulary(recipe, teacher, own, field)
    elif teacher is own and recipe.prune is None:
        raise _nothing_to_learn(name, phase, field)
    _check_settings(recipe, teacher, distill, phase)
    return Teacher(
        name=teacher.label,
        shape=teacher.shape,
        memory=_memory(teacher.shape, distill, recipe.training, recipe.data.sequence_length),
    )


def teacher_field(phase: str, distill: Distill) -> str:
    """The field of the recipe that names the teachers of a phase."""
    return f"{phase}.distill.{'teacher' if distill.teachers is None else 'teachers'}"


def _check_is_another(recipe: Recipe, phase: str, name: str, field: str) -> None:
    """Refuse a teacher that is the model which the phase trains, or a result of this run."""
    if "\0" in name:  # no possible place, which is refused later
        return
    files, place = RunFolder(Path(recipe.output)), os.path.realpath(name)
    start = files.pruned if recipe.prune is not None else Path(recipe.model.reference)
    if phase == "pretrain" and place == os.path.realpath(start):
        raise _nothing_to_learn(name, phase, field)
    if place in map(os.path.realpath, (files.pruned, files.model)):
        raise BadInput(f"{field}: {name} is what this run itself writes; name another model")


def _nothing_to_learn(name: str, phase: str, field: str) -> BadInput:
    return BadInput(
        f"{field}: {name} is the model that {phase} trains, which has nothing to learn from "
        "itself; name another model, or write distill: none"
    )


def _check_vocabulary(recipe: Recipe, teacher: SourceModel, own: SourceModel, field: str) -> None:
    """Refuse a teacher whose logits are of other tokens, or are more or fewer, than the model's."""
    name = teacher.name
    known = vocabulary(recipe.model.tokenizer_source, SOURCE_FIELD)
    its = vocabulary(name, field)
    if name != original_model(recipe) and None not in (known, its) and known != its:
        raise _other_tokenizer(name, field)
    rows, wanted = teacher.shape.vocab_size, own.shape.vocab_size
    if rows == wanted:
        return
    larger, smaller = (name, wanted) if rows > wanted else (own.name, rows)
    remedy = "name a model of the source's family"
    if known is not None and known == its and max(known.values()) < smaller:
        remedy = (
            "the tokens are the same and the rest is padding: cut that off with "
            f"`AutoModelForCausalLM.from_pretrained({larger!r})`, its "
            f"`.resize_token_embeddings({smaller})` and `.save_pretrained(NEW_FOLDER)`, and name "
            f"NEW_FOLDER, with the tokenizer's files in it, in place of {larger}"
        )
    raise BadInput(
        f"{field}: {name} has a vocabulary of {rows:,} entries and {own.name} one of "
        f"{wanted:,}, so their logits cannot be compared; {remedy}"
    )


def _other_tokenizer(name: str, field: str) -> BadInput:
    return BadInput(
        f"{field}: the tokenizer of {name} is not that of model.source, so its probabilities are "
        "those of other tokens; name a model of the source's family"
    )


def _check_settings(recipe: Recipe, teacher: SourceModel, distill: Distill, phase: str) -> None:
    """Refuse blocks longer than the teacher takes, and more top tokens than there are."""
    length, vocab_size = recipe.data.sequence_length, teacher.shape.vocab_size
    most = positions(teacher.config)
    if not distill.is_self and most is not None and length > most:
        raise BadInput(
            f"data.sequence_length: {length} is beyond the {most} positions that "
            f"{teacher.label} was made for, which is to teach ({teacher_field(phase, distill)}); "
            f"write sequence_length: {most} or less, name another teacher, or write "
            f"{phase}.distill: none"
        )
    if distill.top_k is not None and distill.top_k >= vocab_size:
        raise BadInput(
            f"{phase}.distill.top_k: {distill.top_k} tokens of a vocabulary of "
            f"{vocab_size:,}; write a smaller number, or leave top_k out to compare all"
        )


def _memory(shape: ModelShape, distill: Distill, training: Training, length: int) -> MemoryEstimate:
    several = training.model_copy(update={"parallelism": "fsdp2"})
    return MemoryEstimate(
        whole=teacher_memory(shape, distill, training, length, 1),
        sharded={n: teacher_memory(shape, distill, several, length, n) for n in SHARDED_OVER},
    )


def step_ratio(student: ModelShape, teachers: Sequence[Teacher], training: Training) -> float:
    """How many times as long a step takes as without teachers, by multiply-adds.

    Per parameter and token a forward pass has 2 floating-point operations and a backward pass 4
    (and with gradient checkpointing 2 more, for the forward pass that is repeated). A teacher only
    has the forward pass, on every block, also of domains in which its weight is 0. Attention scores
    are not counted.
    """
    per_parameter = 8 if training.gradient_checkpointing else 6
    passes = sum(2 * _multiplied(teacher.shape) for teacher in teachers)
    return 1 + passes / (per_parameter * _multiplied(student))


def _multiplied(shape: ModelShape) -> int:
    """Parameters that a token is multiplied with; looking up its embedding is no product."""
    lookup = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return shape.num_parameters() - lookup


def teacher_warnings(
    phase: str,
    student: ModelShape,
    final: ModelShape,
    teachers: Sequence[Teacher],
    training: Training,
) -> list[str]:
    """Warn of teachers that are smaller than the final model, or cost more than they may give."""
    size = final.num_parameters()
    warnings = [
        f"{phase}.distill: the teacher {teacher.name} has {count:,} parameters and the model that "
        f"it teaches {size:,}; a smaller model is seldom a better one, so compare with distill: "
        "none"
        for teacher in teachers
        if (count := teacher.shape.num_parameters()) < size
    ]
    if (ratio := step_ratio(student, teachers, training)) > COSTLY:
        warnings.append(
            f"{phase}.distill: a step takes about {ratio:.1f} times as long with its teacher; in "
            "that time the text alone may bring more, so compare with distill: none, or name a "
            "smaller teacher"
        )
    return warnings


# Once torch and the prepared data are there.


def check_teacher_tokenizers(recipe: Recipe, phase: str, data: PreparedData) -> None:
    """Refuse teachers whose tokenizer cuts text otherwise than that of the prepared data.

    Raises:
        BadInput: A named teacher has another tokenizer.
    """
    if (distill := recipe.distillation(phase)) is None:
        return
    original = original_model(recipe)
    for name in distill.named:
        if name != original and tokenizer_digest(name) != data.tokenizer_digest:
            raise _other_tokenizer(name, teacher_field(phase, distill))


def check_teacher_memory(
    recipe: Recipe,
    phase: str,
    student: ModelShape,
    teachers: Sequence[Teacher],
    accelerator: "Accelerator",
) -> None:
    """Refuse teachers that do not fit beside the training step into the memory there is.

    Raises:
        BadInput: The GPU, or on CPUs the machine, has less memory.
    """
    distill = recipe.distillation(phase)
    if distill is None or distill.is_self or not teachers:
        return
    if (memory := _device_memory(accelerator)) is None:
        return
    ranks, training, length = (
        accelerator.num_processes, recipe.training, recipe.data.sequence_length
    )  # fmt: skip
    estimate = estimate_memory(
        student, training, length, masked=phase == "prune", distilled=True, gpus=(ranks,)
    )
    sharded = ranks > 1 and training.parallelism == "fsdp2"
    step = estimate.sharded[ranks] if sharded else estimate.whole
    own = sum(teacher_memory(t.shape, distill, training, length, ranks) for t in teachers)
    if step + own <= memory:
        return
    gib = 2**30
    names = ", ".join(teacher.name for teacher in teachers)
    kind = "GPU" if accelerator.device.type == "cuda" else "rank"
    remedies = ["training.micro_batch: 1"] if training.micro_batch > 1 else []
    if distill.dtype != "int8" and not distill.shard:
        remedies.append("dtype: int8")
    if ranks > 1 and not sharded and distill.dtype != "int8" and not distill.shard:
        remedies.append("shard: true")
    raise BadInput(
        f"{teacher_field(phase, distill)}: {names} takes about {own / gib:,.1f} GiB beside about "
        f"{step / gib:,.1f} GiB of the training step, and there are {memory / gib:,.1f} GiB for "
        f"each {kind}; write {', or '.join([*remedies, 'a smaller teacher', 'distill: none'])}"
    )


def _device_memory(accelerator: "Accelerator") -> int | None:
    """Bytes of memory for each rank: of its GPU, or its part of the machine's."""
    if accelerator.device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(accelerator.device).total_memory
    if accelerator.device.type != "cpu" or (total := total_memory()) is None:
        return None
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
