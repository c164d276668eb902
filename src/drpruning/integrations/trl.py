"""Data scheduling in TRL's `SFTTrainer`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from datasets import Dataset
from transformers import TrainingArguments

from drpruning.common.errors import BadInput
from drpruning.integrations.transformers import DomainSchedulingCallback
from drpruning.scheduling import Policy

AnyTrainer = TypeVar("AnyTrainer")

_TRAIN = "training set of "  # in front of a domain's name, among the evaluation sets


def scheduled_trainer(
    trainer_class: Callable[..., AnyTrainer],
    policy: Policy,
    model: Any,
    args: TrainingArguments,
    *,
    train_dataset: Mapping[str, Dataset],
    eval_dataset: Mapping[str, Dataset],
    **settings: Any,
) -> tuple[AnyTrainer, DomainSchedulingCallback]:
    """Build an `SFTTrainer` whose training domains follow a policy.

        trainer, callback = scheduled_trainer(SFTTrainer, policy, model, args,
                                              train_dataset={"web": web, "code": code},
                                              eval_dataset={"web": ..., "code": ...})

    The trainer takes one training set and prepares it (chat template, tokens, labels, packing)
    while it is built. It also takes a dict of evaluation sets and prepares each on its own. The
    training domains are therefore passed among these, so that no example is packed from two of
    them, and taken out again before training.

    Args:
        trainer_class: `trl.SFTTrainer` or a subclass.
        policy: See `DomainSchedulingCallback`.
        model: For the trainer.
        args: For the trainer; see `DomainSchedulingCallback`.
        train_dataset: Training examples of each of the policy's domains, as the trainer takes them.
        eval_dataset: Validation examples of each of these domains, and of others if wanted.
        **settings: Further arguments of the trainer, such as `processing_class`.

    Returns:
        The trainer and its callback.

    Raises:
        BadInput: What `DomainSchedulingCallback` refuses, before any example is tokenized; or
            validation examples would be packed differently from training examples.
    """
    _check(policy, args, train_dataset, eval_dataset)
    prepared = {_TRAIN + name: train_dataset[name] for name in policy.domains}
    trainer: Any = trainer_class(
        model=model,
        args=args,
        train_dataset=train_dataset[policy.domains[0]].select([0]),
        eval_dataset={**eval_dataset, **prepared},
        **settings,
    )
    evaluation = dict(trainer.eval_dataset)
    domains = {name: evaluation.pop(_TRAIN + name) for name in policy.domains}
    callback = DomainSchedulingCallback(policy, domains, trainer.args)
    trainer.eval_dataset = evaluation
    trainer.train_dataset = callback.train_dataset
    trainer.add_callback(callback)
    return trainer, callback


def _check(
    policy: Policy,
    args: TrainingArguments,
    train_dataset: Mapping[str, Dataset],
    eval_dataset: Mapping[str, Dataset],
) -> None:
    """Refuse what can be seen to be wrong before the trainer tokenizes anything."""
    DomainSchedulingCallback(policy, train_dataset, args)
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {}
    if missing := [name for name in policy.domains if name not in evaluated]:
        raise BadInput(
            "eval_dataset must be a dict with an entry for every domain; "
            f"it has none for {', '.join(missing)}"
        )
    for name in policy.domains:
        if not isinstance(train_dataset[name], Dataset):
            raise BadInput(
                f"train_dataset[{name!r}] is a {type(train_dataset[name]).__name__}; TRL takes a "
                "datasets.Dataset, for a list of examples Dataset.from_list(examples)"
            )
    packing = getattr(args, "packing", False)
    if getattr(args, "eval_packing", None) not in (None, packing):
        raise BadInput(
            f"eval_packing = {not packing} with packing = {packing}: domains are packed alike for "
            "training and validation; leave eval_packing out"
        )
