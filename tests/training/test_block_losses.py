"""Losses block by block are those that Transformers gives, and those that an evaluation records."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from drpruning.data import PreparedData, TokenBlocks, TokenBytes
from drpruning.pipeline.measurement import read_token_bytes
from drpruning.pipeline.run import Run
from drpruning.runs.records import load_evaluation
from drpruning.training.perplexity import byte_fields
from drpruning.training.validation import block_losses, domain_losses
from helpers import tokenizer_kinds as kinds
from helpers.small_runs import run


def blocks(file: Path, count: int, seed: int) -> TokenBlocks:
    ids = np.random.default_rng(seed).integers(32, size=(count, 16), dtype=np.uint16)
    file.write_bytes(ids.tobytes())
    return TokenBlocks(file, 16, "uint16")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@torch.no_grad()
def test_each_block_has_the_loss_that_transformers_gives_it(
    model_folder: Path, tmp_path: Path, batch_size: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    validation = {name: blocks(tmp_path / name, n, n) for name, n in (("a", 7), ("b", 4))}
    found = block_losses(model, validation, Accelerator(cpu=True), batch_size=batch_size)
    for name, data in validation.items():
        for index in range(len(data)):
            block = torch.from_numpy(data[slice(index, index + 1)])
            own = model(input_ids=block, labels=block).loss.item()
            assert found[name][index] == pytest.approx(own, abs=1e-5)
    means = domain_losses(model, validation, Accelerator(cpu=True), batch_size=batch_size)
    assert means == {name: float(np.mean(losses)) for name, losses in found.items()}


def byte_level(recipe_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The recipe with a model whose tokens say how many bytes they stand for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "bytes")
    kinds.save(kinds.byte_level_bpe(), tmp_path / "bytes", bos_token="<s>", eos_token="</s>")
    recipe_values["model"] = {"source": str(tmp_path / "bytes")}
    del recipe_values["prune"]
    return recipe_values


def test_an_evaluation_has_the_bits_per_byte_of_its_text(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    folder = run(byte_level(recipe_values, tmp_path), "prepare", "evaluate")
    found = load_evaluation(folder / "evaluation/source.json")
    assert found is not None
    opened = Run.open(folder)
    data = PreparedData.open(folder / "data")
    token_bytes = read_token_bytes(opened.recipe, data)
    assert isinstance(token_bytes, TokenBytes)
    for name, domain in data.domains.items():
        ids = domain.validation[slice(None)][:, 1:].ravel()
        text = b"".join(token_bytes.pieces[index] or b"" for index in ids)
        words = set(text.decode().split())
        assert len(words) > 3, "words of the domain run together where documents meet"
        assert found.bytes[name] == len(text)
        bits = found.loss[name] * ids.size / math.log(2)
        assert found.bits_per_byte[name] == pytest.approx(bits / len(text))
        low, high = found.bits_per_byte_interval[name]
        assert low < found.bits_per_byte[name] < high
        assert found.interval[name][0] < found.loss[name] < found.interval[name][1]
        assert np.mean(found.block_loss[name]) == pytest.approx(found.loss[name])
    assert found.average_interval is not None
    assert found.note == ""


def test_a_domain_with_unknown_text_has_no_bits_per_byte(tmp_path: Path) -> None:
    pieces = [b"a"] * 31 + [None]
    lengths = np.array([1] * 31 + [-1])
    table = TokenBytes(pieces, lengths, np.zeros(32, dtype=np.bool_))
    (tmp_path / "plain").write_bytes(np.zeros((2, 16), np.uint16).tobytes())
    known = TokenBlocks(tmp_path / "plain", 16, "uint16")
    unknown = blocks(tmp_path / "all", 9, 1)
    losses = {"known": np.full(2, math.log(2)), "lost": np.full(9, 1.0)}
    found = byte_fields(losses, {"known": known, "lost": unknown}, table)
    assert found["bytes"] == {"known": 30}
    assert found["bits_per_byte"] == pytest.approx({"known": 1.0})
    assert found["note"].startswith("No bits per byte on lost: its text is not all in the vocab")
