"""A model with another tokenizer is compared by bits per byte, on the very text of the run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.data import PreparedData, TokenBytes
from drpruning.data.tokenization import load_tokenizer
from drpruning.report import write_report
from drpruning.runs.records import load_evaluation
from drpruning.training.other_tokenizer import OtherTokenizer
from helpers import tokenizer_kinds as kinds
from helpers.small_runs import drprune, run


def made(folder: Path, core: Tokenizer, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=800, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return kinds.save(core, folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A folder with the run `out` of the byte-level model `own`."""
    folder = tmp_path_factory.mktemp("other") / "home"
    made(folder / "own", kinds.byte_level_bpe())
    shares = {"numbers": 0.5, "colours": 0.25, "animals": 0.25}
    domains = {name: {"source": f"{name}.jsonl", "share": s} for name, s in shares.items()}
    recipe = {
        "model": {"source": str(folder / "own")},
        "data": {
            "root": str(text_folder), "sequence_length": 16, "validation_blocks": 6, "workers": 1,
            "domains": domains,
        },
        "pretrain": {"steps": 2, "global_batch": 4},
        "training": {"micro_batch": 4, "precision": "fp32"},
        "output": str(folder / "out"),
    }  # fmt: skip
    run(recipe, "prepare")
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and the current folder."""
    monkeypatch.chdir(shutil.copytree(home, tmp_path / "home"))
    return tmp_path / "home"


def loaded(here: Path, model: Path) -> tuple[OtherTokenizer, PreparedData]:
    data = PreparedData.open(here / "out/data")
    own = TokenBytes.load(str(here / "own"), data)
    return OtherTokenizer.load(str(model), model.name, data, own), data


def test_its_tokens_stand_for_the_text_of_the_blocks(here: Path) -> None:
    other, data = loaded(here, made(here / "m", kinds.byte_fallback_bpe()))
    own = TokenBytes.of(load_tokenizer(str(here / "own")))
    for domain in data.domains.values():
        blocks = domain.validation[slice(None)]
        texts = [b"".join(own.texts(block)) for block in blocks]
        for limit in (None, 9):
            windows = list(other.windows(blocks, limit))
            assert limit is None or max(len(window.ids) for window in windows) <= limit
            for number, text in enumerate(texts):
                mine = [window for window in windows if window.block == number]
                first = sum(other.own.lengths[window.ids[: window.first]].sum() for window in mine)
                more = first + sum(window.size for window in mine) - len(text)
                # The first token of a window may begin with a space that was added.
                assert 0 <= more <= len(mine)


def test_the_same_tokenizer_under_another_name_gives_the_same_bits(here: Path) -> None:
    core = kinds.with_added(kinds.byte_level_bpe(), special=False, tokens=["<never>"])
    made(here / "same", kinds.byte_level_bpe(), seed=1)
    made(here / "renamed", core, seed=1)
    table = drprune("evaluate", "same", "renamed", "--data", "out", "--json", "all.json")
    found = {model["label"]: model for model in json.loads(Path("all.json").read_text())["models"]}
    same, renamed = found["same"], found["renamed"]
    for name, bits in same["bits_per_byte"].items():
        assert renamed["bits_per_byte"][name] == pytest.approx(bits, rel=0.02)
        assert renamed["bytes"][name] == pytest.approx(same["bytes"][name], rel=0.02)
    assert renamed["loss"] == renamed["perplexity"] == {}
    assert renamed["average_perplexity"] is None
    assert "renamed has another tokenizer: of it there are bits per byte alone" in " ".join(
        table.split()
    )
    assert "renamed: measured before" in drprune("evaluate", "renamed", "--data", "out")
    file = next(Path("out/evaluation").glob("*renamed*"))
    assert load_evaluation(file) is not None
    write_report([Path("out")], Path("page.html"))
    assert "renamed" in Path("page.html").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["word_level", "word_piece"])
def test_a_tokenizer_that_leaves_out_white_space_is_refused(kind: str) -> None:
    made(Path("m"), kinds.KINDS[kind]())
    said: Any = drprune("evaluate", "m", "--data", "out", status=2)
    assert "m: its tokenizer is not the one that the run was made with, and bits per byte" in said
    assert "it leaves out characters between tokens (WhitespaceSplit); name another model" in said
    assert not Path("out/evaluation").exists()
