"""A tiny Llama, three domains and a Trainer that remembers which examples it trained on."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from drpruning.integrations.transformers import DistillationLoss, DomainSchedulingCallback
from drpruning.scheduling import Constant, DRPruning, NaiveDRO, Policy

SHARES = {"web": 0.5, "code": 0.3, "wiki": 0.2}
SIZES = {"web": 40, "code": 23, "wiki": 9}
LENGTH = 8


def examples(domain: int, count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Examples whose first two tokens say domain and number, the rest drawn by domain."""
    generator = torch.Generator().manual_seed(100 * seed + domain)
    rest = torch.randint(
        4 * domain, 4 * domain + 4 + domain, (count, LENGTH - 2), generator=generator
    )
    rows = [[domain, number, *row] for number, row in enumerate(rest.tolist())]
    return [{"input_ids": row, "labels": row} for row in rows]


TRAIN = {name: examples(i, SIZES[name]) for i, name in enumerate(SHARES)}
VALIDATION = {name: examples(i, 6, seed=1) for i, name in enumerate(SHARES)}


class Scripted(Constant):
    """Ratios that swing widely and do not depend on the losses, so that rounding does not count."""

    def __init__(self) -> None:
        super().__init__(SHARES)

    def _ratio_from(self, losses: Any) -> Any:  # noqa: ARG002
        return self._ratio[[1, 2, 0]]


def forecasting(steps: int) -> Policy:
    given = dict.fromkeys(SHARES, 3.0)
    return DRPruning(SHARES, steps, floor=0.05, reference_loss=given, forecast="replace")


def tiny_model(dropout: float = 0.2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            attention_dropout=dropout,
        )
    )


def larger_model(vocabulary: int = 64) -> LlamaForCausalLM:
    """A teacher whose distributions are far from even."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            attention_dropout=0.5,  # not in evaluation mode
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    return model


SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "eval_on_start": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), **(SETTINGS | changes))


class RecordingTrainer(Trainer):
    """Keeps (domain, number) of every example, one list for each optimizer step."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = self.__dict__.setdefault("rows", {}).setdefault(self.state.global_step, [])
        rows.extend(map(tuple, inputs["input_ids"][:, :2].tolist()))
        return super().training_step(model, inputs, *args, **kwargs)


def prepared(
    folder: Path,
    *,
    policy: Policy | None = None,
    evaluation: Any = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    dropout: float = 0.2,
    loss: DistillationLoss | None = None,
    **changes: Any,
) -> tuple[RecordingTrainer, DomainSchedulingCallback]:
    args = arguments(folder, **changes)
    policy = policy or NaiveDRO(SHARES, args.max_steps, rho=0.1, floor=0.05)
    callback = DomainSchedulingCallback(policy, TRAIN, args)
    trainer = RecordingTrainer(
        tiny_model(dropout),
        args,
        train_dataset=callback.train_dataset,
        eval_dataset=VALIDATION if evaluation is None else evaluation,
        callbacks=[*callbacks, *([loss] if loss else []), callback],
        compute_loss_func=loss,
    )
    return trainer, callback


def decisions(trainer: Trainer) -> list[Mapping[str, Any]]:
    """What was logged at each update, with its step."""
    return [
        {"step": entry["step"], **entry["domain_scheduling"]}
        for entry in trainer.state.log_history
        if "domain_scheduling" in entry
    ]


def assert_examples_follow_the_ratio(trainer: Any) -> None:
    """In a training of 24 steps, what each domain has had is within one example of the ratios."""
    log = decisions(trainer)
    assert [entry["step"] for entry in log] == list(range(0, 25, 3))
    assert len({tuple(entry["ratio"].values()) for entry in log}) > 4
    given, wanted = dict.fromkeys(SHARES, 0), dict.fromkeys(SHARES, 0.0)
    for before, after in itertools.pairwise(log):
        rows = [row for step in range(before["step"], after["step"]) for row in trainer.rows[step]]
        assert len(rows) == 24
        for index, name in enumerate(SHARES):
            count = sum(row[0] == index for row in rows)
            assert count / 24 == pytest.approx(after["realised_share"][name])
            given[name] += count
            wanted[name] += 24 * before["ratio"][name]
            assert abs(given[name] - wanted[name]) < 1
            assert after["epochs"][name] == pytest.approx(given[name] / SIZES[name])
    assert log[0]["realised_share"] is None


TIMES = ("_runtime", "_per_second", "total_flos")


def logged(trainer: Trainer) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if not key.endswith(TIMES)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
