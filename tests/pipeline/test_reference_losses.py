"""Reference losses from models: measured once, kept, compared, refused; and their command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from drpruning.recipe import load_recipe
from helpers.small_runs import (
    DOMAINS,
    FOUND,
    drprune,
    evaluations,
    on_two_ranks,
    only_pretraining,
    run,
    write,
)


def sized_model(folder: Path, model_folder: Path, hidden: int, spread: float) -> str:
    """A model with the tokenizer of another; the larger the spread of its logits, the worse."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    config = LlamaConfig.from_pretrained(model_folder)
    config.hidden_size, config.num_hidden_layers = hidden, 1
    torch.manual_seed(hidden)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, spread / hidden**0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sizes(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models whose losses fall with their size."""
    return [
        sized_model(tmp_path_factory.mktemp(f"size{hidden}"), model_folder, hidden, spread)
        for hidden, spread in ((8, 4.0), (16, 2.0), (24, 0.5))
    ]


@pytest.fixture(scope="session")
def rising(
    sizes: list[str], model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Three models of which the largest is the worst."""
    largest = sized_model(tmp_path_factory.mktemp("worst"), model_folder, 40, 8.0)
    return [*sizes[:2], largest]


@pytest.fixture
def pretraining(recipe_values: dict[str, Any]) -> dict[str, Any]:
    return only_pretraining(recipe_values)


def altered(folder: Path, place: Path, name: str, old: str, new: str) -> str:
    """A copy of a model folder with something else in one of its files."""
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    text = (place / name).read_text()
    assert old in text
    (place / name).write_text(text.replace(old, new))
    return str(place)


# From models.


def test_a_models_losses_are_used_from_the_first_evaluation(
    pretraining: dict[str, Any], model_folder: Path
) -> None:
    pretraining["scheduling"] = {
        "reference_loss": {"from_model": str(model_folder)},
        "forecast": "never",
    }
    folder = run(pretraining, "pretrain")
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert saved["version"] == 1
    assert saved["law"] is None
    assert [model["path"] for model in saved["models"]] == [str(model_folder)]
    first = evaluations(folder, "pretrain")[0]
    assert first["reference_loss"] == saved["reference_loss"]
    assert first["loss"] == saved["reference_loss"], "the source is its own reference here"


def test_both_phases_use_the_same_reference_losses(
    recipe_values: dict[str, Any], model_folder: Path
) -> None:
    recipe_values["scheduling"] = {
        "policy": "sheared",
        "reference_loss": {"from_model": str(model_folder)},
    }
    recipe_values["prune"].update(steps=4)
    recipe_values["pretrain"].update(steps=4)
    folder = run(recipe_values, "prune", "pretrain")
    expected = json.loads((folder / "reference_loss.json").read_text())["reference_loss"]
    for phase in ("prune", "pretrain"):
        assert all(e["reference_loss"] == expected for e in evaluations(folder, phase))


def test_several_sizes_give_the_law_at_the_targets_size(
    pretraining: dict[str, Any], sizes: list[str]
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_models": sizes[::-1]}}
    folder = run(pretraining, "pretrain")
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert [model["path"] for model in saved["models"]] == sizes
    first = evaluations(folder, "pretrain")[0]
    assert saved["parameters"] == first["parameters"]
    for domain in DOMAINS:
        law = saved["law"][domain]
        expected = law["a"] / saved["parameters"] ** law["b"] + law["c"]
        assert first["reference_loss"][domain] == pytest.approx(expected, rel=1e-9)


def not_again(*_: Any, **__: Any) -> None:
    raise AssertionError


def test_run_resumes_without_the_models_it_has_measured(
    pretraining: dict[str, Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = altered(model_folder, tmp_path / "large", "config.json", "{", "{")
    pretraining["scheduling"] = {"reference_loss": {"from_model": large}}
    folder = run(pretraining, "pretrain")
    before = evaluations(folder, "pretrain")[0]
    shutil.rmtree(large)
    shutil.rmtree(folder / "model")
    monkeypatch.setattr("drpruning.pipeline.run.measure_reference_losses", not_again)
    text = drprune("plan", folder / "recipe.yaml")
    assert f"reference losses: from {large} (" in text
    run(pretraining, "pretrain")
    assert evaluations(folder, "pretrain")[0]["reference_loss"] == before["reference_loss"]
    (folder / "reference_loss.json").write_text("{}")
    assert "reference_loss.json is not what" in drprune("run", folder / "recipe.yaml", status=2)


def test_law_that_is_refused_keeps_what_was_measured(
    pretraining: dict[str, Any], rising: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_models": rising}}
    recipe = write(pretraining, tmp_path / "r.yaml")
    text = drprune("run", recipe, status=2)
    assert "loss (nats per token)" in text
    assert "does not fall with the size" in text
    folder = Path(pretraining["output"])
    saved = json.loads((folder / "reference_loss.json").read_text())
    assert [model["path"] for model in saved["models"]] == rising
    assert saved["reference_loss"] is None
    assert not (folder / "metrics.jsonl").exists()

    monkeypatch.setattr("drpruning.training.perplexity.evaluate_perplexity", not_again)
    assert "does not fall" in drprune("run", recipe, status=2)
    assert "does not fall" in drprune("pretrain", recipe, status=2)
    assert "loss (nats per token)" in drprune("reference-loss", folder, status=2)
    one = tmp_path / "one.yaml"
    drprune("reference-loss", folder, "--model", rising[1], "--output", one)
    assert yaml.safe_load(one.read_text())["reference_loss"] == saved["models"][1]["loss"]


def test_command_keeps_what_it_measured_where_there_is_no_law(
    pretraining: dict[str, Any], rising: list[str], tmp_path: Path
) -> None:
    recipe, output = write(pretraining, tmp_path / "r.yaml"), tmp_path / "found.yaml"
    models = [argument for size in rising for argument in ("--model", size)]
    text = drprune("reference-loss", recipe, *models, "--output", output, status=2)
    assert "loss (nats per token)" in text
    assert "does not fall with the size" in text
    lines = output.read_text().splitlines()
    for model in rising:
        (line,) = [line for line in lines if model in line]
        losses = yaml.safe_load(line[line.index("{") :])
        assert set(losses) == set(DOMAINS)
        assert all(f"{loss:.4f}" in text for loss in losses.values())
    start = f"scheduling.start={output}"
    assert "give at least one of" in drprune("plan", recipe, "--set", start, status=2)
    drprune("reference-loss", recipe, "--model", rising[0], "--output", output)
    assert set(yaml.safe_load(output.read_text())) == {"reference_loss"}


def test_command_looks_at_its_output_before_it_measures(
    pretraining: dict[str, Any],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drpruning.training.perplexity.evaluate_perplexity", not_again)
    recipe = write(pretraining, tmp_path / "r.yaml")
    for output in (tmp_path, Path(), recipe, recipe / "below.yaml"):
        arguments = ["reference-loss", recipe, "--model", model_folder, "--output", output]
        assert "--output" in drprune(*arguments, status=2)
    assert not (Path(pretraining["output"]) / "data").exists()


def test_model_that_cannot_be_loaded_is_named_as_a_reference(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = altered(Path(sizes[0]), tmp_path / "torn", "config.json", "{", "{")
    pretraining["scheduling"] = {"reference_loss": {"from_model": torn}}
    folder = run(pretraining, "prepare")
    (Path(torn) / "model.safetensors").write_bytes(b"torn")
    monkeypatch.setattr("drpruning.pipeline.preflight.check_reference_models", lambda *_: {})
    message = drprune("pretrain", folder / "recipe.yaml", status=2)
    assert f"scheduling.reference_loss: {torn} cannot be loaded" in message


def test_plan_says_where_reference_losses_come_from(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    def planned(**scheduling: Any) -> str:
        return drprune("plan", write(pretraining | {"scheduling": scheduling}, tmp_path / "r.yaml"))

    assert "reference losses: none; from step 1 on, forecasts of the losses at" in planned()
    assert "if the rest of it gave all domains the same share" in planned()
    assert "end of pretrain if it continues as it is" in planned(reference="paper")
    assert "from step 1 on, forecasts" in planned(forecast="replace", start=FOUND)
    assert "reference losses: numbers" in planned(reference_loss=dict.fromkeys(DOMAINS, 1.0))
    assert "reference losses: scheduling.start" in planned(start=FOUND)
    assert f"reference losses: from {sizes[0]}" in planned(reference_loss={"from_model": sizes[0]})
    never = planned(forecast_start=1.0)
    assert "reference losses: none; from step 4 on, forecasts" in never
    assert "forecast_start (1) of the steps" in never
    assert "warning" not in planned(forecast_start=1.0, start=FOUND)
    assert "first ratio: numbers 50.00%, colours 30.00%, animals 20.00%" in planned(start=FOUND)
    law = planned(reference_loss={"from_models": sizes})
    assert f"law over {sizes[0]}" in law
    assert "parameters; measured before training" in law
    assert not Path(pretraining["output"]).exists()


def test_models_that_cannot_be_compared_are_refused_beforehand(
    pretraining: dict[str, Any], sizes: list[str], model_folder: Path, tmp_path: Path
) -> None:
    def refused(setting: Any) -> str:
        values = pretraining | {"scheduling": {"reference_loss": setting}}
        return drprune("plan", write(values, tmp_path / "r.yaml"), status=2)

    orange = altered(model_folder, tmp_path / "orange", "tokenizer.json", '"green"', '"orange"')
    assert "cannot be compared" in refused({"from_model": orange})
    twin = altered(Path(sizes[0]), tmp_path / "twin", "config.json", "{", "{")
    assert "both have" in refused({"from_models": [*sizes, twin]})
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"scheduling.reference_loss: {empty} is no folder" in refused({"from_model": str(empty)})
    assert not Path(pretraining["output"]).exists()


def test_constant_ratio_takes_no_reference_models(
    pretraining: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    pretraining["scheduling"] = {
        "policy": "constant",
        "reference_loss": {"from_model": str(model_folder)},
    }
    message = drprune("plan", write(pretraining, tmp_path / "r.yaml"), status=2)
    assert "constant has no setting reference_loss" in message


def test_tokenizer_that_cuts_otherwise_is_refused_when_measuring(
    pretraining: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    other = altered(
        model_folder, tmp_path / "other", "tokenizer.json", '"Whitespace"', '"WhitespaceSplit"'
    )
    pretraining["scheduling"] = {"reference_loss": {"from_model": other}}
    message = drprune("run", write(pretraining, tmp_path / "r.yaml"), status=2)
    assert "cannot be compared" in message
    assert not (Path(pretraining["output"]) / "reference_loss.json").exists()


# The command.


def test_command_prints_and_saves_what_a_recipe_can_start_from(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    recipe, saved = write(pretraining, tmp_path / "r.yaml"), tmp_path / "found" / "start.yaml"
    models = [argument for size in sizes for argument in ("--model", size)]
    text = drprune("reference-loss", recipe, *models, "--params", "5000", "--output", saved)
    assert "law at" in text
    assert "5,000" in text
    assert "scheduling: reference_loss: " in text
    drprune("reference-loss", recipe, *models, "--params", "5000")
    beside = yaml.safe_load((tmp_path / "r.reference-loss.yaml").read_text())
    assert beside == yaml.safe_load(saved.read_text())
    started = load_recipe(recipe, [f"scheduling.start={saved}"]).scheduling.start
    assert started is not None
    assert started.reference_loss is not None
    for domain, loss in started.reference_loss.items():
        assert f"{domain}: {loss}" in text
    output = Path(pretraining["output"])
    assert not (output / "recipe.yaml").exists(), "the recipe may still change"
    drprune("pretrain", recipe, "--set", f"scheduling.start={saved}")
    assert evaluations(output, "pretrain")[0]["reference_loss"] == started.reference_loss


def test_command_shows_what_a_run_has_measured(
    pretraining: dict[str, Any], model_folder: Path
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_model": str(model_folder)}}
    folder = run(pretraining, "pretrain")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    text = drprune("reference-loss", folder)
    own = json.loads((folder / "reference_loss.json").read_text())["reference_loss"]
    assert all(f"{domain}: {loss}" in text for domain, loss in own.items())
    saved = folder / "reference-loss.yaml"
    assert yaml.safe_load(saved.read_text()) == {"reference_loss": own}
    saved.unlink()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert "--set" in drprune("reference-loss", folder, "--set", "output=x", status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "names no models to measure"),
        (["--model", "a", "--model", "b"], "three or more"),
        (["--model", "a", "--model", "b", "--model", "a"], "different sizes"),
        (["--model", "a", "--params", "5"], "--params"),
    ],
)
def test_command_says_what_it_lacks(
    pretraining: dict[str, Any], tmp_path: Path, arguments: list[str], words: str
) -> None:
    recipe = write(pretraining, tmp_path / "r.yaml")
    assert words in drprune("reference-loss", recipe, *arguments, status=2)


@pytest.mark.parametrize("name", ["reference-loss", "export-schedule"])
def test_commands_have_examples(name: str) -> None:
    assert "Examples" in drprune(name, "--help")


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(
    pretraining: dict[str, Any], sizes: list[str], tmp_path: Path
) -> None:
    pretraining["scheduling"] = {"reference_loss": {"from_models": sizes}}
    one = run(pretraining, "pretrain")
    pretraining["output"] = str(tmp_path / "two")
    recipe = write(pretraining, tmp_path / "two.yaml")
    on_two_ranks("pretrain", recipe)
    there = [json.loads((f / "reference_loss.json").read_text()) for f in (one, tmp_path / "two")]
    for here, other in zip(there[0]["models"], there[1]["models"], strict=True):
        assert here["loss"] == pytest.approx(other["loss"], abs=1e-5)
    first = [evaluations(folder, "pretrain")[0] for folder in (one, tmp_path / "two")]
    assert first[0]["ratio"] == pytest.approx(first[1]["ratio"], abs=1e-3)
