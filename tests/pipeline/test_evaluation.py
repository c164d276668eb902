"""`drprune evaluate MODEL --data RUN` shows the model that it was asked for, under its name."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from drpruning.data import TokenBlocks
from drpruning.data import blocks as blocks_module
from drpruning.models import files
from drpruning.pipeline import evaluation
from drpruning.report import results_table
from drpruning.runs.records import Evaluation, load_evaluation, load_run
from drpruning.training import perplexity
from helpers.damaged_places import RECIPE, Place
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


def model(place: str | Path, seed: int) -> Path:
    """A model like the source's, its weights multiplied by something that the seed decides."""
    folder = Path(place)
    shutil.copytree("model", folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(seed)
    changed = {name: tensor * (1 + torch.rand(())) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


def evaluated(run: str | Path = "out") -> dict[str, Evaluation]:
    """What the table of a run shows: name of the model -> its evaluation."""
    record = load_run(Path(run))
    rows = results_table([record]).rows
    assert len(rows) == len({row.model for row in rows}) == len(record.evaluations)
    found = [load_evaluation(row.file) for row in rows]
    return {row.model: each for row, each in zip(rows, found, strict=True) if each is not None}


def test_a_model_is_shown_though_its_numbers_are_those_of_another(home: Path) -> None:
    shutil.copytree("model", "copies/model")
    for name in ("model", "copies/model"):
        table = drprune("evaluate", name, "--data", "out")
        assert name in table
    shown = evaluated()
    assert list(shown) == ["model", "copies/model"] or list(shown) == ["copies/model", "model"]
    assert shown["model"].loss == shown["copies/model"].loss
    assert shown["copies/model"].path == str(home / "copies/model")


def test_models_inside_the_run_are_shown_beside_its_own(home: Path) -> None:
    first = model("out/pruned", 1)
    drprune("evaluate", "out", first, "--data", "out")
    shown = evaluated()
    assert list(shown) == ["source", "pruned", "out/pruned"]
    assert shown["pruned"].loss == shown["out/pruned"].loss
    model("out/pruned", 2)
    assert "out/pruned" in drprune("evaluate", home / "out/pruned", "--data", "out")
    again = evaluated()
    assert len(again) == 3
    assert again[str(home / "out/pruned")].loss != again["pruned"].loss, "replaced since"
    drprune("evaluate", "out")
    assert evaluated()["pruned"].loss == again[str(home / "out/pruned")].loss


def test_a_model_that_was_replaced_is_measured_anew(home: Path) -> None:
    name = model("m", 1)
    drprune("evaluate", name, "--data", "out")
    before = evaluated()["m"]
    model(name, 2)
    drprune("evaluate", name, "--data", "out")
    assert list(evaluated()) == ["m"]
    assert evaluated()["m"].loss != before.loss
    assert before.path == str(home / "m")


def test_an_evaluation_that_names_its_model_by_a_link_is_replaced_too(home: Path) -> None:
    drprune("evaluate", model("m", 1), "--data", "out")
    (file,) = (home / "out/evaluation").glob("*.json")
    (home / "link").symlink_to(home)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"path": str(home / "link/m")}))
    drprune("evaluate", "m", "--data", "out")
    assert list((home / "out/evaluation").glob("*.json")) == [file]
    assert evaluated()["m"].path == str(home / "m")


def test_one_name_in_two_folders_is_two_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {"a/x": 1, "b/x": 2}
    for place, seed in seeds.items():
        model(f"{place}/m", seed)
    for place in seeds:
        monkeypatch.chdir(home / place)
        assert "m" in drprune("evaluate", "m", "--data", home / "out")
    monkeypatch.chdir(home)
    shown = evaluated()
    assert {each.path for each in shown.values()} == {str(home / p / "m") for p in seeds}
    assert len({tuple(each.loss.values()) for each in shown.values()}) == 2
    assert all(name.startswith("m (") for name in shown), "each says where it is from"
    drprune("evaluate", "b/x/m", "--data", "out")
    assert {each.path: name for name, each in evaluated().items()} == {
        str(home / "a/x/m"): "m", str(home / "b/x/m"): "b/x/m",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["a b/c d", "v1.5/llama-2.7b", ".hidden/.m", "Ünï/cödé", "[bold]/[x]",
     "x" * 120 + "/" + "y" * 120, "-/-", "new\nline/m"],
)  # fmt: skip
def test_any_name_of_a_folder_will_do(home: Path, name: str) -> None:
    model(name, 1)
    table = drprune("evaluate", f"./{name}", "--data", "out")
    shown = evaluated()
    assert [each.path for each in shown.values()] == [str(home / name)]
    assert list(shown) == [name]
    assert name[:3] in table
    assert len(list((home / "out/evaluation").glob("*.json"))) == 1


@pytest.mark.parametrize("way", [".", "..", "inner/..", "link"])
def test_ways_that_have_no_name_of_their_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model("some/m/inner", 1)
    model("some/m", 2)
    (home / "some/m/link").symlink_to(home / "some/m")
    monkeypatch.chdir(home / ("some/m/inner" if way == ".." else "some/m"))
    drprune("evaluate", way, "--data", home / "out")
    (found,) = evaluated(home / "out").items()
    assert found[1].path == str(home / "some/m")
    assert found[0] == ("link" if way == "link" else str(home / "some/m"))


def test_names_that_differ_by_case_alone_do_not_share_a_file(home: Path) -> None:
    places = ("models/m", "Models/M", "models/M", "source", "pruned", "model/model")
    for number, name in enumerate(places):
        model(name, number)
        drprune("evaluate", name, "--data", "out")
    names = [path.stem.lower() for path in (home / "out/evaluation").glob("*.json")]
    assert len(names) == len(set(names)) == 6
    drprune("evaluate", "out")
    shown = evaluated()
    assert len(shown) == 7
    labels = {each.name: name for name, each in shown.items()}
    assert labels["source"] != "source", "another model has been given that name too"


def test_several_models_are_each_shown_and_measured_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(model(f"models/m{number}", number)) for number in range(9)]
    looked: list[str] = []
    original = files.check_files
    monkeypatch.setattr(
        "drpruning.models.loading.check_files",
        lambda name, *rest: looked.append(name) or original(name, *rest),
    )
    again = [f"./{names[0]}", str(home / names[1])]
    table = drprune("evaluate", *names, *again, "--data", "out")
    assert sorted(looked) == sorted(str(home / name) for name in names)
    for name in names:
        assert name in table
        total = f"{evaluated()[name].average_perplexity:.2f}"
        assert total in table
    monkeypatch.setenv("COLUMNS", "50")
    narrow = drprune("evaluate", names[8], "--data", "out")
    for name in names:
        assert f"{evaluated()[name].average_perplexity:.2f}" in narrow


def test_a_name_on_the_hub_is_a_model_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "MODEL: nobody/none is no folder on this machine and not to be had from the Hub"
    assert words in drprune("evaluate", "nobody/none", "--data", "out", status=2)
    downloaded = str(home / model("cache/snapshot", 3))

    def found_in_the_cache(module: Any, function: str) -> None:
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda _name, *rest: original(downloaded, *rest))

    for function in ("check_model", "tokenizer_digest"):
        found_in_the_cache(evaluation, function)
    found_in_the_cache(perplexity, "load_model")
    assert "org/name" in drprune("evaluate", "org/name", "--data", "out")
    monkeypatch.chdir(home / "cache")
    drprune("evaluate", "org/name", "--data", "../out")
    model_of = {each.path: each.label for each in evaluated("../out").values()}
    assert model_of == {"org/name": "org/name"}


@pytest.mark.usefixtures("home")
def test_a_recipe_of_another_program_does_not_make_a_model_a_run() -> None:
    (model("compressed", 1) / "recipe.yaml").write_text("default_stage: {modifiers: {}}\n")
    assert "compressed" in drprune("evaluate", "compressed", "--data", "out")


def test_losses_that_are_not_finite_are_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = perplexity.block_losses
    monkeypatch.setattr(
        perplexity, "block_losses",
        lambda *rest, **options: original(*rest, **options) | {"colours": np.array([3, np.nan])},
    )  # fmt: skip
    table = drprune("evaluate", model("m", 1), "--data", "out")
    assert "warning: m: its loss is not finite on colours, so it has no average" in table
    assert math.isnan(evaluated(home / "out")["m"].average_perplexity)


def test_everything_is_checked_before_anything_is_measured(home: Path) -> None:
    model("good", 1)
    other = model("other", 2)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"green"', '"orange"'))
    cut = model("cut", 3)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-9])
    small = model("small", 4)  # with the run's tokenizer, but without rows for all its ids
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    weights = load_file(small / "model.safetensors")
    rows = {
        name: t[:20] if t.shape[0] == config["vocab_size"] else t for name, t in weights.items()
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in rows.items()},
        small / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    for bad, words in (
        ("small", "MODEL: the tokenizer in"),
        ("small", "does not fit the model: its largest id is 26"),
        ("other", "other: its tokenizer is not the one that out was made with"),
        ("cut", "cut/model.safetensors is not a complete safetensors file"),
        ("numbers.jsonl", "numbers.jsonl: neither a run folder nor a model folder"),
        ("gone/for/good", "gone/for/good: neither a run folder nor a model folder"),
    ):
        assert words in drprune("evaluate", "out", "good", bad, "--data", "out", status=2)
        assert not (home / "out/evaluation").exists()
    assert "--data RUN" in drprune("evaluate", "out", "good", status=2)
    assert not (home / "out/evaluation").exists()


@pytest.mark.usefixtures("home")
def test_runs_of_several_targets_are_named_one_by_one() -> None:
    targets = {"large": {"hidden_size": 24}, "small": {"hidden_size": 16}}
    several = RECIPE | {"model": {"source": "model", "targets": targets}, "output": "several"}
    several["data"] = RECIPE["data"] | {"prepared": "out/data"}
    Path("several.yaml").write_text(yaml.safe_dump(several))
    drprune("prune", "several.yaml")
    message = drprune("evaluate", "model", "--data", "several", status=2)
    assert "each target has a run of its own; name one, such as several/large" in message
    assert "model" in drprune("evaluate", "model", "--data", "several/small")
    assert list(evaluated("several/small")) == ["model"]
    table = drprune("evaluate", "several", "several/large/", "--data", "several/small")
    assert table.count("parameters") == 1
    assert sorted(evaluated("several/large")) == ["pruned", "source"]
    assert sorted(evaluated("several/small")) == ["model", "pruned", "source"]


def test_a_change_of_any_validation_block_shows() -> None:
    blocks = np.arange(150 * 4, dtype=np.uint16).reshape(150, 4)
    digests = set()
    for place in (None, 0, 63, 64, 149):
        changed = blocks.copy()
        if place is not None:
            changed[place, -1] = 7
        digests.add(blocks_module._digest(cast("TokenBlocks", changed)))
    assert len(digests) == 5


def test_models_on_other_validation_text_are_not_ranked(home: Path) -> None:
    other = json.loads(json.dumps(RECIPE)) | {"output": "other"}
    Path("numbers.jsonl").write_text(Path("numbers.jsonl").read_text().replace("one", "two"))
    Path("other.yaml").write_text(yaml.safe_dump(other))
    drprune("prepare", "other.yaml")
    for run in ("out", "other"):
        drprune("evaluate", run)
    table = drprune("evaluate", "out", "other")
    assert "the validation data that the models were measured on differ in text (numbers" in table
    digests = [evaluated(run)["source"].validation for run in ("out", "other")]
    assert digests[0]["colours"] == digests[1]["colours"]
    assert digests[0]["numbers"] != digests[1]["numbers"]
    record: dict[str, Any] = json.loads((home / "out/evaluation/source.json").read_text())
    del record["validation"]
    (home / "out/evaluation/source.json").write_text(json.dumps(record))
    runs = [load_run(Path(run)) for run in ("out", "other")]
    assert results_table(runs).note == "", "not known of an evaluation of an earlier version"


# What was measured before, and what is written.


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that are measured, as they are."""
    names: list[str] = []
    original = perplexity.evaluate_perplexity

    def counted(name: str, *rest: Any, **options: Any) -> Evaluation:
        names.append(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(perplexity, "evaluate_perplexity", counted)
    return names


@pytest.mark.usefixtures("home")
def test_a_model_is_measured_again_only_if_something_has_changed(measured: list[str]) -> None:
    model("m", 1)
    arguments = ("evaluate", "out", "m", "--data", "out")
    drprune(*arguments)
    first = evaluated()
    assert measured == ["source", "home-m"]
    assert "m: measured before (out/evaluation/home-m.json)" in drprune(*arguments)
    assert (len(measured), evaluated()) == (2, first)
    drprune(*arguments, "--again")
    assert measured[2:] == ["source", "home-m"]
    Path("m/README.md").write_text("a card")
    shutil.move("m", "moved")
    drprune("evaluate", "moved", "--data", "out")
    assert len(measured) == 4, "the files are the same in another place"
    assert evaluated()["moved"].loss == first["m"].loss
    model("moved", 2)
    drprune("evaluate", "moved", "--data", "out")
    assert measured[4:] == ["home-moved"]


@pytest.mark.parametrize("change", ["precision", "blocks", "damaged", "earlier version"])
def test_an_evaluation_of_other_circumstances_does_not_count(
    home: Path, measured: list[str], change: str
) -> None:
    drprune("evaluate", "out")
    file = home / "out/evaluation/source.json"
    record = json.loads(file.read_text())
    if change == "precision":
        text = Path("out/recipe.yaml").read_text()
        Path("out/recipe.yaml").write_text(text.replace("precision: fp32", "precision: bf16"))
    elif change == "blocks":
        blocks = Path("out/data/colours/validation.bin")
        blocks.write_bytes(np.fromfile(blocks, np.uint16)[::-1].tobytes())
    elif change == "damaged":
        file.write_text("{")
    else:
        for name in ("block_loss", "fingerprint", "precision"):
            del record[name]
        file.write_text(json.dumps(record))
    drprune("evaluate", "out")
    assert measured == ["source", "source"]
    again = json.loads(file.read_text())
    assert again["block_loss"].keys() == record["blocks"].keys()
    assert again["precision"] == ("bf16" if change == "precision" else "fp32")


@pytest.mark.usefixtures("home")
def test_all_numbers_are_written_as_json() -> None:
    model("m", 1)
    table = drprune("evaluate", "out", "m", "--data", "out", "--json", "deep/numbers.json")
    assert "±" in table
    written = json.loads(Path("deep/numbers.json").read_text())
    source, other = written["models"]
    assert (source["label"], other["label"]) == ("source", "m")
    assert source["times_source"] == source["difference_from_source"] == {}
    for name in written["domains"]:
        low, high = other["interval"][name]
        assert low < other["loss"][name] < high
        assert np.mean(other["block_loss"][name]) == pytest.approx(other["loss"][name])
        found = other["difference_from_source"][name]
        assert found["nats"] == pytest.approx(other["loss"][name] - source["loss"][name])
        assert math.exp(found["nats"]) == pytest.approx(other["times_source"][name])
        assert 0 < found["p_bootstrap"] <= 1
    average = other["average_difference_from_source"]
    assert math.exp(average["nats"]) == pytest.approx(other["times_source"]["average"])
    assert average["interval"][0] <= average["nats"] <= average["interval"][1]
    assert "bits_per_byte" not in source, "words between which white space is left out"
    assert source["note"] == (
        "No bits per byte. The tokenizer: it leaves out characters between tokens (Whitespace)."
    )
    assert "No bits per byte." in table


def test_a_file_that_cannot_be_written_is_refused_first(home: Path) -> None:
    said = drprune("evaluate", "out", "--json", "out", status=2)
    assert "--json out: is no name of a file" in said
    assert not (home / "out/evaluation").exists()
