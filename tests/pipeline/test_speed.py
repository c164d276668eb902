"""`drprune evaluate --speed` compares models with the source on this machine."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.evaluation import speed
from drpruning.evaluation.speed import Samples, SpeedSettings, batch_speeds, generate
from drpruning.report.speed_table import speed_table
from drpruning.runs.records import load_run
from drpruning.runs.speed import Spread, load_speed
from helpers.damaged_places import Place
from helpers.small_runs import drprune, drprune_in


@pytest.fixture(scope="module")
def prepared_place(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, model_folder: Path
) -> Path:
    """A place with the run `out`, of which only the data are prepared, and a model."""
    made = Place(tmp_path_factory.mktemp("prepared") / "place", text_folder, model_folder)
    return drprune_in(made.folder, "prepare")


@pytest.fixture
def home(prepared_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and the current folder."""
    monkeypatch.chdir(shutil.copytree(prepared_place, tmp_path / "home"))
    return tmp_path / "home"


def tiny(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    values = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**values | changes)).eval()


def test_what_is_written_is_what_transformers_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = tiny(), SpeedSettings.within(20, 32, "cpu")
    prompts = settings.prompts(3)
    assert prompts.shape == (3, 15)
    passed: list[list[list[int]]] = []
    plain = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda **inputs: passed.append(inputs["input_ids"].tolist()) or plain(**inputs),
    )
    assert all(seconds > 0 for seconds in generate(model, prompts, 5))
    monkeypatch.undo()
    expected = model.generate(prompts, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert passed[0] == prompts.tolist(), "the prompt in one pass"
    written = torch.tensor([[token for (token,) in step] for step in passed[1:]]).T
    assert written.tolist() == expected[:, 15:].tolist(), "then one token a pass, with a cache"


@pytest.mark.parametrize(
    ("positions", "prompt", "new"), [(None, 512, 128), (4096, 512, 128), (64, 48, 16), (2, 1, 1)]
)
def test_prompt_and_answer_fit_into_the_positions(
    positions: int | None, prompt: int, new: int
) -> None:
    settings = SpeedSettings.within(positions, 32, "cpu")
    assert (settings.prompt_tokens, settings.new_tokens) == (prompt, new)


def test_ratios_are_formed_turn_by_turn() -> None:
    """A machine that slows down by half slows both, and leaves their ratio alone."""
    own = {1: Samples(prefill=[200, 100, 200], decode=[20, 10, 20], memory=50.0)}
    source = {1: Samples(prefill=[100, 50, 100], decode=[10, 5, 10], memory=100.0)}
    (found,) = batch_speeds(own, source)
    assert found.prefill_times_source == Spread(median=2, low=2, high=2)
    assert found.prefill == Spread(median=200, low=150, high=200)
    assert found.memory_times_source == 0.5
    assert math.isnan(
        batch_speeds({1: Samples(memory=0.0)}, {1: Samples(memory=0.0)})[0].memory_times_source
    )


def test_models_take_turns_and_the_first_time_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [tiny(), tiny()]
    turns: list[tuple[int, int]] = []

    def noted(model: Any, prompts: torch.Tensor, _new: int) -> tuple[float, float]:
        turns.append((models.index(model), len(prompts)))
        return (9.0, 9.0) if len(turns) <= 2 else (0.5, 0.25)

    monkeypatch.setattr(speed, "generate", noted)
    settings = SpeedSettings(
        prompt_tokens=6, new_tokens=4, vocab_size=32, device="cpu", batches=(1, 2), repeats=2
    )
    done: list[None] = []
    found = speed.measure_in_turn(models, settings, lambda: done.append(None))
    assert turns == [(0, 1), (1, 1)] * 3 + [(0, 2), (1, 2)] * 3
    assert len(done) == len(turns) == speed.generations(2, settings)
    assert found[1][0].prefill == [12.0, 12.0]
    assert found[2][1].decode == [32.0, 32.0]


def test_a_batch_that_the_memory_does_not_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_model: Any, prompts: torch.Tensor, _new: int) -> tuple[float, float]:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError
        return 1.0, 1.0

    monkeypatch.setattr(speed, "generate", full)
    settings = SpeedSettings.within(8, 32, "cpu")
    assert speed.measure_in_turn([tiny()], settings, lambda: None).keys() == {1}


def test_the_command_measures_and_records(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("model", "m")
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(
        speed, "resident_memory",
        lambda path, _name, settings: dict.fromkeys(settings.batches, 4e6 if path == "m" else 2e9),
    )  # fmt: skip
    arguments = ("evaluate", "out", "m", "--data", "out", "--speed", "--json", "all.json")
    said = drprune(*arguments)
    assert "decode, tokens/s" in said
    assert "2.00 GB" in said
    found = load_speed(home / "out/evaluation/speed.json")
    assert found is not None
    assert [model.label for model in found.models] == ["source", "m"]
    assert (found.prompt_tokens, found.new_tokens, found.dtype) == (48, 16, "float32")
    assert found.versions["torch"] == torch.__version__
    for model in found.models:
        assert [each.batch for each in model.batches] == [1, 8]
        assert all(each.decode.low <= each.decode.median for each in model.batches)
    assert all(each.prefill_times_source.median == 1 for each in found.models[0].batches)
    (written,) = json.loads(Path("all.json").read_text())["speed"]
    assert written["models"][1]["label"] == "m"
    assert list(load_run(home / "out").evaluations) == ["source", "home-m"], (
        "speed.json is no evaluation"
    )
    assert "m: measured before" in drprune(*arguments), "its perplexity"
    assert speed_table(found).row_count == 2 * 7


@pytest.mark.usefixtures("home")
def test_several_ranks_and_memory_that_is_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], -9, "", "loading\nKilled")

    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(subprocess, "run", failing)
    said = drprune("evaluate", "out", "--speed", status=2)
    assert "--speed: the process that measures the memory of" in said
    assert "failed with status -9 (Killed); free some memory" in said
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (launched | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    said = drprune("evaluate", "out", "--speed", status=2)
    assert "--speed: is measured on one device; start it without torchrun" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_resident_memory_grows_by_the_weights(tmp_path: Path) -> None:
    sizes = {}
    for layers in (1, 9):
        model = tiny(hidden_size=512, intermediate_size=2048, num_hidden_layers=layers)
        model.save_pretrained(tmp_path / str(layers))
        settings = SpeedSettings(
            prompt_tokens=8, new_tokens=2, vocab_size=32, device="cpu", repeats=1, batches=(1,)
        )
        found = speed.resident_memory(str(tmp_path / str(layers)), "model", settings)
        sizes[layers] = (found[1], sum(p.nbytes for p in model.parameters()))
    growth = sizes[9][0] - sizes[1][0]
    assert growth == pytest.approx(sizes[9][1] - sizes[1][1], rel=0.1)
    assert sizes[9][1] <= sizes[9][0] <= 1.5 * sizes[9][1]
