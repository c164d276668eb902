"""Data scheduling in the Transformers `Trainer` and in trainers built on it."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from drpruning.common.errors import BadInput
from drpruning.common.unknown import record_fields
from drpruning.data import Mixture
from drpruning.integrations.distillation import DistillationLoss
from drpruning.integrations.sampling import DomainDataset, SegmentSampler
from drpruning.scheduling import Decision, Policy
from drpruning.training.distributed import broadcast_ratio

__all__ = ["DistillationLoss", "DomainSchedulingCallback"]

_STATE = "drpruning.domain_scheduling"  # the key in the Trainer's own state
_ENTRY = "domain_scheduling"  # and in an entry of its log

logger = logging.getLogger(__name__)


class DomainSchedulingCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a policy choose the shares of the training domains after every evaluation.

        callback = DomainSchedulingCallback(policy, {"web": web, "code": code}, args)
        trainer = Trainer(model, args, train_dataset=callback.train_dataset,
                          eval_dataset={"web": ..., "code": ...}, callbacks=[callback])

    What the Trainer takes for an epoch is one segment, the `eval_steps` optimizer steps between two
    evaluations. So nothing that reads ahead (the one batch of accelerate, workers, accumulation)
    reaches into the next segment, and a new ratio holds from the very next step.

    A share counts examples. At the end of a segment, the number of examples that a domain has had
    differs by less than one from what the ratios asked for (see `Mixture`).

    Every update appends an entry with the field `domain_scheduling` to `state.log_history`: `loss`,
    `realised_share` of the segment that ended (None at step 0), `epochs` (passes over each domain
    so far) and the fields of `Decision`. The state goes into `trainer_state.json`; a run resumed
    with `resume_from_checkpoint` equals one that was not interrupted. A second `train()` that does
    not resume starts from the state of the policy when the callback was created.

    Attributes:
        policy: The policy; its `ratio` is the latest.
        mixture: The position in each domain, as of the last evaluation.
        train_dataset: The training set to give to the Trainer.
        ratio: Share of each domain in the current segment.
        decision: The latest decision; None before the first.
    """

    def __init__(
        self,
        policy: Policy,
        train_domains: Mapping[str, Sequence[Any]],
        args: TrainingArguments,
    ) -> None:
        """Prepare the training set.

        Args:
            policy: Any policy of `drpruning.scheduling`, with `total_steps` equal to `max_steps`.
            train_domains: Training examples of each of the policy's domains: a `datasets.Dataset`,
                a PyTorch dataset or a list.
            args: The Trainer's arguments; `max_steps` a multiple of `eval_steps`.

        Raises:
            BadInput: The domains are not the policy's, or the arguments do not allow scheduling.
        """
        self.segment_steps = _segment_steps(args)
        _check_arguments(args, policy, self.segment_steps)
        sizes = _sizes(train_domains, policy.domains)
        seed = args.seed if args.data_seed is None else args.data_seed
        global_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.policy = policy
        self.mixture = Mixture(sizes, global_batch, seed)
        self.ratio = dict(policy.ratio)
        self.decision: Decision | None = None
        self._counted = self.mixture.consumed  # examples of each domain at the latest update
        self._sampler = SegmentSampler(self.mixture, self.segment_steps)
        self.train_dataset = DomainDataset(
            {name: train_domains[name] for name in policy.domains}, len(self._sampler)
        )
        self._losses: dict[str, float] | None = None  # of the evaluation in progress
        self._training = False
        self._start = self._state()

    # Events of the Trainer, in the order in which they come.

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Set the sampler, and restore the state of a checkpoint when resuming."""
        if state.eval_steps != self.segment_steps:
            raise BadInput(
                f"the callback was made for eval_steps = {self.segment_steps}, this training has "
                f"{state.eval_steps}; give both the same arguments, and keep eval_steps when you "
                "resume"
            )
        _check_arguments(args, self.policy, self.segment_steps)
        self._set_sampler(kwargs["train_dataloader"], args)
        self._restore(state)
        self._losses = None
        self._training = True

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Plan the segment that begins, or the one in which the checkpoint was saved.

        By then the evaluation is over: an epoch begins after it. So a domain without a loss is
        noticed here, and the ratio is the one to plan with.
        """
        self._complete_evaluation(state)
        if self._at_end(state):
            if state.is_world_process_zero:
                logger.warning(
                    "step %d: the data ratio stays as it is, because no evaluation came (where the "
                    "run was interrupted just before it, eval_on_start=True makes up for it)",
                    state.global_step,
                )
            self._end_segment(state)
        self._sampler.begin(self.ratio)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """End a segment that no evaluation follows (`eval_delay`); the ratio stays."""
        if self._at_end(state) and not control.should_evaluate:
            self._end_segment(state)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Collect the losses of the domains, which come one at a time; update with the last.

        Only an evaluation at the end of a segment or before the first step counts.
        """
        first = state.global_step == 0 and self.decision is None
        if not (self._training and (first or self._at_end(state))):
            return
        self._losses = self._losses or {}
        for name in self.policy.domains:
            if (loss := metrics.get(f"eval_{name}_loss")) is not None:
                self._losses[name] = loss
        if len(self._losses) == len(self.policy.domains):
            self._update(state)

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Complete the last evaluation; evaluations after training do not count."""
        self._complete_evaluation(state)
        self._training = False

    # The update.

    def _at_end(self, state: TrainerState) -> bool:
        """Whether all steps of the current segment are done and it has not been ended."""
        return bool(state.global_step == self.mixture.step + self.segment_steps)

    def _complete_evaluation(self, state: TrainerState) -> None:
        """Update with the losses there are, if the evaluation ended without those of some domain.

        Raises:
            BadInput: It is the first evaluation, so the domain will never have a loss.
        """
        if self._losses is None:
            return
        if not any(_ENTRY in entry for entry in state.log_history):
            missing = [name for name in self.policy.domains if name not in self._losses]
            raise BadInput(
                f"the evaluation gave no {', '.join(f'eval_{name}_loss' for name in missing)}; "
                "eval_dataset must be a dict with an entry for every domain, and its examples "
                "must have labels"
            )
        self._update(state)

    def _update(self, state: TrainerState) -> None:
        losses, self._losses = self._losses or {}, None
        realised = self._sampler.end() if self._at_end(state) else None
        shares = self._shares_since_update()
        self.decision = self.policy.update(state.global_step, losses, shares=shares)
        self._counted = self.mixture.consumed
        self.ratio = broadcast_ratio(self.decision.ratio)
        known = {name: losses.get(name, math.nan) for name in self.policy.domains}
        known = {name: loss for name, loss in known.items() if math.isfinite(loss)}
        if state.is_world_process_zero and len(known) < len(self.policy.domains):
            logger.warning(
                "step %d: the data ratio stays as it is, because the evaluation gave no finite "
                "loss for %s",
                state.global_step,
                ", ".join(name for name in self.policy.domains if name not in known),
            )
        record = {
            "loss": {name: known.get(name) for name in self.policy.domains},
            "realised_share": realised,
            "epochs": self.mixture.epochs,
            **record_fields(self.decision),
            "ratio": self.ratio,
        }
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, _ENTRY: record})
        self._save(state)

    def _shares_since_update(self) -> dict[str, float] | None:
        """Share of each domain in the examples since the update before; None without any."""
        new = {name: n - self._counted[name] for name, n in self.mixture.consumed.items()}
        total = sum(new.values())
        return {name: count / total for name, count in new.items()} if total else None

    # The sampler and the state.

    def _set_sampler(self, dataloader: Any, args: TrainingArguments) -> None:
        if getattr(dataloader, "dataset", None) is not self.train_dataset:
            raise BadInput("give train_dataset=callback.train_dataset to the Trainer")
        batches: Any = dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):  # accelerate's, one rank's share of those inside
            batches = batches.batch_sampler
        expected = self.segment_steps * args.gradient_accumulation_steps
        if len(dataloader) != expected or batches.batch_size != args.train_batch_size:
            raise BadInput(
                f"the data loader has {len(dataloader)} batches for {self.segment_steps} steps, "
                f"not {expected}: give the callback and the Trainer the same arguments, without "
                "tensor, context or sequence parallelism"
            )
        batches.sampler = self._sampler
        self.train_dataset.scheduled = True

    def _state(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "mixture": self.mixture.state_dict(),
            "ratio": self.ratio,
            "counted": self._counted,
        }

    def _end_segment(self, state: TrainerState) -> None:
        """End the segment without an update; the next one has the same ratio."""
        self._sampler.end()
        self._save(state)

    def _save(self, state: TrainerState) -> None:
        """Put the state where the Trainer's next checkpoint saves it."""
        state.stateful_callbacks[_STATE] = self._state()

    def _restore(self, state: TrainerState) -> None:
        resumed = state.global_step > 0
        saved = state.stateful_callbacks.get(_STATE) if resumed else self._start
        if saved is None:
            raise BadInput(
                "the checkpoint was saved without domain scheduling, so its position in the data "
                "is not known; load its model and train without resume_from_checkpoint"
            )
        try:
            self.policy.load_state_dict(saved["policy"])
            self.mixture.load_state_dict(saved["mixture"])
        except ValueError as error:
            raise BadInput(f"the checkpoint does not fit this training: {error}") from None
        self.ratio, self._counted = dict(saved["ratio"]), dict(saved["counted"])
        self.decision = None
        if self._at_end(state):  # saved between a step and the evaluation that was due
            self._sampler.begin(self.ratio)
        elif self.mixture.step != state.global_step - state.global_step % self.segment_steps:
            raise BadInput(
                f"the checkpoint at step {state.global_step} has the position in the data of step "
                f"{self.mixture.step}; resume from another one"
            )
        self._save(state)


def _segment_steps(args: TrainingArguments) -> int:
    if args.eval_strategy != "steps":
        raise BadInput(
            "the data ratio follows evaluations during training: set eval_strategy='steps' and "
            "eval_steps in TrainingArguments"
        )
    if args.max_steps <= 0:
        raise BadInput(
            "set max_steps in TrainingArguments: domains are read at different speeds, so epochs "
            "do not say how long training is"
        )
    every = args.eval_steps
    return math.ceil(args.max_steps * every) if every < 1 else int(every)


def _check_arguments(args: TrainingArguments, policy: Policy, segment_steps: int) -> None:
    """Refuse arguments that would make the data differ from the ratio."""
    if rest := args.max_steps % segment_steps:
        raise BadInput(
            f"max_steps = {args.max_steps} is not a multiple of eval_steps = {segment_steps}; "
            f"set it to {args.max_steps - rest} or {args.max_steps - rest + segment_steps}"
        )
    total = getattr(policy, "total_steps", None)
    if total not in (None, args.max_steps):
        raise BadInput(
            f"the policy has total_steps = {total}, but max_steps is {args.max_steps}; "
            "set both to the same"
        )
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        raise BadInput(
            f"train_sampling_strategy = {args.train_sampling_strategy!r} reorders the examples; "
            "leave it out, the order is that of the data ratio"
        )
    for field in ("auto_find_batch_size", "ignore_data_skip"):
        if getattr(args, field):
            raise BadInput(f"{field} would lose the position in the data; leave it at False")
    for field in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, field):
            raise BadInput(
                f"{field} in accelerator_config changes how many examples a step has or a resumed "
                "run skips; leave it out"
            )


def _sizes(train_domains: Mapping[str, Sequence[Any]], domains: Sequence[str]) -> dict[str, int]:
    if not isinstance(train_domains, Mapping):
        raise BadInput(
            f"the training set must be a dict with an entry for every domain: {', '.join(domains)}"
        )
    if set(train_domains) != set(domains):
        raise BadInput(
            f"train_domains has {', '.join(sorted(train_domains))}; "
            f"the policy's domains are {', '.join(sorted(domains))}"
        )
    try:
        sizes = {name: len(train_domains[name]) for name in domains}
    except TypeError:
        raise BadInput(
            "every entry of train_domains needs a length and an index; load streamed datasets "
            "without streaming=True"
        ) from None
    if empty := [name for name, size in sizes.items() if size == 0]:
        raise BadInput(f"train_domains has no example of {', '.join(empty)}")
    return sizes
