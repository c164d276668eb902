"""Domains that are only evaluated: validation blocks and no others, the same as if trained on."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, PreparedData, check_sources, prepare
from drpruning.data.sources import HubDataset, resolve
from drpruning.pipeline.domain_plans import DomainPlan, plan_domains, repetition_warnings
from drpruning.pipeline.plan_warnings import floor_warning
from drpruning.pipeline.prepared import domain_sources
from drpruning.recipe import parse_recipe

WORDS = [f"w{number}" for number in range(500)]
LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    core = Tokenizer(models.WordLevel({"</s>": 0, **{w: i + 1 for i, w in enumerate(WORDS)}}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(folder)
    return folder


def write(file: Path, seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write(tmp_path / "web.jsonl", 1, 300)
    write(tmp_path / "wiki.jsonl", 2, 400)
    write(tmp_path / "wiki-val.jsonl", 3, 60)
    return tmp_path


def sources(folder: Path, share: float, **wiki: Any) -> list[DomainSource]:
    domains = {
        "web": {"source": "web.jsonl", "share": 0.5},
        "wiki": {"source": "wiki.jsonl", "share": share, **wiki},
    }
    recipe = {
        "model": {"source": "some/model"},
        "data": {"root": str(folder), "normalise_shares": True, "domains": domains},
        "pretrain": {"steps": 1},
        "output": "out",
    }
    return domain_sources(parse_recipe(recipe))


def run(
    tokenizer: Path, folder: Path, domains: list[DomainSource], blocks: int = 4
) -> PreparedData:
    return prepare(
        domains,
        tokenizer=tokenizer,
        vocab_size=None,
        sequence_length=LENGTH,
        validation_blocks=blocks,
        folder=folder,
        workers=1,
    )


@pytest.mark.parametrize("wiki", [{}, {"validation": "wiki-val.jsonl"}])
def test_validation_blocks_are_those_of_a_domain_that_is_trained_on(
    tokenizer: Path, texts: Path, wiki: dict[str, Any]
) -> None:
    trained = run(tokenizer, texts / "trained", sources(texts, 0.5, **wiki))
    evaluated = run(tokenizer, texts / "evaluated", sources(texts, 0, **wiki))
    one, other = trained.domains["wiki"], evaluated.domains["wiki"]
    assert len(one.train) > 0 == len(other.train) == other.train_tokens
    assert np.array_equal(one.validation[:], other.validation[:])
    assert np.array_equal(trained.domains["web"].train[:], evaluated.domains["web"].train[:])
    counts = other.counts
    assert counts.tokens == counts.dropped_tokens + counts.validation_blocks * LENGTH
    assert (counts.duplicates, counts.in_other_validation) == (0, 0)


def test_nothing_but_the_validation_text_is_read(tokenizer: Path, texts: Path) -> None:
    (texts / "wiki.jsonl").unlink()
    data = run(tokenizer, texts / "data", sources(texts, 0, validation="wiki-val.jsonl"))
    assert len(data.domains["wiki"].validation) == 4
    assert data.domains["wiki"].documents < 60  # as many as fill the blocks


def test_a_small_text_is_enough(tokenizer: Path, texts: Path) -> None:
    """All of it is for validation, not a tenth; one block will do."""
    write(texts / "wiki.jsonl", 2, 3)
    data = run(tokenizer, texts / "data", sources(texts, 0))
    assert 1 <= len(data.domains["wiki"].validation) <= 4
    (texts / "wiki.jsonl").write_text(json.dumps({"text": "w1 w2"}) + "\n")
    with pytest.raises(BadInput, match=r"domains\.wiki: its text does not fill one validation"):
        run(tokenizer, texts / "other", sources(texts, 0))


def test_its_text_is_trained_on_in_no_domain(tokenizer: Path, texts: Path) -> None:
    held = (texts / "wiki-val.jsonl").read_text().splitlines(keepends=True)
    with (texts / "web.jsonl").open("a") as stream:
        stream.writelines(held[:2])
    data = run(tokenizer, texts / "data", sources(texts, 0, validation="wiki-val.jsonl"))
    assert data.domains["web"].counts.in_other_validation == 2


def test_one_text_may_validate_a_trained_domain_and_be_a_domain_that_is_not(texts: Path) -> None:
    web, wiki = sources(texts, 0, validation="wiki-val.jsonl")
    held = str(texts / "wiki-val.jsonl")
    check_sources([replace(web, validation=held), wiki])
    with pytest.raises(BadInput, match=r"is the training text of data\.domains\.wiki"):
        check_sources([replace(web, validation=held), replace(wiki, trained=True)])


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ((0.5, {}), (0, {}), "whether domain wiki is trained on"),
        ((0, {}), (0.5, {}), "whether domain wiki is trained on"),
        ((0, {}), (0, {"validation": "wiki.jsonl"}), "the order of domain wiki"),
    ],
)
def test_data_prepared_for_another_use_are_refused(
    tokenizer: Path, texts: Path, first: Any, second: Any, named: str
) -> None:
    run(tokenizer, texts / "data", sources(texts, first[0], **first[1]))
    with pytest.raises(BadInput, match=named):
        run(tokenizer, texts / "data", sources(texts, second[0], **second[1]))


def test_more_blocks_are_read_after_a_preparation_that_failed(tokenizer: Path, texts: Path) -> None:
    """Reading stopped where there were enough for the first settings."""
    wiki = {"validation": "wiki-val.jsonl"}
    domains = sources(texts, 0, **wiki)[::-1]
    (texts / "web.jsonl").write_text(json.dumps({"text": "w1"}) + "\n")
    with pytest.raises(BadInput, match=r"domains\.web"):
        run(tokenizer, texts / "data", domains, blocks=2)
    write(texts / "web.jsonl", 1, 300)
    again = run(tokenizer, texts / "data", sources(texts, 0, **wiki), blocks=20)
    fresh = run(tokenizer, texts / "fresh", sources(texts, 0, **wiki), blocks=20)
    assert len(again.domains["wiki"].validation) == 20
    assert np.array_equal(again.domains["wiki"].validation[:], fresh.domains["wiki"].validation[:])


def test_messages_name_the_field_that_the_text_is_from(texts: Path, tokenizer: Path) -> None:
    for wiki, field in (({}, "source"), ({"validation": "gone.jsonl"}, "validation")):
        domains = sources(texts, 0, **(wiki or {"source": "gone.jsonl"}))
        with pytest.raises(BadInput, match=rf"domains\.wiki\.{field}: .*gone\.jsonl does not"):
            run(tokenizer, texts / "data", domains)
    twice = sources(texts, 0, validation="web.jsonl")
    with pytest.raises(
        BadInput, match=r"domains\.wiki\.validation: .* is used by data\.domains\.web"
    ):
        run(tokenizer, texts / "data", twice)


def test_that_training_ends_early_is_said_whatever_its_rule_is() -> None:
    """Its rule for exhausted data is `repeat` unless somebody writes another; it has no effect."""
    trained = DomainPlan(0.5, 500, 300, True, ("prune", 3), "redistribute")
    held = DomainPlan(0.0, 0, 0, True, None, "repeat")
    *_, line = repetition_warnings({"web": trained, "code": trained, "wiki": held})
    assert "600 tokens in all, 1,000 planned, and no domain repeats" in line


def test_a_plan_steers_and_counts_the_trained_domains_alone(texts: Path) -> None:
    recipe = parse_recipe(
        {
            "model": {"source": "some/model"},
            "data": {
                "root": str(texts),
                "domains": {
                    "web": {"source": "web.jsonl", "share": 1.0},
                    "wiki": {"source": "wiki.jsonl", "share": 0.0},
                },
            },
            "scheduling": {"floor": 1.0},
            "pretrain": {"steps": 1},
            "output": "out",
        }
    )
    assert floor_warning(recipe) == [], "one domain has all of the data, whatever its floor"
    plans = plan_domains(recipe, domain_sources(recipe), None)
    assert (plans["wiki"].planned, plans["wiki"].available, plans["wiki"].exact) == (0, 0, True)
    assert plans["web"].available


def test_a_dataset_for_validation_has_one_split_whatever_is_trained_on(texts: Path) -> None:
    wiki = {"validation": "org/texts", "split": "train[:90%]"}
    trained, held = (sources(texts, share, **wiki)[1] for share in (0.5, 0))
    asked = resolve(trained, validation=True)
    assert asked == resolve(held) == HubDataset("org/texts", None, "validation")
