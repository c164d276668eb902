"""The callback in TRL's SFTTrainer: shares, losses, resuming, accumulation, packing, wrong use."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_sft import RecordingSFTTrainer, prepared_sft, texts, tiny_tokenizer
from tiny_trainer import (
    SHARES,
    SIZES,
    TRAIN,
    VALIDATION,
    Scripted,
    assert_examples_follow_the_ratio,
    decisions,
    forecasting,
    logged,
)
from trl import SFTTrainer

from drpruning.common.errors import BadInput
from drpruning.data import Segment

NAMES = list(SHARES)


def test_examples_follow_the_ratio_of_their_segment_within_one(tmp_path: Path) -> None:
    trainer, callback = prepared_sft(tmp_path, policy=forecasting(24), max_steps=24)
    trainer.train()
    assert_examples_follow_the_ratio(trainer)
    assert callback.mixture.sizes == SIZES
    assert callback.ratio == decisions(trainer)[-1]["ratio"]


def test_losses_are_those_of_the_trainers_evaluations(tmp_path: Path) -> None:
    trainer, _ = prepared_sft(tmp_path)
    trainer.train()
    assert set(trainer.eval_dataset) == set(NAMES)
    for entry in decisions(trainer):
        metrics: dict[str, float] = {}
        for logs in trainer.state.log_history:
            if logs["step"] == entry["step"]:
                metrics |= logs
        assert entry["loss"] == {name: metrics[f"eval_{name}_loss"] for name in NAMES}
    final = trainer.evaluate()
    assert decisions(trainer)[-1]["loss"] == {name: final[f"eval_{name}_loss"] for name in NAMES}
    assert [entry["step"] for entry in decisions(trainer)] == [0, 3, 6, 9, 12]


def without_tokens(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL counts tokens from the start of the process."""
    return [{k: v for k, v in entry.items() if not k.endswith("num_tokens")} for entry in log]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("step", [10, 15], ids=["end of a segment", "within a segment"])
def test_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, step: int, accumulation: int
) -> None:
    settings = {
        "max_steps": 20,
        "eval_steps": 2,
        "eval_on_start": False,
        "save_strategy": "steps",
        "save_steps": 5,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    whole, _ = prepared_sft(tmp_path, policy=forecasting(20), **settings)
    whole.train()
    checkpoint = tmp_path / f"checkpoint-{step}"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["drpruning.domain_scheduling"]
    assert saved["mixture"]["step"] == step - step % 2
    assert saved["ratio"] == decisions(whole)[step // 2 - 1]["ratio"]

    resumed, callback = prepared_sft(tmp_path / "other", policy=forecasting(20), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.rows == {s: rows for s, rows in whole.rows.items() if s >= step}
    assert without_tokens(logged(resumed)) == without_tokens(logged(whole))
    assert len(decisions(whole)) == 10
    assert decisions(resumed) == decisions(whole)
    assert resumed.state.stateful_callbacks == whole.state.stateful_callbacks
    assert callback.mixture.step == 20
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_accumulation_equals_a_large_batch(tmp_path: Path) -> None:
    large, _ = prepared_sft(tmp_path, policy=Scripted(), dropout=0.0)
    large.train()
    small, _ = prepared_sft(
        tmp_path,
        policy=Scripted(),
        dropout=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    small.train()
    assert small.rows == large.rows
    for one, two in zip(decisions(large), decisions(small), strict=True):
        assert one["ratio"] == two["ratio"]
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


def words(counts: Mapping[str, int]) -> dict[str, Dataset]:
    """Texts of 3 to 8 times the domain's own word, the number of its place among the domains."""
    return {
        name: Dataset.from_list([{"text": f"{index} " * (3 + i % 6)} for i in range(count)])
        for index, (name, count) in enumerate(counts.items())
    }


@pytest.mark.parametrize("strategy", ["wrapped", "bfd", "bfd_split"])
def test_packed_examples_are_of_one_domain_each(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: dict[int, list[int]] = {}
    training_step = SFTTrainer.training_step

    def recorded(trainer: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        tokens = batches.setdefault(trainer.state.global_step, [0] * 3)
        for index in range(3):
            tokens[index] += int((inputs["input_ids"] == index).sum())
        return training_step(trainer, model, inputs, *rest, **more)

    monkeypatch.setattr(SFTTrainer, "training_step", recorded)
    planned: list[Segment] = []
    trainer, callback = prepared_sft(
        tmp_path,
        policy=Scripted(),
        trainer_class=SFTTrainer,
        train=words({"web": 60, "code": 40, "wiki": 30}),
        validation=words(dict.fromkeys(SHARES, 12)),
        packing=True,
        packing_strategy=strategy,
        max_length=12,
    )
    plan = callback.mixture.plan_segment
    monkeypatch.setattr(
        callback.mixture, "plan_segment", lambda *a: planned.append(plan(*a)) or planned[-1]
    )
    packed = dict(zip(NAMES, trainer.train_dataset.datasets, strict=True))
    assert callback.mixture.sizes == {name: len(rows) for name, rows in packed.items()}
    assert callback.mixture.sizes["web"] < 60
    end = tiny_tokenizer().eos_token_id
    for index, rows in enumerate(packed.values()):
        assert {token for row in rows for token in row["input_ids"]} == {index, end}

    trainer.train()
    assert len(planned) == 4
    for segment in planned:
        for step in range(3):
            expected = [0] * 3
            for domain, number in zip(*segment.batch(step), strict=True):
                row = packed[NAMES[domain]][int(number)]["input_ids"]
                expected[domain] += row.count(domain)
            assert batches[segment.start_step + step] == expected
    for entry in decisions(trainer)[1:]:
        assert sum(entry["realised_share"].values()) == pytest.approx(1)


def test_wrapped_packing_makes_examples_of_equal_length(tmp_path: Path) -> None:
    _, callback = prepared_sft(
        tmp_path,
        train=words({"web": 60, "code": 40, "wiki": 30}),
        packing=True,
        packing_strategy="wrapped",
        max_length=12,
    )
    for rows in callback.train_dataset.datasets:
        assert {len(row["input_ids"]) for row in itertools.islice(rows, len(rows) - 1)} == {12}


def test_examples_that_the_trainer_drops_are_not_counted(tmp_path: Path) -> None:
    domains = {
        name: Dataset.from_list(
            [{"prompt": f"{index} " * (3 + 5 * (i % 2)), "completion": "9 9"} for i in range(20)]
        )
        for index, name in enumerate(NAMES)
    }
    trainer, callback = prepared_sft(tmp_path, train=domains, validation=domains, max_length=8)
    assert callback.mixture.sizes == dict.fromkeys(NAMES, 10)
    trainer.train()
    assert [entry["step"] for entry in decisions(trainer)] == [0, 3, 6, 9, 12]
    assert all(len(rows) == 8 for rows in trainer.rows.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "no", "eval_on_start": False}, "eval_strategy='steps'"),
        ({"max_steps": 10}, "set it to 9 or 12"),
        ({"train": {"web": TRAIN["web"]}}, "the policy's domains are code, web, wiki"),
        ({"train": TRAIN}, "train_dataset\\['web'\\] is a list; TRL takes"),
        ({"validation": {"web": texts(VALIDATION)["web"]}}, "it has none for code, wiki"),
        ({"validation": texts(VALIDATION)["web"]}, "it has none for web, code, wiki"),
        ({"train": texts(TRAIN)["web"]}, "must be a dict with an entry for every domain"),
        ({"packing": True, "eval_packing": False}, "leave eval_packing out"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_prepared(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        pytest.fail("the trainer was built")

    with pytest.raises(BadInput, match=message):
        prepared_sft(tmp_path, trainer_class=unreachable, **changes)


def test_further_evaluation_sets_and_arguments_reach_the_trainer(tmp_path: Path) -> None:
    validation = texts(VALIDATION)
    trainer, _ = prepared_sft(tmp_path, validation={"held_out": validation["web"], **validation})
    assert isinstance(trainer, RecordingSFTTrainer)
    assert list(trainer.eval_dataset) == ["held_out", *NAMES]
    assert len(trainer.processing_class) == 64
    trainer.train()
    assert set(decisions(trainer)[0]["loss"]) == set(SHARES)
