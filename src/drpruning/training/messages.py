"""The lines that a person reads while a phase is trained."""

import errno
import math
from collections.abc import Mapping, Sequence
from typing import Any

from drpruning.recipe import Distill

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN_MODEL = (
    "the model that this phase starts from does not compute finite numbers: check its weights and "
    "its config.json (such as the base of the rotary embedding), or take another model"
)
FIRST_LOSS_EXCESS = 1.0
"""Nats above the loss of equal shares for all tokens at which an evaluation before training is odd.
A model that was never trained stands a little above that loss: its logits have a standard deviation
of about 0.02 x sqrt(hidden size), and half of the variance comes on top (0.8 at 4,096). A trained
one that reads another tokenizer's ids is wrong with confidence: a Llama of 4,096 tokens that was
evaluated with shuffled ids stood 3.0 above it, and with shuffled rows of the embedding 1.2."""
LEVEL_WITH_TEACHER = 0.05
"""Nats above the teacher's average loss up to which it counts as reached. A student whose teacher
text alone overtakes came within 0.03 of it, one that a teacher helped stayed 0.2 and more above."""
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def _shares(ratio: Mapping[str, float]) -> str:
    return "data ratio " + " ".join(f"{name} {100 * share:.1f}%" for name, share in ratio.items())


def step_text(fields: Mapping[str, Any], ratio: Mapping[str, float]) -> str:
    """Loss, sparsity against its target, speed and data ratio of a logged step.

    Args:
        fields: Those of a record of kind `step`.
        ratio: The current one.
    """
    words = [f"loss {fields['loss']:.3f}"]
    if "divergence" in fields:
        words.append(f"divergence {fields['divergence']:.3f}")
    if "sparsity" in fields:
        targets = fields["target_sparsity"]
        reached = " ".join(f"{n} {s:.2f}/{targets[n]:.2f}" for n, s in fields["sparsity"].items())
        words.append(f"sparsity/target {reached}")
    words.append(f"{fields['tokens_per_second']:,.0f} tokens/s")
    words.append(_shares(ratio))
    return " | ".join(words)


def evaluation_text(
    losses: Mapping[str, float], ratio: Mapping[str, float], above: float | None = None
) -> str:
    """Average and highest validation loss of the domains, and the data ratio that follows.

    Args:
        losses: Domain -> nats.
        ratio: Domain -> share of the data until the next evaluation.
        above: Nats above the teacher's average, where known.
    """
    known = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    if not known:
        return "validation loss not finite in any domain"
    highest = max(known, key=lambda name: known[name])
    mean = sum(known.values()) / len(known)
    side = "" if above is None else f" ({abs(above):.3f} {_side(above)} the teacher's)"
    return (
        f"validation loss {mean:.3f} on average{side}, {known[highest]:.3f} on {highest} (highest) "
        f"| until the next evaluation: {_shares(ratio)}"
    )


def _side(above: float) -> str:
    return "below" if above < 0 else "above"


def above_teacher(losses: Mapping[str, float], teacher: Mapping[str, float]) -> float | None:
    """Nats between the average losses of model and teacher, over the domains where both are known.

    None where there is no such domain, or a loss is not finite.
    """
    above = [losses[name] - loss for name, loss in teacher.items() if name in losses]
    return sum(above) / len(above) if above and all(map(math.isfinite, above)) else None


def level_with_teacher_text(phase: str, above: float) -> str:
    """The warning about a model that has come as far as its teacher can take it."""
    return (
        f"{phase}.distill: the validation loss is {abs(above):.3f} nats {_side(above)} that of the "
        "teacher, which has little left to teach; with more steps the text alone may take the "
        "model further: compare with distill: none, or name a better teacher"
    )


def evaluation_warnings(
    losses: Mapping[str, float],
    ratio: Mapping[str, float],
    exhausted: Mapping[str, str],
    vocabulary_size: int | None,
) -> list[str]:
    """The warnings that an evaluation gives rise to.

    Args:
        losses: Domain -> validation loss, of all domains.
        ratio: Of those that are trained on; it stays where the loss of one is not finite.
        exhausted: Domain -> its rule `on_exhausted`, of those whose data have been read completely.
        vocabulary_size: Entries of the model's vocabulary before any training, None later.
    """
    first = [] if vocabulary_size is None else first_loss_text(losses, vocabulary_size)
    lost = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
    text = ", of ".join(f"{name} is {loss}" for name, loss in lost.items())
    stays = "; the ratio stays as it was" if any(name in ratio for name in lost) else ""
    nonfinite = [f"the validation loss of {text}{stays}"] if lost else []
    return first + nonfinite + exhausted_text(exhausted)


def first_loss_text(losses: Mapping[str, float], vocabulary_size: int) -> list[str]:
    """The warning about a first loss that no sound model has: no line or one.

    The first evaluation of pruning is the source's own, since all masks are open then; that of
    continued pretraining is of the model that it starts from.

    Args:
        losses: Domain -> validation loss before any training.
        vocabulary_size: Entries of the model's vocabulary.
    """
    known = [loss for loss in losses.values() if math.isfinite(loss)]
    mean, equal = sum(known) / max(len(known), 1), math.log(vocabulary_size)
    if mean <= equal + FIRST_LOSS_EXCESS:
        return []
    line = (
        f"the validation loss before any training is {mean:.2f} on average, and a model that was "
        f"never trained has about ln(vocabulary) = {equal:.2f}: the tokenizer is probably another "
        "model's, or the weights or the config.json are damaged (or too little was left of a model "
        "that was just pruned)"
    )
    return [line]


def no_finite_loss_text(phase: str, step: int, losses: Mapping[str, float], saved: int) -> str:
    """The error where no domain has a finite validation loss, so that the model is of no use.

    Args:
        phase: `prune` or `pretrain`.
        step: Steps done.
        losses: Domain -> validation loss.
        saved: Step of the latest checkpoint, 0 without one.
    """
    found = ", ".join(f"{name} {loss}" for name, loss in losses.items())
    text = f"{phase} {step}: the validation loss is not finite in any domain ({found})"
    if step == 0:
        return f"{text}, before any training; {BROKEN_MODEL}"
    return f"{text}: {_diverged_text(phase, saved)}"


def nonfinite_weights_text(phase: str, step: int, names: Sequence[str], saved: int) -> str:
    """The error where training has made weights that are not finite.

    Args:
        phase: `prune` or `pretrain`.
        step: Steps done.
        names: The parameters that hold such numbers.
        saved: Step of the latest checkpoint, 0 without one.
    """
    return (
        f"{phase} {step}: {len(names)} of the trained tensors hold numbers that are not finite "
        f"(the first: {names[0]}): {_diverged_text(phase, saved)}"
    )


def _diverged_text(phase: str, saved: int) -> str:
    rates = f"{phase}.learning_rate"
    if phase == "prune":
        rates += ", prune.mask_learning_rate and prune.multiplier_learning_rate"
    return (
        f"training has diverged, and no model is written; lower {rates}, and start again in "
        f"another folder{_from_checkpoint(saved)}"
    )


def _from_checkpoint(saved: int) -> str:
    if not saved:
        return ""
    return (
        f" or from the checkpoint of step {saved} with "
        "`--set training.checkpoint.accept_changes=true`"
    )


_WHAT_FOLLOWS = {
    "repeat": "they are read again in another order",
    "redistribute": "the other domains get their share",
    "stop": "the phase ends",
}


def exhausted_text(exhausted: Mapping[str, str]) -> list[str]:
    """The warnings about domains whose data have been read completely, one for each rule.

    Args:
        exhausted: Domain -> its rule `on_exhausted`.
    """
    names: dict[str, list[str]] = {}
    for name, rule in exhausted.items():
        names.setdefault(rule, []).append(name)
    return [
        f"the data of {', '.join(domains)} are exhausted: {_WHAT_FOLLOWS[rule]} "
        f"(on_exhausted: {rule})"
        for rule, domains in names.items()
    ]


def unsaved_text(
    phase: str, step: int, error: OSError, saved: int, folder: object, *, resumable: bool
) -> str:
    """The message where a checkpoint could not be saved.

    Args:
        phase: `prune` or `pretrain`.
        step: Steps done.
        error: What prevented it.
        saved: Step of the latest checkpoint, 0 without one.
        folder: Where checkpoints are saved.
        resumable: Whether the command ends here, so that it is resumed from the latest one.
    """
    text = f"{phase} {step}: no checkpoint could be saved ({error.strerror or error}); "
    remedy = storage_remedy(error, folder)
    if resumable:
        return f"{text}{latest_text(saved)}: {remedy}, then the same command resumes"
    return f"{text}{remedy}; the run continues"


def unwritten_model_text(
    phase: str, step: int, error: OSError, saved: int, model: object, folder: object
) -> str:
    """The error where the model of a phase could not be written.

    Args:
        phase: `prune` or `pretrain`.
        step: Steps done.
        error: What prevented it.
        saved: Step of the latest checkpoint, 0 without one.
        model: The folder of the model.
        folder: The run folder.
    """
    return (
        f"{phase} {step}: the model cannot be written to {model} ({error.strerror or error}); "
        f"{latest_text(saved)}: {storage_remedy(error, folder)}, then the same command resumes"
    )


def latest_text(saved: int) -> str:
    """What can be resumed from: the step of the latest checkpoint, 0 without one."""
    return f"the latest checkpoint is of step {saved}" if saved else "there is no checkpoint yet"


def storage_remedy(error: OSError, folder: object) -> str:
    """What to do about an error in writing below a folder."""
    if error.errno in _DISK_IS_FULL:
        return "make room on the disk"
    if error.errno in _NOT_ALLOWED:
        return f"let this user write to {folder}"
    return f"see to the storage of {folder}"


def distillation_text(distill: Distill, teachers: Mapping[str, int]) -> str:
    """Who teaches a phase, and by which loss, in one line."""
    names = ", ".join(f"{name} ({count:,} parameters)" for name, count in teachers.items())
    weight = f"{distill.weight:g}"
    if distill.final_weight is not None:
        weight += f" to {distill.final_weight:g}"
    top = "" if distill.top_k is None else f", its {distill.top_k} likeliest tokens"
    return f"distillation from {names}: weight {weight}, temperature {distill.temperature:g}{top}"
