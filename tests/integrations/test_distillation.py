"""Distillation as the loss of a real Trainer: gradients, accumulation, resuming, wrong use."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_sft import sft_arguments, tiny_tokenizer
from tiny_trainer import (
    SHARES,
    TRAIN,
    VALIDATION,
    Scripted,
    arguments,
    decisions,
    larger_model,
    logged,
    tiny_model,
)
from transformers import (
    DataCollatorForSeq2Seq,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
)
from trl import SFTTrainer

from drpruning.common.errors import BadInput
from drpruning.integrations.transformers import DistillationLoss, DomainSchedulingCallback

ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


def documents(count: int) -> list[dict[str, list[int]]]:
    """Examples of 3 to 8 tokens; the first token and every fifth have no label."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(64, (3 + i % 6,), generator=generator).tolist() for i in range(count)]
    return [
        {"input_ids": row, "labels": [-100 if i % 5 == 0 else t for i, t in enumerate(row)]}
        for row in rows
    ]


def distilled(
    folder: Path,
    loss: DistillationLoss,
    model: PreTrainedModel,
    examples: Sequence[Any],
    **changes: Any,
) -> Trainer:
    """A Trainer that pads its examples."""
    return Trainer(
        model,
        arguments(folder, **changes),
        train_dataset=examples,
        eval_dataset=VALIDATION,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        compute_loss_func=loss,
        callbacks=[loss],
    )


def plain_formula(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    examples: Iterable[dict[str, list[int]]],
    *,
    weight: float,
    temperature: float,
    top_k: int | None = None,
) -> tuple[torch.Tensor, float]:
    """Loss and divergence, document by document, as autograd differentiates them."""
    entropies, divergences = [], []
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        labels = torch.tensor(example["labels"])[1:]
        kept = labels != -100
        logits = student(input_ids=ids).logits[0, :-1][kept]
        with torch.no_grad():
            p = (teacher(input_ids=ids).logits[0, :-1][kept] / temperature).softmax(-1)
        q = (logits / temperature).softmax(-1)
        if top_k is not None:
            top = p.topk(top_k).indices
            p, q = (
                torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)
                for kept in (x.gather(-1, top) for x in (p, q))
            )
        divergences.append((p * (p / q).log()).sum(-1))
        entropies.append(torch.nn.functional.cross_entropy(logits, labels[kept], reduction="none"))
    entropy, divergence = (torch.cat(parts).mean() for parts in (entropies, divergences))
    loss = (1 - weight) * entropy + weight * temperature**2 * divergence
    return loss, divergence.item()


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": 0.7, "temperature": 1.0},
        {"weight": 1.0, "temperature": 2.0},
        {"weight": 0.5, "temperature": 1.5, "top_k": 5},
    ],
)
def test_a_step_is_that_of_the_plain_formula(tmp_path: Path, settings: dict[str, Any]) -> None:
    examples, model, teacher = documents(8), tiny_model(0.0), larger_model().eval()
    expected = copy.deepcopy(model)
    value, divergence = plain_formula(expected, teacher, examples, **settings)
    value.backward()
    torch.optim.SGD(expected.parameters(), lr=1.0).step()

    loss = DistillationLoss(larger_model(), **settings)
    trainer = distilled(tmp_path, loss, model, examples, **ONE_STEP)
    trainer.train()
    assert not torch.allclose(weights(model), weights(tiny_model()), atol=1e-2)
    torch.testing.assert_close(weights(model), weights(expected), atol=2e-6, rtol=1e-5)
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert entry["divergence"] == pytest.approx(divergence, rel=1e-5)


def test_a_student_that_caps_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config)
    examples = documents(8)
    expected, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()
    with torch.no_grad():
        teacher.model.embed_tokens.weight.mul_(100)
    loss = DistillationLoss(copy.deepcopy(teacher), weight=0.7)
    value, divergence = plain_formula(expected, teacher, examples, weight=0.7, temperature=1.0)
    value.backward()
    torch.optim.SGD(expected.parameters(), lr=1.0).step()
    trainer = distilled(tmp_path, loss, model, examples, **ONE_STEP)
    trainer.train()
    torch.testing.assert_close(weights(model), weights(expected), atol=2e-6, rtol=1e-5)
    assert trainer.state.log_history[0]["divergence"] == pytest.approx(divergence, rel=1e-4)


def test_a_packed_step_of_trl_is_that_of_its_documents(tmp_path: Path) -> None:
    examples, model, teacher = documents(12), tiny_model(0.0), larger_model().eval()
    for example in examples:
        example["labels"][0] = -100
    expected = copy.deepcopy(model)
    value, divergence = plain_formula(expected, teacher, examples, weight=0.8, temperature=1.0)
    value.backward()
    torch.optim.SGD(expected.parameters(), lr=1.0).step()

    loss = DistillationLoss(larger_model(), weight=0.8, tokenizer=tiny_tokenizer())
    trainer = SFTTrainer(
        model,
        sft_arguments(
            tmp_path, packing=True, max_length=16, **ONE_STEP | {"per_device_train_batch_size": 12}
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tiny_tokenizer(),
        compute_loss_func=loss,
        callbacks=[loss],
    )
    assert len(trainer.train_dataset) < 8
    trainer.train()
    torch.testing.assert_close(weights(model), weights(expected), atol=2e-6, rtol=1e-5)
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert entry["divergence"] == pytest.approx(divergence, rel=1e-5)


def test_a_model_taught_by_its_copy_stays(tmp_path: Path) -> None:
    model = tiny_model(0.0)
    loss = DistillationLoss(copy.deepcopy(model), weight=1)
    trainer = distilled(tmp_path, loss, model, documents(8), **ONE_STEP)
    trainer.train()
    assert trainer.state.log_history[0]["divergence"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(weights(model), weights(tiny_model()), atol=1e-6, rtol=0)


def test_a_weight_near_0_is_plain_training(tmp_path: Path) -> None:
    examples = documents(48)
    loss = DistillationLoss(larger_model(), weight=1e-9)
    taught = distilled(tmp_path, loss, tiny_model(0.1), examples, optim="sgd", learning_rate=0.5)
    plain = Trainer(
        tiny_model(0.1),
        taught.args,
        train_dataset=examples,
        eval_dataset=VALIDATION,
        data_collator=taught.data_collator,
    )
    for trainer in (taught, plain):
        torch.manual_seed(5)
        trainer.train()
    torch.testing.assert_close(weights(taught.model), weights(plain.model), atol=1e-5, rtol=0)
    losses = [
        [e["eval_web_loss"] for e in t.state.log_history if "eval_web_loss" in e]
        for t in (taught, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    made = []
    for rows, accumulated in ((8, 1), (4, 2)):
        loss = DistillationLoss(larger_model(), weight=0.6)
        trainer = distilled(
            tmp_path / str(rows),
            loss,
            tiny_model(0.0),
            documents(64),
            optim="sgd",
            learning_rate=0.5,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulated,
        )
        trainer.train()
        made.append(trainer)
    one, two = made
    assert not torch.allclose(weights(one.model), weights(tiny_model()), atol=1e-2)
    torch.testing.assert_close(weights(two.model), weights(one.model), atol=1e-5, rtol=0)
    for key in ("loss", "divergence"):
        values = [[e[key] for e in t.state.log_history if key in e] for t in made]
        assert len(values[0]) == 12
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_evaluation_is_the_plain_loss(tmp_path: Path) -> None:
    loss = DistillationLoss(larger_model())
    trainer = distilled(tmp_path, loss, tiny_model(), documents(8))
    plain = Trainer(
        tiny_model(), trainer.args, eval_dataset=VALIDATION, data_collator=trainer.data_collator
    )
    found, wanted = trainer.evaluate(), plain.evaluate()
    for name in SHARES:
        assert found[f"eval_{name}_loss"] == wanted[f"eval_{name}_loss"]
    assert not any("divergence" in entry for entry in trainer.state.log_history)


def scheduled(folder: Path) -> Trainer:
    """Distillation from a weight to another, on domains that a policy mixes."""
    args = arguments(folder, save_strategy="steps", save_steps=4, eval_on_start=False)
    loss = DistillationLoss(larger_model(), weight=0.9, final_weight=0.1)
    callback = DomainSchedulingCallback(Scripted(), TRAIN, args)
    return Trainer(
        tiny_model(),
        args,
        train_dataset=callback.train_dataset,
        eval_dataset=VALIDATION,
        compute_loss_func=loss,
        callbacks=[loss, callback],
    )


def test_resumed_under_a_schedule_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    whole = scheduled(tmp_path)
    whole.train()
    assert [entry["step"] for entry in decisions(whole)] == [3, 6, 9, 12]
    resumed = scheduled(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed) == logged(whole)
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_the_weight_moves_to_its_last(tmp_path: Path) -> None:
    trainer = scheduled(tmp_path)
    seen: list[float] = []

    class Watching(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seen.append(trainer.compute_loss_func.weight)

    trainer.add_callback(Watching())
    trainer.train()
    assert seen == pytest.approx([0.9 - 0.8 * step / 11 for step in range(12)])


def test_the_teacher_stays_outside_of_the_training(tmp_path: Path) -> None:
    teacher = larger_model().train()
    before = weights(teacher).clone()
    loss = DistillationLoss(teacher)
    trainer = distilled(
        tmp_path, loss, tiny_model(), documents(8), save_strategy="steps", save_steps=12
    )
    trainer.train()
    assert not teacher.training
    assert torch.equal(weights(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}
    saved = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    assert torch.equal(weights(saved), weights(trainer.model))
    assert not any(isinstance(m, LlamaForCausalLM) for m in list(trainer.model.modules())[1:])


def test_the_mean_since_the_entry_before_is_logged(tmp_path: Path) -> None:
    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            self.seen += [logs["divergence"]] if "divergence" in logs else []

    found, reporter = {}, Reporter()
    for every in (1, 3):
        loss = DistillationLoss(larger_model())
        rows = TRAIN["web"]  # all of one length, so that steps count alike
        trainer = distilled(tmp_path / str(every), loss, tiny_model(0.0), rows, logging_steps=every)
        trainer.add_callback(reporter)
        trainer.train()
        found[every] = [e["divergence"] for e in trainer.state.log_history if "divergence" in e]
    assert len(found[1]) == 12
    assert found[1][0] > found[1][-1] > 0
    means = [sum(found[1][first : first + 3]) / 3 for first in range(0, 12, 3)]
    assert found[3] == pytest.approx(means, rel=1e-5)
    assert reporter.seen == found[1] + found[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0}, "weight = 0 must be above 0"),
        ({"weight": float("nan")}, "weight = nan must be above 0"),
        ({"final_weight": 1.5}, "final_weight = 1.5 must be from 0 to 1"),
        ({"temperature": 0}, "temperature = 0 must be a number above 0"),
        ({"top_k": 0}, "top_k = 0 must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        DistillationLoss(larger_model(), **settings)


def test_a_teacher_of_another_vocabulary_is_refused_when_the_trainer_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(BadInput, match="a vocabulary of 72 tokens, the trained model one of 64"):
        distilled(tmp_path, DistillationLoss(larger_model(72)), tiny_model(), documents(8))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens("64")
    with pytest.raises(BadInput, match="other tokens than the Trainer's processing_class"):
        SFTTrainer(
            tiny_model(),
            sft_arguments(tmp_path, **ONE_STEP),
            train_dataset=Dataset.from_list(documents(8)),
            processing_class=tiny_tokenizer(),
            callbacks=[DistillationLoss(larger_model(), tokenizer=tokenizer)],
        )


def test_a_teacher_that_is_the_trained_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(BadInput, match="shares weights with the trained model"):
        distilled(tmp_path, DistillationLoss(model), model, documents(8))


def test_a_loss_without_its_callback_or_labels_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(
        tiny_model(),
        arguments(tmp_path, **ONE_STEP),
        train_dataset=TRAIN["web"],
        compute_loss_func=DistillationLoss(larger_model()),
    )
    with pytest.raises(BadInput, match=r"give callbacks=\[loss\] to the same Trainer"):
        trainer.train()
    loss = DistillationLoss(larger_model())
    unlabelled = [{"input_ids": row["input_ids"]} for row in TRAIN["web"]]
    trainer = Trainer(
        tiny_model(),
        arguments(tmp_path, **ONE_STEP),
        train_dataset=unlabelled,
        compute_loss_func=loss,
        callbacks=[loss],
    )
    with pytest.raises(BadInput, match="distillation needs labels"):
        trainer.train()
