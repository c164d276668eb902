"""The callback in a real Trainer: shares, order, resuming, workers, wrong use."""

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import (
    SHARES,
    SIZES,
    TRAIN,
    VALIDATION,
    RecordingTrainer,
    Scripted,
    arguments,
    assert_examples_follow_the_ratio,
    decisions,
    forecasting,
    logged,
    prepared,
    tiny_model,
)
from transformers import TrainerCallback

from drpruning.common.errors import BadInput
from drpruning.integrations.transformers import DomainSchedulingCallback
from drpruning.scheduling import Constant

NAMES = list(SHARES)


def test_examples_follow_the_ratio_of_their_segment_within_one(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path, policy=forecasting(24), max_steps=24)
    trainer.train()
    assert_examples_follow_the_ratio(trainer)


def test_every_example_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path)
    trainer.train()
    counts = Counter((i, number) for i, size in enumerate(SIZES.values()) for number in range(size))
    for step in range(12):
        counts.update(trainer.rows[step])
        for index in range(len(SIZES)):
            times = [count for (domain, _), count in counts.items() if domain == index]
            assert max(times) - min(times) <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"dataloader_num_workers": 1},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"train_sampling_strategy": "sequential"},
        {"eval_steps": 0.25},
    ],
    ids=["accumulation", "worker", "persistent workers", "sequential", "share of max_steps"],
)
def test_order_does_not_depend_on_how_batches_are_fetched(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    policies = [Scripted(), Scripted()]
    plain, _ = prepared(tmp_path, policy=policies[0])
    other, _ = prepared(tmp_path, policy=policies[1], **changes)
    plain.train()
    other.train()
    assert [d["ratio"] for d in decisions(plain)] == [d["ratio"] for d in decisions(other)]
    assert plain.rows == other.rows


def test_training_twice_is_training_the_same_twice(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path, policy=Scripted())
    trainer.train()
    rows = trainer.__dict__.pop("rows")
    trainer.train()
    assert trainer.rows == rows


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
    whole, _ = prepared(tmp_path, policy=forecasting(20), **settings)
    whole.train()
    resumed, callback = prepared(tmp_path / "other", policy=forecasting(20), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))

    assert resumed.rows == {s: rows for s, rows in whole.rows.items() if s >= step}
    assert logged(resumed) == logged(whole)
    assert len(decisions(whole)) == 10
    assert decisions(whole)[-1]["forecast"] is not None
    assert resumed.state.stateful_callbacks == whole.state.stateful_callbacks
    assert callback.mixture.step == 20
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_evaluation_at_the_start_of_a_resumed_run_changes_nothing(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    whole, _ = prepared(tmp_path, **settings)
    whole.train()
    for step in (4, 8):
        resumed, _ = prepared(tmp_path / str(step), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert decisions(resumed) == decisions(whole)
        for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_segments_without_an_evaluation_keep_the_ratio(tmp_path: Path) -> None:
    settings = {"eval_on_start": False, "eval_delay": 5, "save_strategy": "steps", "save_steps": 3}
    whole, _ = prepared(tmp_path, policy=Scripted(), **settings)
    whole.train()
    assert [entry["step"] for entry in decisions(whole)] == [6, 9, 12]
    rows = [row[0] for step in range(6) for row in whole.rows[step]]
    assert [rows.count(i) for i in range(3)] == pytest.approx([24, 14.4, 9.6], abs=1)
    resumed, _ = prepared(tmp_path / "other", policy=Scripted(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.rows == {s: rows for s, rows in whole.rows.items() if s >= 3}
    assert logged(resumed) == logged(whole)


def test_evaluations_at_other_times_do_not_count(tmp_path: Path) -> None:
    class Curious(TrainerCallback):
        def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate = True

    plain, _ = prepared(tmp_path)
    plain.train()
    other, callback = prepared(tmp_path, callbacks=(Curious(),))
    other.train()
    other.evaluate()
    assert [d["step"] for d in decisions(other)] == [0, 3, 6, 9, 12]
    assert [d["realised_share"] for d in decisions(other)] == [
        d["realised_share"] for d in decisions(plain)
    ]
    assert callback.mixture.step == 12


def test_a_domain_that_is_only_evaluated_steers_nothing(tmp_path: Path) -> None:
    """What share 0 is in a recipe: in the evaluation sets, not in the policy."""
    plain, _ = prepared(tmp_path, policy=Scripted())
    plain.train()
    evaluation = {"held": VALIDATION["web"], **VALIDATION}
    more, _ = prepared(tmp_path, policy=Scripted(), evaluation=evaluation)
    more.train()
    assert more.rows == plain.rows
    assert [d["ratio"] for d in decisions(more)] == [d["ratio"] for d in decisions(plain)]
    assert all(set(d["loss"]) == set(SHARES) for d in decisions(more))
    held = [
        entry["eval_held_loss"] for entry in more.state.log_history if "eval_held_loss" in entry
    ]
    web = [entry["eval_web_loss"] for entry in more.state.log_history if "eval_web_loss" in entry]
    assert held == web
    assert len(held) == 5


def test_loss_that_is_not_a_number_leaves_the_ratio_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unlabelled = [row | {"labels": [-100] * len(row["labels"])} for row in VALIDATION["wiki"]]
    trainer, callback = prepared(tmp_path, evaluation=VALIDATION | {"wiki": unlabelled})
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert callback.ratio == pytest.approx(SHARES)
    assert "no finite loss for wiki" in caplog.text
    for entry in decisions(trainer):
        assert entry["loss"]["wiki"] is None
        assert math.isfinite(entry["loss"]["web"])
        assert not entry["explanation"]["ratio_updated"]
        assert "wiki" in entry["explanation"]["unusable"]


def test_domain_that_is_no_longer_evaluated_leaves_the_ratio_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = dict(VALIDATION)

    class Drop(TrainerCallback):
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 4:
                del evaluation["wiki"]

    trainer, _ = prepared(tmp_path, evaluation=evaluation, callbacks=(Drop(),))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    log = decisions(trainer)
    assert [entry["step"] for entry in log] == [0, 3, 6, 9, 12]
    assert log[2]["ratio"] == log[3]["ratio"] == log[4]["ratio"] == log[1]["ratio"]
    assert log[1]["ratio"] != log[0]["ratio"]
    assert log[2]["explanation"]["unusable"] == {"wiki": "its loss is missing"}
    assert caplog.text.count("no finite loss for wiki") == 3


def test_evaluation_that_does_not_come_leaves_the_ratio_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Veto(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate &= state.global_step != 6

    trainer, callback = prepared(tmp_path)
    trainer.add_callback(Veto())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert [d["step"] for d in decisions(trainer)] == [0, 3, 9, 12]
    assert callback.mixture.step == 12
    given = {
        name: n / callback.mixture.global_batch for name, n in callback.mixture.consumed.items()
    }
    assert decisions(trainer)[-1]["data"] == pytest.approx(given), "also what came before step 6"
    assert caplog.text.count("no evaluation came") == 1
    assert "step 6" in caplog.text


def test_checkpoint_between_a_step_and_its_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class SaveAtOnce(TrainerCallback):  # as the Trainer does at SIGTERM
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 6:
                whole._save_checkpoint(whole.model, trial=None)

    whole, _ = prepared(tmp_path, callbacks=(SaveAtOnce(),), dropout=0.0)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-6")
    resumed, _ = prepared(tmp_path / "evaluated", dropout=0.0)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert decisions(resumed) == decisions(whole)
    assert resumed.rows == {s: rows for s, rows in whole.rows.items() if s >= 6}
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert "no evaluation came" not in caplog.text

    other, callback = prepared(tmp_path / "other", eval_on_start=False)
    other.train(resume_from_checkpoint=checkpoint)
    assert [d["step"] for d in decisions(other)] == [0, 3, 9, 12]
    assert callback.mixture.step == 12
    assert "step 6: the data ratio stays as it is, because no evaluation came" in caplog.text


def test_domain_that_is_no_longer_evaluated_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    whole, _ = prepared(tmp_path, save_strategy="steps", save_steps=4)
    whole.train()
    evaluation = {name: VALIDATION[name] for name in ("web", "code")}
    resumed, _ = prepared(tmp_path / "other", evaluation=evaluation)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    before, *after = decisions(resumed)[1:]
    assert all(entry["ratio"] == before["ratio"] for entry in after)


def test_evaluation_of_something_else_in_its_place_leaves_the_ratio_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Instead(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 3:
                trainer.evaluate(VALIDATION["web"])  # cancels the evaluation that was due

    trainer, _ = prepared(tmp_path)
    trainer.add_callback(Instead())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    log = decisions(trainer)
    assert [entry["step"] for entry in log] == [0, 3, 6, 9, 12]
    assert log[0]["ratio"] == log[1]["ratio"] != log[2]["ratio"]
    assert "no finite loss for web, code, wiki" in caplog.text


def test_callback_can_be_added_to_a_trainer_that_exists(tmp_path: Path) -> None:
    from datasets import Dataset, concatenate_datasets

    whole, _ = prepared(tmp_path, policy=Scripted())
    whole.train()
    domains = {name: Dataset.from_list(rows) for name, rows in TRAIN.items()}
    args = arguments(tmp_path)
    trainer = RecordingTrainer(
        tiny_model(),
        args,
        train_dataset=concatenate_datasets(list(domains.values())),
        eval_dataset=VALIDATION,
    )
    callback = DomainSchedulingCallback(Scripted(), domains, trainer.args)
    trainer.train_dataset = callback.train_dataset
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.rows == whole.rows


def test_further_evaluation_sets_are_ignored(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path, evaluation={"held_out": VALIDATION["web"], **VALIDATION})
    trainer.train()
    assert [d["step"] for d in decisions(trainer)] == [0, 3, 6, 9, 12]
    assert set(decisions(trainer)[0]["loss"]) == set(SHARES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "no", "eval_on_start": False}, "eval_strategy='steps'"),
        ({"eval_strategy": "epoch"}, "eval_strategy='steps'"),
        ({"max_steps": -1}, "set max_steps"),
        ({"eval_steps": 5}, "set it to 10 or 15"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        DomainSchedulingCallback(Constant(SHARES), TRAIN, arguments(tmp_path, **changes))


def test_policies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    with pytest.raises(BadInput, match="total_steps = 100, but max_steps is 12"):
        DomainSchedulingCallback(Constant(SHARES, 100), TRAIN, args)
    with pytest.raises(BadInput, match="the policy's domains are"):
        DomainSchedulingCallback(Constant({"web": 0.5, "news": 0.5}), TRAIN, args)
    with pytest.raises(BadInput, match="no example of wiki"):
        DomainSchedulingCallback(Constant(SHARES), TRAIN | {"wiki": []}, args)
    with pytest.raises(BadInput, match="streaming"):
        DomainSchedulingCallback(Constant(SHARES), TRAIN | {"wiki": iter([])}, args)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (VALIDATION["web"], "gave no eval_web_loss, .*eval_dataset must be a dict"),
        ({k: v for k, v in VALIDATION.items() if k != "code"}, "gave no eval_code_loss"),
        ({"other": VALIDATION["web"]}, "eval_web_loss, eval_code_loss, eval_wiki_loss"),
    ],
    ids=["no dict", "a domain missing", "other domains"],
)
@pytest.mark.parametrize("on_start", [True, False])
def test_evaluation_sets_that_do_not_fit_are_refused(
    tmp_path: Path, evaluation: Any, message: str, *, on_start: bool
) -> None:
    trainer, _ = prepared(tmp_path, evaluation=evaluation, eval_on_start=on_start)
    with pytest.raises(BadInput, match=message):
        trainer.train()


def test_training_set_without_its_callback_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_on_start=False)
    callback = DomainSchedulingCallback(Constant(SHARES), TRAIN, args)
    assert next(iter(callback.train_dataset)) == TRAIN["web"][0]
    trainer = RecordingTrainer(
        tiny_model(), args, train_dataset=callback.train_dataset, eval_dataset=VALIDATION
    )
    with pytest.raises(BadInput, match=r"callbacks=\[callback\]"):
        trainer.train()


def test_callback_without_its_training_set_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    callback = DomainSchedulingCallback(Constant(SHARES), TRAIN, args)
    trainer = RecordingTrainer(
        tiny_model(),
        args,
        train_dataset=TRAIN["web"],
        eval_dataset=VALIDATION,
        callbacks=[callback],
    )
    with pytest.raises(BadInput, match=r"train_dataset=callback\.train_dataset"):
        trainer.train()


def test_trainer_with_other_arguments_is_refused(tmp_path: Path) -> None:
    callback = DomainSchedulingCallback(Constant(SHARES), TRAIN, arguments(tmp_path))
    for changes, message in (
        ({"per_device_train_batch_size": 4}, "the data loader has 6 batches"),
        ({"gradient_accumulation_steps": 2}, "not 6"),
        ({"eval_steps": 2}, "eval_steps = 3, this training has 2"),
        ({"max_steps": 10}, "set it to 9 or 12"),
    ):
        trainer = RecordingTrainer(
            tiny_model(),
            arguments(tmp_path, **changes),
            train_dataset=callback.train_dataset,
            eval_dataset=VALIDATION,
            callbacks=[callback],
        )
        with pytest.raises(BadInput, match=message):
            trainer.train()


def test_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    trainer, _ = prepared(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    for changes, message in (
        ({"data_seed": 7}, "does not fit this training: .*seed"),
        ({"per_device_train_batch_size": 4}, "global_batch"),
        ({"policy": Constant(SHARES)}, "the state is of the policy 'naive_dro'"),
        ({"eval_steps": 2}, "keep eval_steps"),
    ):
        other, _ = prepared(tmp_path / "other", **changes)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=message):
            other.train(resume_from_checkpoint=str(checkpoint))

    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    saved = state["stateful_callbacks"]["drpruning.domain_scheduling"]
    saved["mixture"]["step"] = 0
    path.write_text(json.dumps(state))
    other, _ = prepared(tmp_path / "other")
    with pytest.raises(BadInput, match="has the position in the data of step 0"):
        other.train(resume_from_checkpoint=str(checkpoint))

    del state["stateful_callbacks"]["drpruning.domain_scheduling"]
    path.write_text(json.dumps(state))
    other, _ = prepared(tmp_path / "other")
    with pytest.raises(BadInput, match="without domain scheduling"):
        other.train(resume_from_checkpoint=str(checkpoint))
