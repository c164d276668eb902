"""What is refused and what is warned of from the files of a tokenizer alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import BadInput
from drpruning.models import tokenizer as module
from drpruning.models.tokenizer import (
    check_tokenizer,
    special_tokens,
    tokenizer_warnings,
    vocabulary,
)
from drpruning.pruning import ModelShape

FIELD = "model.tokenizer"
Made = Callable[..., str]


def shape(entries: int) -> ModelShape:
    return ModelShape(
        model_type="llama", num_layers=1, hidden_size=8, intermediate_size=8, num_heads=1,
        num_kv_heads=1, head_dim=8, vocab_size=entries,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a folder of JSON files: keyword `tokenizer_config` is tokenizer_config.json."""

    def make(tokens: int | None = 8, *, name: str = "model", first: int = 0, **files: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        if tokens is not None:
            vocab = {f"t{index + first}": index for index in range(tokens)}
            files["tokenizer"] = {"model": {"vocab": vocab}}
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("files", "entries", "found"),
    [
        ({"added_tokens": {"x": 8, "y": 9}}, 10, None),
        ({"added_tokens": {"x": 8, "y": 9}}, 9, "added_tokens.json adds 'y' with the id 9"),
        ({"added_tokens": {"t3": 40}}, 8, None),
        ({"added_tokens": {"x": 3}}, 8, "added_tokens.json adds 'x' with the id 8"),
        ({}, 8, None),
        ({}, 7, "its largest id is 7, the model's vocabulary has 7 entries"),
        ({"tokenizer_config": {"added_tokens_decoder": {"3": {"content": "t3"}}}}, 8, None),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"12": {"content": "x"}}}},
            12,
            "tokenizer_config.json adds 'x' with the id 12",
        ),
        ({"tokenizer_config": {"pad_token": "t1", "eos_token": {"content": "t2"}}}, 8, None),
        ({"tokenizer_config": {"pad_token": "<p>"}}, 9, None),
        ({"tokenizer_config": {"pad_token": "<p>"}}, 8, "adds '<p>' with the id 8"),
        (
            {"tokenizer_config": {"pad_token": "<p>", "bos_token": "<b>"}},
            9,
            "adds '<p>' with the id 9",
        ),
        ({"special_tokens_map": {"pad_token": "<p>"}}, 8, "special_tokens_map.json adds '<p>'"),
        (
            {
                "special_tokens_map": {"pad_token": "<p>"},
                "tokenizer_config": {"added_tokens_decoder": {}},
            },
            8,
            None,
        ),
    ],
)
def test_tokens_beyond_the_vocabulary(
    made: Made, files: dict[str, Any], entries: int, found: str | None
) -> None:
    name = made(**files)
    if found is None:
        check_tokenizer(name, shape(entries), FIELD)
    else:
        with pytest.raises(BadInput, match=rf"^{FIELD}: .* does not fit the model: ") as refused:
            check_tokenizer(name, shape(entries), FIELD)
        assert found in str(refused.value)


def test_what_plan_says_of_added_tokens_is_what_transformers_does(
    model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(model_folder, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text()) | {"pad_token": "<pad>", "bos_token": "<begin>"}
    file.write_text(json.dumps(content))
    largest = max(AutoTokenizer.from_pretrained(folder).get_vocab().values())
    check_tokenizer(str(folder), shape(largest + 1), FIELD)
    with pytest.raises(BadInput, match=f"with the id {largest}, the model's vocabulary"):
        check_tokenizer(str(folder), shape(largest), FIELD)


def test_a_vocabulary_without_tokenizer_json(made: Made) -> None:
    name = made(None, vocab={"a": 0, "b": 1}, added_tokens={"c": 2})
    assert vocabulary(name, FIELD) == {"a": 0, "b": 1}
    check_tokenizer(name, shape(3), FIELD)
    with pytest.raises(BadInput, match=r"added_tokens\.json adds 'c' with the id 2"):
        check_tokenizer(name, shape(2), FIELD)


SENTENCEPIECE = b"\n\x0b\n\x05<unk>\x18\x02\n\x0a\n\x03<s>\x18\x03"
TIKTOKEN = b"IQ== 0\nIg== 1\n"


@pytest.mark.parametrize(
    ("content", "installed", "remedy"),
    [
        (SENTENCEPIECE, {"transformers"}, "`pip install sentencepiece protobuf`"),
        (SENTENCEPIECE, {"transformers", "sentencepiece"}, "`pip install protobuf`"),
        (SENTENCEPIECE, {"transformers", "sentencepiece", "google.protobuf"}, None),
        (SENTENCEPIECE, set(), None),
        (TIKTOKEN, {"transformers"}, "`pip install tiktoken`"),
        (TIKTOKEN, {"transformers", "tiktoken"}, None),
    ],
)
def test_packages_that_a_tokenizer_model_alone_needs(
    made: Made,
    content: bytes,
    installed: set[str],
    remedy: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_spec(name: str) -> object:
        if name == "google.protobuf" and name not in installed:
            raise ModuleNotFoundError(name)  # as where there is no `google` at all
        return name if name in installed else None

    monkeypatch.setattr(module, "find_spec", find_spec)
    name = made(None, tokenizer_config={"eos_token": "</s>"})
    (Path(name) / "tokenizer.model").write_bytes(content)
    if remedy is None:
        check_tokenizer(name, shape(8), FIELD)
    else:
        with pytest.raises(BadInput, match=r"tokenizer\.model alone") as refused:
            check_tokenizer(name, shape(8), FIELD)
        assert remedy in str(refused.value)


@pytest.mark.parametrize(
    ("family", "tokenizer_class", "warned"),
    [
        ("llama", "LlamaTokenizer", False),
        ("llama", "LlamaTokenizerFast", False),
        ("llama", None, True),
        ("gemma2", "GemmaTokenizer", False),
        ("mistral", "LlamaTokenizer", True),
        ("phi3", "LlamaTokenizerFast", True),
    ],
)
def test_a_tokenizer_model_alone_that_is_converted_to_another_tokenizer(
    made: Made, family: str, tokenizer_class: str | None, *, warned: bool
) -> None:
    name = made(None, tokenizer_config={"tokenizer_class": tokenizer_class})
    (Path(name) / "tokenizer.model").write_bytes(SENTENCEPIECE)
    lines = tokenizer_warnings(name, name, replace(shape(8), model_type=family), {}, FIELD)
    assert ["leaves out the space before a text" in line for line in lines] == [True] * warned


@pytest.mark.parametrize("name", ["a--b", "a..b", "x.git", "org/name"])
def test_a_name_that_is_not_in_the_cache_is_not_looked_at(name: str) -> None:
    assert vocabulary(name, FIELD) is None
    check_tokenizer(name, shape(8), FIELD)
    assert tokenizer_warnings(name, name, shape(8), {"eos_token_id": 3}, FIELD) == []


def test_a_tokenizer_json_beside_it_needs_none(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: name == "transformers" or None)
    name = made()
    (Path(name) / "tokenizer.model").write_bytes(SENTENCEPIECE)
    check_tokenizer(name, shape(8), FIELD)
    assert tokenizer_warnings(name, name, shape(8), {}, FIELD) == []


@pytest.mark.parametrize(
    ("tokens", "entries", "warned"),
    [
        (32_011, 32_064, False),  # Phi-3
        (151_665, 152_064, False),  # Qwen2.5
        (50_277, 50_432, False),  # GPT-NeoX
        (50_295, 51_200, False),  # Phi-2
        (100_015, 102_400, False),  # DeepSeek LLM
        (26, 32, False),
        (32_000, 128_256, True),
        (50_257, 100_352, True),
        (151_665, 256_000, True),
    ],
)
def test_a_vocabulary_far_smaller_than_the_models(
    made: Made, tokens: int, entries: int, *, warned: bool
) -> None:
    name = made(tokens)
    lines = tokenizer_warnings(name, name, shape(entries), {}, FIELD)
    assert [f"has {tokens:,} tokens" in line for line in lines] == [True] * warned


def test_the_tokenizer_of_another_model_whose_ids_fit(made: Made) -> None:
    source, other = made(name="source"), made(name="other", first=3)
    larger, smaller = made(9, name="larger"), made(7, name="smaller")
    [line] = tokenizer_warnings(other, source, shape(8), {}, FIELD)
    assert line.startswith(f"{FIELD}: {other} has no token or another id for 8 of the 8 tokens of")
    assert tokenizer_warnings(larger, source, shape(9), {}, FIELD) == []
    [line] = tokenizer_warnings(smaller, source, shape(8), {}, FIELD)
    assert "for 1 of the 8 tokens" in line


@pytest.mark.parametrize(
    ("tokens", "config", "generation", "named"),
    [
        ({"eos_token": "t2"}, {"eos_token_id": 2}, {}, []),
        ({"eos_token": "t2"}, {"eos_token_id": [1, 2]}, {}, []),
        ({"eos_token": "t2"}, {"eos_token_id": 1}, {"eos_token_id": [1, 2]}, []),
        ({"eos_token": "t2"}, {"eos_token_id": None}, {}, []),
        ({"eos_token": "t2"}, {}, {"eos_token_id": 1}, []),
        ({"eos_token": "t2"}, {"pad_token_id": -1, "bos_token_id": 5}, {}, []),
        ({"pad_token": "t4"}, {"pad_token_id": -1}, {}, []),
        ({"eos_token": "t2"}, {"eos_token_id": 3}, {}, ["eos_token is 't2' with the id 2"]),
        ({"eos_token": "t2"}, {"eos_token_id": [3, 1]}, {}, ["config.json says 1 or 3"]),
        (
            {"bos_token": {"content": "t1"}, "pad_token": "t4"},
            {"bos_token_id": 2, "pad_token_id": 3},
            {},
            ["bos_token is 't1'", "pad_token is 't4'"],
        ),
    ],
)
def test_special_tokens_of_another_model(
    made: Made,
    tokens: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    named: list[str],
) -> None:
    name = made(tokenizer_config=tokens, generation_config=generation)
    lines = tokenizer_warnings(name, name, shape(8), config, FIELD)
    assert len(lines) == bool(named)
    assert all(words in lines[0] for words in named)


def test_the_older_file_of_special_tokens_counts_as_transformers_reads_it(
    model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "red"}')
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    content.pop("added_tokens_decoder", None)
    for decoder in ({}, {"added_tokens_decoder": {"0": {"content": "</s>"}}}):
        file.write_text(json.dumps(content | decoder))
        loaded = AutoTokenizer.from_pretrained(folder)
        assert special_tokens(str(folder), FIELD)["eos_token"] == loaded.eos_token


def test_a_damaged_generation_config_is_not_the_tokenizers_fault(made: Made) -> None:
    name = made(tokenizer_config={"eos_token": "t2"}, generation_config=[1])
    [line] = tokenizer_warnings(name, name, shape(8), {"eos_token_id": 3}, FIELD)
    assert "eos_token" in line
