"""Task files of lm-eval over a few documents beside them, in the words of the tiny models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TEXTS = ["one two three four five", "red green blue", "cat dog cow hen fox owl bee ant cat dog"]
QUESTIONS = [
    {"question": f"one {word} two", "choices": ["three four", "red", "cat"], "label": label}
    for label, word in enumerate(["five", "six", "seven"])
]


def write_tasks(folder: Path, **more: Mapping[str, Any]) -> Path:
    """A task of rolling log-likelihoods, one of multiple choice, and others."""
    folder.mkdir(exist_ok=True)
    for name, rows in (("texts", [{"text": text} for text in TEXTS]), ("questions", QUESTIONS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)

    def local(name: str) -> dict[str, Any]:
        file = str(folder / f"{name}.jsonl")
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}}

    choice = local("questions") | {
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    }
    tasks: dict[str, dict[str, Any]] = {
        "local_texts": local("texts")
        | {
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "local_choice": choice,
        "local_fixed": choice | {"num_fewshot": 0},
        "local_absent": choice | {"dataset_path": "nobody/has-this", "dataset_kwargs": {}},
        "local_continued": local("questions")
        | {
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "red",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
        },
        **{name: choice | dict(settings) for name, settings in more.items()},
    }
    for name, settings in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **settings}))
    return folder
