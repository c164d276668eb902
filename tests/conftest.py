"""A tiny model, its tokenizer and three small domains, made once a session."""

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from helpers.damaged_places import Place
from helpers.fake_run import DOMAINS, FakeRun
from helpers.small_recipe import small_recipe

# Tests run side by side, a process a core: threads of torch would only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# Read when huggingface_hub is imported, here and in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

WORDS = {
    "numbers": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    "colours": ["red", "green", "blue", "white", "black", "grey", "pink"],
    "animals": ["cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant"],
}


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for name, words in WORDS.items():
        lines = [" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(120)]
        text = "\n".join(json.dumps({"text": line}) for line in lines)
        (folder / f"{name}.jsonl").write_text(text + "\n")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = ["</s>", "<unk>", *(word for words in WORDS.values() for word in words)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_values(model_folder: Path, text_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe that runs in seconds: both phases, three domains."""
    return small_recipe(model_folder, text_folder, tmp_path / "run")


@pytest.fixture
def place(
    tmp_path: Path, text_folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A folder with all that a recipe names, and the current one."""
    made = Place(tmp_path / "place", text_folder, model_folder)
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """Make an empty run folder under the test's own directory."""

    def make(
        name: str = "demo", domains: Sequence[str] = DOMAINS, *, policy: str = "drpruning"
    ) -> FakeRun:
        return FakeRun(tmp_path / name, domains, policy=policy)

    return make


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A finished run of both phases; tests read it and leave it as it is."""
    return FakeRun(tmp_path_factory.mktemp("runs") / "demo").everything()
