"""Tied embeddings beside an output matrix in the files: equal it is fine, other it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from drpruning.common.errors import BadInput
from drpruning.models.inspect import check_weights, shape_of
from drpruning.models.loading import load_model

HEADS = {
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "gemma2": ("lm_head.weight", "model.embed_tokens.weight"),
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
}


@pytest.fixture(params=HEADS)
def tied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A tied model of a family with an output matrix in its file, a copy of the embedding."""
    head, embedding = HEADS[request.param]
    sizes = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if request.param == "gpt_neox":
        del sizes["num_key_value_heads"], sizes["head_dim"]
    config = AutoConfig.for_model(request.param, **sizes, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    change(tmp_path, lambda weights: weights | {head: weights[embedding].clone()})
    return tmp_path, head, embedding


def change(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, {"format": "pt"})


def look_at(folder: Path) -> int:
    """Check a folder as `plan` does; returns the parameters that a plan shows."""
    shape = shape_of(json.loads((folder / "config.json").read_text()), "model.source")
    check_weights(str(folder), shape, "model.source")
    return shape.num_parameters()


def test_a_copy_of_the_embedding_is_counted_once(tied: tuple[Path, str, str]) -> None:
    folder, _, _ = tied
    model = load_model(str(folder))
    assert look_at(folder) == sum(p.numel() for p in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_a_matrix_that_differs_in_one_number_is_refused_on_every_road(
    tied: tuple[Path, str, str], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, head, _ = tied
    monkeypatch.setattr("drpruning.models.weight_headers.CHUNK", 48)

    def edit(weights: dict[str, Any]) -> dict[str, Any]:
        weights[head].view(-1)[place] += 1e-3
        return weights

    change(folder, edit)
    for road in (look_at, lambda folder: load_model(str(folder), "MODEL")):
        with pytest.raises(BadInput, match="Transformers 5 computes with that matrix") as refused:
            road(folder)
        assert f"take {head} out of the weights" in str(refused.value)


def test_both_remedies_are_taken(tied: tuple[Path, str, str]) -> None:
    folder, head, embedding = tied

    def edit(weights: dict[str, Any]) -> dict[str, Any]:
        return weights | {head: torch.zeros_like(weights[head])}

    change(folder, edit)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model = load_model(str(folder))
    assert look_at(folder) == sum(p.numel() for p in model.parameters())
    assert not model.get_output_embeddings().weight.any()

    (folder / "config.json").write_text(json.dumps(config))
    change(folder, lambda weights: {n: w for n, w in weights.items() if n != head})
    model = load_model(str(folder))
    assert look_at(folder) == sum(p.numel() for p in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(
        model.get_output_embeddings().weight, load_file(folder / "model.safetensors")[embedding]
    )


def test_shards_are_compared_across_files(tied: tuple[Path, str, str]) -> None:
    folder, head, embedding = tied
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    other = {head: weights.pop(head)}
    files = dict.fromkeys(weights, "a.safetensors") | {head: "b.safetensors"}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(weights, folder / "a.safetensors", {"format": "pt"})
    save_file(other, folder / "b.safetensors", {"format": "pt"})
    assert look_at(folder) == sum(p.numel() for p in load_model(str(folder)).parameters())
    save_file({head: other[head].half()}, folder / "b.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"set tie_word_embeddings to false in config\.json"):
        look_at(folder)
    save_file({head: other[head][:4]}, folder / "b.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=rf"{head} has shape \[4, 16\]"):
        look_at(folder)
    assert embedding in weights
