"""The tiny Trainer's domains as text, and a tokenizer and an SFTTrainer for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from tiny_trainer import SETTINGS, SHARES, TRAIN, VALIDATION, RecordingTrainer, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from drpruning.integrations.transformers import DomainSchedulingCallback
from drpruning.integrations.trl import scheduled_trainer
from drpruning.scheduling import NaiveDRO, Policy


def texts(domains: Mapping[str, list[dict[str, list[int]]]]) -> dict[str, Dataset]:
    """Every token as a word."""
    return {
        name: Dataset.from_list(
            [{"text": " ".join(map(str, row["input_ids"]))} for row in examples]
        )
        for name, examples in domains.items()
    }


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The words 0 to 62, each its own number, and an end of text."""
    words = {str(number): number for number in range(63)} | {"</s>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def sft_arguments(folder: Path, **changes: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(folder), **(SETTINGS | {"bf16": False} | changes))


class RecordingSFTTrainer(RecordingTrainer, SFTTrainer):
    """Keeps (domain, number) of every example, as the tiny Trainer does."""


def prepared_sft(
    folder: Path,
    *,
    policy: Policy | None = None,
    train: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    trainer_class: Any = RecordingSFTTrainer,
    dropout: float = 0.2,
    **changes: Any,
) -> tuple[Any, DomainSchedulingCallback]:
    args = sft_arguments(folder, **changes)
    return scheduled_trainer(
        trainer_class,
        policy or NaiveDRO(SHARES, args.max_steps, rho=0.1, floor=0.05),
        tiny_model(dropout),
        args,
        train_dataset=texts(TRAIN) if train is None else train,
        eval_dataset=texts(VALIDATION) if validation is None else validation,
        processing_class=tiny_tokenizer(),
    )
