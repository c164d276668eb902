"""Model folders as their files describe them: what cannot be read or is too large is refused."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_model
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.common.errors import BadInput
from drpruning.models.files import check_files, read_config
from drpruning.models.inspect import (
    check_weights,
    shape_of,
    source_config,
    source_shape,
)
from drpruning.models.tokenizer import check_tokenizer, vocabulary
from drpruning.pruning import ModelShape, PruningPlan, propose_shapes
from drpruning.pruning.shape_search import HEAD_CHOICES, MOST_TRIED, _Search
from drpruning.pruning.shapes import LARGEST
from drpruning.recipe import parse_recipe

FIELD = "model.source"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer.json of two words."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    save_model(LlamaForCausalLM(config), str(tmp_path / "model.safetensors"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    return tmp_path


def look_at(folder: Path) -> ModelShape:
    """All that a plan reads of a model."""
    shape = shape_of(read_config(str(folder), FIELD), f"{FIELD}: {folder}")
    check_tokenizer(str(folder), shape, FIELD)
    check_weights(str(folder), shape, FIELD)
    return shape


def test_a_folder_that_is_complete(folder: Path) -> None:
    assert look_at(folder).num_layers == 2
    assert vocabulary(str(folder), FIELD) == {"a": 0, "b": 1}
    assert check_files(str(folder), FIELD)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named_as_such(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path == folder / name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        return method

    for method in ("open", "read_bytes"):
        monkeypatch.setattr(Path, method, refusing(getattr(Path, method)))
    with pytest.raises(BadInput) as refused:
        look_at(folder)
    assert str(refused.value) == (
        f"{FIELD}: {folder / name} cannot be read: permission denied; change its permissions"
    )


def test_a_folder_that_may_not_be_searched_is_named_as_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Path, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(BadInput, match=r"config\.json cannot be read: permission denied"):
        read_config(str(folder), FIELD)


def grow(file: Path, size: int) -> None:
    """Make a file as long as this; the hole takes no room on the disk."""
    with file.open("r+b") as stream:
        stream.truncate(size)


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [
        ("config.json", 100_000_000, "10,000,000"),
        ("tokenizer.json", 10**12, "1,000,000,000"),
        ("model.safetensors.index.json", 200_000_000, "100,000,000"),
    ],
)
def test_a_file_that_is_far_too_large_is_not_read(
    folder: Path, name: str, size: int, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).touch()
    grow(folder / name, size)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: path.name != name and read(path))
    with pytest.raises(BadInput, match=rf"{name} has {size:,} bytes, more than the {most}"):
        look_at(folder)


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [
        ("num_hidden_layers", 10_000_000, "10,000"),
        ("hidden_size", 2**31, "1,048,576"),
        ("intermediate_size", 10**30, "4,194,304"),
        ("num_attention_heads", 10**6, "4,096"),
        ("num_key_value_heads", 10**6, "4,096"),
        ("head_dim", 2**31, "65,536"),
        ("vocab_size", 10**12, "16,777,216"),
    ],
)
def test_sizes_far_beyond_any_model_are_refused(field: str, value: int, most: str) -> None:
    with pytest.raises(BadInput, match=rf"{field} must be at most {most}, not {value}"):
        ModelShape.of(LLAMA | {field: value})


@pytest.mark.parametrize("name", LARGEST)
def test_shapes_in_plans_are_bounded_too(name: str) -> None:
    shape = ModelShape.of(LLAMA).to_dict()
    with pytest.raises(BadInput, match=f"{name} must be at most {LARGEST[name]:,}, not"):
        PruningPlan.from_json(json.dumps({"version": 1, "source": shape | {name: 10**9}}))


def test_a_search_tries_no_more_shapes_for_the_largest_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = 0

    def counted(search: _Search, total: int) -> float:
        nonlocal tried
        tried += 1
        return cost(search, total)

    cost = _Search._budget_cost
    monkeypatch.setattr(_Search, "_budget_cost", counted)
    largest = {
        "num_hidden_layers": LARGEST["num_layers"],
        "hidden_size": LARGEST["hidden_size"],
        "intermediate_size": LARGEST["intermediate_size"],
        "vocab_size": LARGEST["vocab_size"],
        "num_attention_heads": 128,
    }
    source = ModelShape.of(LLAMA | largest)
    proposals = propose_shapes(source, source.num_parameters() // 3)
    assert abs(proposals[0].deviation) < 0.02
    widths, heads, layers, feed_forward = MOST_TRIED + 128, HEAD_CHOICES, MOST_TRIED, 4
    assert tried <= widths * heads * layers * feed_forward


NEOX = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "hidden_dropout": 0.1,
}


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ({"hidden_size": 32, "num_heads": 2}, True),
        ({"params": 60_000}, True),
        ({"hidden_size": 64, "num_layers": 1}, False),
        ({"num_layers": 1}, False),
    ],
)
def test_a_plan_refuses_dropout_that_does_not_go_with_masks(
    target: dict[str, int], refused: bool
) -> None:
    recipe = parse_recipe(
        {
            "model": {"shape": NEOX, "target": target},
            "data": {"sequence_length": 8, "domains": {"a": {"source": "a.txt", "share": 1.0}}},
            "prune": {"steps": 2, "global_batch": 4, "evaluate_every": 1},
            "output": "out",
        }
    )
    if refused:
        with pytest.raises(BadInput, match=r"^model\.shape: the config's hidden_dropout 0\.1 does"):
            source_shape(recipe, source_config(recipe))
    else:
        assert source_shape(recipe, source_config(recipe)).hidden_size == 64
