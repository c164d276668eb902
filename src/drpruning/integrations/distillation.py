"""Distillation as the loss of the Transformers `Trainer` and of trainers built on it."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from drpruning.common.errors import BadInput
from drpruning.distillation import (
    TeacherChunk,
    TopTokens,
    chunked_logits,
    distillation_loss,
    log_probabilities,
    next_tokens,
)

_ENTRY = "divergence"  # the field in the Trainer's log
_INPUTS = (  # of the student's, those that its teacher needs too
    "input_ids",
    "attention_mask",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
)


class DistillationLoss(TrainerCallback):  # type: ignore[misc]
    """Trains the model of a `Trainer` towards the distributions of a teacher.

        loss = DistillationLoss(teacher, weight=0.9)
        trainer = Trainer(model, args, train_dataset=..., eval_dataset=...,
                          compute_loss_func=loss, callbacks=[loss])

    The loss is (1 - weight) * cross-entropy + weight * temperature**2 * KL(teacher || student),
    both as means over the tokens with a label. Evaluation has the plain loss.

    As a callback, it learns the inputs of the model, which the Trainer does not give to a loss
    function, and adds `divergence` to the entries of the log: the mean KL to the teacher in nats
    per token, without temperature**2, since the entry before.

    The gradient takes the place of the logits in memory, so they cannot be read after the loss has
    been computed.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        *,
        weight: float = 0.9,
        final_weight: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Take a teacher, which is set to evaluation mode, without gradients.

        Args:
            teacher: A causal language model with the vocabulary of the trained model, such as the
                larger one that it was made from. It is moved to the Trainer's device, unless it
                was loaded with a `device_map` or quantized. It is not saved.
            weight: Of the divergence, above 0 and at most 1; the cross-entropy has the rest.
            final_weight: Weight at the last step, approached linearly; None: `weight`.
            temperature: What the logits of both models are divided by in the divergence.
            top_k: How many of the teacher's likeliest tokens are compared, the others as one; None:
                all.
            tokenizer: The teacher's, to be compared with the Trainer's `processing_class`.

        Raises:
            BadInput: A number is out of its range.
        """
        _check_numbers(weight, final_weight, temperature, top_k)
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.weight = weight
        self._final_weight = weight if final_weight is None else final_weight
        self._temperature, self._top_k, self._tokenizer = temperature, top_k, tokenizer
        self._initial_weight = weight
        self._student: Any = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._inputs: dict[str, Any] | None = None  # of the forward pass in progress
        self._sums: Tensor | None = None  # of divergence and tokens since the last entry

    # Events of the Trainer, in the order in which they come.

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Refuse a teacher that cannot teach the Trainer's model."""
        if kwargs.get("model") is not None:  # else `model_init` makes it later
            self._take(kwargs["model"], args, kwargs.get("processing_class"))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Move the teacher to the device and forget what an earlier training left."""
        self._take(kwargs["model"], args, kwargs.get("processing_class"))
        if not (hasattr(self.teacher, "hf_device_map") or hasattr(self.teacher, "hf_quantizer")):
            self.teacher.to(args.device)
        self._inputs = self._sums = None

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Set the weight of the step that begins."""
        done = state.global_step / max(state.max_steps - 1, 1)
        self.weight = (1 - done) * self._initial_weight + done * self._final_weight

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Add the mean divergence to an entry of training."""
        if self._sums is None or "loss" not in logs:
            return
        divergence, tokens = reduce(self._sums).tolist()
        self._sums = None
        # The history has a copy of `logs`, which the callbacks after this one are given.
        logs[_ENTRY] = state.log_history[-1][_ENTRY] = divergence / max(tokens, 1)

    # The loss.

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the loss of a batch, as a Trainer calls its `compute_loss_func`.

        Args:
            outputs: Of the trained model, with `logits` [B, T, V].
            labels: [B, T], not shifted; a token with -100 is not counted.
            num_items_in_batch: What the sums over tokens are divided by: the tokens of all
                micro-batches of the step. None: those of this batch.

        Raises:
            BadInput: The Trainer does not have this object among its callbacks, or the examples
                have no labels.
        """
        student = self._student
        if student is None:
            raise BadInput(
                "this loss needs the inputs of the model: give callbacks=[loss] to the same "
                "Trainer as compute_loss_func=loss"
            )
        if labels is None:
            raise BadInput("distillation needs labels: the examples have none")
        logits_BTV = outputs.logits
        if not student.training:
            plain: Tensor = student.loss_function(
                logits=logits_BTV,
                labels=labels,
                vocab_size=logits_BTV.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
            return plain
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            raise BadInput("this loss is of another Trainer's model: make one for each Trainer")
        found = distillation_loss(
            logits_BTV.flatten(0, 1),
            next_tokens(labels).to(logits_BTV.device),
            self._targets(inputs, logits_BTV.device),
            weight=self.weight,
            temperature=self._temperature,
            tokens=num_items_in_batch,
        )
        sums = torch.stack([found.divergence.sum(), found.tokens.float()])
        self._sums = sums if self._sums is None else self._sums + sums
        return found.loss

    def _targets(self, inputs: Mapping[str, Any], device: torch.device) -> TeacherChunk:
        """The teacher's distributions of the tokens of a batch, on a device."""
        own = self.teacher.get_input_embeddings().weight.device
        placed = {k: v.to(own) if torch.is_tensor(v) else v for k, v in inputs.items()}
        # With a cache, Transformers would not see where packed sequences begin.
        logits = chunked_logits(self.teacher, **placed, use_cache=False)

        def targets(rows: slice) -> Tensor | TopTokens:
            return log_probabilities(logits(rows).to(device), self._temperature, self._top_k)

        return targets

    def _take(self, model: Any, args: TrainingArguments, tokenizer: Any) -> None:
        """Watch the inputs of a model in training."""
        if hasattr(model, "peft_config"):
            model = model.get_base_model()
        if model is self._student:
            return
        _check_teacher(self.teacher, model, self._tokenizer, tokenizer)
        if args.n_gpu > 1:
            raise BadInput("distillation on several GPUs: start one process per GPU with torchrun")
        if self._hook is not None:
            self._hook.remove()
        # Not of the model itself: PEFT calls its `forward` without hooks.
        decoder = model.get_decoder()
        names = list(inspect.signature(decoder.forward).parameters)

        def remember(module: nn.Module, given: tuple[Any, ...], more: Mapping[str, Any]) -> None:
            if module.training:
                found = dict(zip(names, given, strict=False)) | dict(more)
                self._inputs = {k: found[k] for k in _INPUTS if found.get(k) is not None}

        self._hook = decoder.register_forward_pre_hook(remember, with_kwargs=True)
        self._student = model


def _check_numbers(
    weight: float, final_weight: float | None, temperature: float, top_k: int | None
) -> None:
    if not 0 < weight <= 1:
        raise BadInput(f"weight = {weight} must be above 0 and at most 1; 0.9 is usual")
    if final_weight is not None and not 0 <= final_weight <= 1:
        raise BadInput(f"final_weight = {final_weight} must be from 0 to 1")
    if not 0 < temperature < float("inf"):
        raise BadInput(f"temperature = {temperature} must be a number above 0; 1 is usual")
    if top_k is not None and top_k < 1:
        raise BadInput(f"top_k = {top_k} must be at least 1; leave it out for all tokens")


def _check_teacher(
    teacher: PreTrainedModel, student: PreTrainedModel, own: Any, trained: Any
) -> None:
    """Refuse a teacher that is the trained model, or that has another vocabulary."""
    if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        raise BadInput(
            "the teacher shares weights with the trained model; give it weights of its own: load "
            "it a second time"
        )
    sizes = [model.config.get_text_config().vocab_size for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise BadInput(
            f"the teacher has a vocabulary of {sizes[0]:,} tokens, the trained model one of "
            f"{sizes[1]:,}; distillation needs a teacher with the same tokenizer"
        )
    if own is None or not isinstance(trained, PreTrainedTokenizerBase):
        return
    if own.get_vocab() != trained.get_vocab():
        raise BadInput(
            "the teacher's tokenizer has other tokens than the Trainer's processing_class; "
            "distillation needs a teacher with the same tokenizer"
        )
