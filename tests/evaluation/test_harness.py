"""lm-eval itself on local task files with a tiny model: the same numbers as ours, offline."""

import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator

pytest.importorskip("lm_eval")

from drpruning.common.errors import BadInput
from drpruning.data.document_format import DocumentFormat, markers_of
from drpruning.data.tokenization import load_tokenizer
from drpruning.evaluation.harness import (
    Catalogue,
    LanguageModel,
    TaskFailed,
    beginning_of_text,
    run_task,
)
from drpruning.evaluation.task_groups import TaskSpec
from drpruning.models.loading import load_model
from drpruning.training.validation import domain_losses
from helpers.local_tasks import QUESTIONS, TEXTS, write_tasks


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(["local_texts", "local_choice"], write_tasks(tmp_path / "tasks"), "--tasks")


@pytest.fixture(scope="session")
def with_bos(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a tokenizer that puts <s> before a prompt and </s> behind it."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    pairs = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=pairs
    )
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, wanted: DocumentFormat | None, **settings: Any) -> LanguageModel:
    tokenizer = load_tokenizer(str(folder))
    bos, before = beginning_of_text(markers_of(tokenizer), wanted, str(folder))
    model = load_model(str(folder))
    values = {"precision": "fp32", "batch_size": 2} | settings
    return LanguageModel(model.eval(), tokenizer, bos=bos, before=before, **values)


def own_log_likelihoods(folder: Path, first: str) -> list[float]:
    """Of the texts after a token, as a run's evaluation measures blocks; in nats."""
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder)).eval()
    found = []
    for text in TEXTS:
        ids = [
            tokenizer.convert_tokens_to_ids(first),
            *tokenizer.encode(text, add_special_tokens=False),
        ]
        blocks: Any = {"text": np.array([ids])}
        loss = domain_losses(model, blocks, Accelerator(cpu=True), batch_size=1)["text"]
        found.append(-loss * (len(ids) - 1))
    return found


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        (None, "<s>"),
        (DocumentFormat(), "<s>"),
        (DocumentFormat(bos="always"), "<s>"),
        (DocumentFormat(bos="never"), "</s>"),
    ],
)
def test_perplexity_is_that_of_a_run_where_texts_begin_as_in_training(
    catalogue: Catalogue, with_bos: Path, wanted: DocumentFormat | None, first: str
) -> None:
    found = run_task(loaded(with_bos, wanted), catalogue, TaskSpec("local_texts"))
    own = own_log_likelihoods(with_bos, first)
    assert found.document_scores == pytest.approx(own, rel=1e-6)
    words = sum(len(text.split()) for text in TEXTS)
    assert found.score == pytest.approx(math.exp(-sum(own) / words), rel=1e-6)
    assert (found.metric, found.documents, found.shots) == ("word_perplexity", len(TEXTS), 0)
    assert not found.higher_is_better
    assert not found.is_proportion


def test_perplexity_of_a_model_without_bos_follows_its_end_of_document(
    catalogue: Catalogue, model_folder: Path
) -> None:
    found = run_task(loaded(model_folder, DocumentFormat()), catalogue, TaskSpec("local_texts"))
    assert found.document_scores == pytest.approx(own_log_likelihoods(model_folder, "</s>"))


def test_texts_begin_with_one_bos_and_end_with_no_eos(with_bos: Path) -> None:
    begun, plain = loaded(with_bos, None), loaded(with_bos, DocumentFormat(bos="never"))
    bos = begun.tokenizer.bos_token_id
    assert begun.tok_encode("one two") == [bos, *plain.tok_encode("one two")]
    assert begun.tok_encode("one two", add_special_tokens=False) == plain.tok_encode("one two")
    context, continuation = begun._encode_pair("one two", " three")
    assert (context[0], bos in context[1:], bos in continuation) == (bos, False, False)
    ids, mask = begun.tok_batch_encode(["one", "one two three"])
    assert ids[1].tolist() == begun.tok_encode("one two three")
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert begun.tok_encode("one two three", left_truncate_len=2) == ids[1, -2:].tolist()


def test_multiple_choice_takes_the_likeliest_answer(catalogue: Catalogue, with_bos: Path) -> None:
    model = loaded(with_bos, None)
    found = run_task(model, catalogue, TaskSpec("local_choice", metric="acc"))
    right = []
    for row in QUESTIONS:
        sums = []
        for choice in row["choices"]:
            context = model.tok_encode(row["question"])
            answer = model.tok_encode(choice, add_special_tokens=False)
            with torch.no_grad():
                logits = model.model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
            steps = range(len(context) - 1, len(context) + len(answer) - 1)
            sums.append(sum(float(logits[i, t]) for i, t in zip(steps, answer, strict=True)))
        right.append(float(np.argmax(sums) == row["label"]))
    assert found.document_scores == right
    assert found.score == pytest.approx(np.mean(right))
    assert found.standard_error == pytest.approx(np.std(right, ddof=1) / 3**0.5)
    assert found.is_proportion


def test_a_limit_and_examples(catalogue: Catalogue, with_bos: Path) -> None:
    model = loaded(with_bos, None)
    assert run_task(model, catalogue, TaskSpec("local_choice"), limit=2).documents == 2
    assert run_task(model, catalogue, TaskSpec("local_choice")).metric == "acc_norm"
    assert run_task(model, catalogue, TaskSpec("local_choice", 2)).shots == 2
    assert run_task(model, catalogue, TaskSpec("local_fixed", 0)).shots == 0
    with pytest.raises(TaskFailed, match="write local_fixed without @2"):
        run_task(model, catalogue, TaskSpec("local_fixed", 2))


def test_a_model_continues_texts(catalogue: Catalogue, with_bos: Path) -> None:
    found = run_task(loaded(with_bos, None), catalogue, TaskSpec("local_continued"))
    assert found.metric == "exact_match"
    assert len(found.document_scores) == len(QUESTIONS)


def test_other_words_change_the_prompt_alone(catalogue: Catalogue, with_bos: Path) -> None:
    loaded_task = catalogue.load("local_choice", {"doc_to_text": "so: {{question}}"})
    (task,) = loaded_task["tasks"].values()
    assert task.doc_to_text(QUESTIONS[0]) == f"so: {QUESTIONS[0]['question']}"
    assert not loaded_task["groups"]
    one, other = (
        catalogue.settings_digest("local_choice", changes)
        for changes in ({}, {"doc_to_text": "so: {{question}}"})
    )
    assert one != other
    found = run_task(
        loaded(with_bos, None),
        catalogue,
        TaskSpec("local_choice", 1),
        changes={"doc_to_text": "{{question}} one"},
    )
    assert found.documents == len(QUESTIONS)


def test_data_that_cannot_be_had_are_said_so(catalogue: Catalogue, with_bos: Path) -> None:
    words = "its data is not in the Hugging Face cache and cannot be downloaded"
    with pytest.raises(TaskFailed, match=words):
        run_task(loaded(with_bos, None), catalogue, TaskSpec("local_absent"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"doc_to_text": "{{nothing}}"}, "lm-eval cannot load it: UndefinedError"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "lm-eval cannot load it"),
        ({"unsafe_code": True}, "lm-eval fails: ValueError: Attempted to run task"),
        (
            {"metric_list": [{"metric": "rouge", "hf_evaluate": True, "aggregation": "mean",
                              "higher_is_better": True}]},
            "lm-eval has no rouge here; if it is a metric of the package evaluate",
        ),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_run_says_why(
    tmp_path: Path, with_bos: Path, settings: dict[str, Any], words: str
) -> None:
    folder = write_tasks(tmp_path / "tasks", wrong=settings)
    catalogue = Catalogue(["wrong"], folder, "--tasks")
    with pytest.raises(TaskFailed, match=words):
        run_task(loaded(with_bos, None), catalogue, TaskSpec("wrong"))


def test_a_folder_of_tasks_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--tasks: .* is no folder of tasks"):
        Catalogue(["local_choice"], tmp_path / "gone", "--tasks")
