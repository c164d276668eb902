"""Runs that move or change: where they resume, what is refused, what is read and how often."""

import builtins
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drpruning.common.errors import FolderLocked
from drpruning.common.files import folder_lock
from drpruning.data import sources
from drpruning.models import files, inspect
from drpruning.pipeline import domain_plans, preflight
from drpruning.pipeline.run import Run
from drpruning.pipeline.targets import plan_recipe
from drpruning.recipe import parse_recipe
from drpruning.runs.folder import open_recipe, rollback_on_error
from drpruning.runs.records import load_evaluation
from helpers.damaged_places import Place, field
from helpers.small_runs import drprune, write


def starts(folder: Path) -> int:
    return len((folder / "sessions.jsonl").read_text().splitlines())


def test_a_moved_run_folder_is_resumed_where_it_is(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    old, new = Path(recipe_values["output"]), tmp_path / "elsewhere" / "moved"
    drprune("prepare", write(recipe_values, tmp_path / "r.yaml"))
    new.parent.mkdir()
    old.rename(new)
    drprune("prepare", new / "recipe.yaml")
    assert not old.exists()
    assert starts(new) == 2
    assert open_recipe(new / "recipe.yaml").output == str(new)
    other = open_recipe(new / "recipe.yaml", [f"output={tmp_path / 'second'}"])
    assert other.output == str(tmp_path / "second")


def test_a_recipe_in_its_run_folder_does_not_nest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    drprune("prepare", "recipe.yaml")
    drprune("prepare", "out/recipe.yaml")
    monkeypatch.chdir(place / "out")
    drprune("prepare", "recipe.yaml")
    assert starts(place / "out") == 3
    assert not list((place / "out").rglob("out"))


def test_what_lay_beside_a_moved_run_is_found_there(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "large").mkdir(parents=True)
    shutil.copytree(recipe_values["model"]["source"], home / "large" / "pruned")
    recipe_values["model"]["source"] = str(home / "large" / "pruned")
    recipe_values["data"]["prepared"] = str(home / "data")
    recipe_values["output"] = str(home / "small")
    drprune("prepare", write(recipe_values, tmp_path / "r.yaml"))
    home.rename(tmp_path / "new")
    recipe = open_recipe(tmp_path / "new" / "small" / "recipe.yaml")
    assert recipe.model.source == str(tmp_path / "new" / "large" / "pruned")
    assert recipe.prepared_folder == tmp_path / "new" / "data"
    drprune("prepare", tmp_path / "new" / "small" / "recipe.yaml")
    assert not home.exists()


def test_after_preparation_alone_only_the_data_are_fixed(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    made = (place / "out/data/numbers/train.bin").stat().st_mtime_ns
    for change in ("prune.learning_rate=0.5", "scheduling.rho=0.2", "model.target.num_layers=1"):
        drprune("prepare", "recipe.yaml", "--set", change)
    assert (place / "out/data/numbers/train.bin").stat().st_mtime_ns == made
    refusal = drprune("prepare", "recipe.yaml", "--set", "data.sequence_length=8", status=2)
    assert "sequence_length" in refusal
    assert "out/data" in refusal
    assert (place / "out/data/numbers/train.bin").stat().st_mtime_ns == made


def test_once_a_model_is_measured_the_model_is_fixed_too(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    drprune("evaluate", "out")
    shutil.copytree(place / "model", place / "other")
    message = drprune("plan", "recipe.yaml", "--set", "model.source=other", status=2)
    assert "model.source (saved 'model', now 'other')" in message
    message = drprune("plan", "recipe.yaml", "--set", "model.revision=v1", status=2)
    assert "model.revision (saved None, now 'v1')" in message
    drprune("plan", "recipe.yaml", "--set", "prune.learning_rate=0.5")


def test_text_that_is_gone_is_not_asked_for_once_it_is_prepared(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    kept = (place / "numbers.jsonl").read_bytes()
    (place / "numbers.jsonl").unlink()
    plan = drprune("plan", "recipe.yaml")
    assert "data.domains.numbers: its text is missing; the data prepared from it are used" in plan
    assert "numbers: its text is missing" in drprune("prune", "recipe.yaml")
    assert (place / "out/pruned/config.json").is_file()

    (place / "colours.jsonl").write_bytes(kept)
    message = drprune("pretrain", "recipe.yaml", status=2)
    assert "the text of colours" in message
    assert "the text of numbers is missing" in message
    assert "put these back" in message


def test_text_that_is_gone_is_asked_for_where_the_settings_are_others(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    (place / "numbers.jsonl").unlink()
    assert "numbers.jsonl" in drprune(
        "prepare", "recipe.yaml", "--set", "data.validation_blocks=3", status=2
    )
    field("data.domains.numbers.where", {"kind": "a"})(place)
    assert "numbers.jsonl" in drprune("prepare", "recipe.yaml", status=2)


def test_text_that_is_gone_is_asked_for_where_its_name_is_another(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    (place / "numbers.jsonl").unlink()
    field("data.domains.numbers.source", "numbers-2.jsonl")(place)
    assert "numbers-2.jsonl" in drprune("prepare", "recipe.yaml", status=2)


def test_a_folder_of_text_that_is_gone_is_known_by_its_name(place: Place) -> None:
    place.write("texts/numbers/n.jsonl", (place / "numbers.jsonl").read_bytes())
    field("data.domains.numbers.source", "texts/numbers")(place)
    drprune("prepare", "recipe.yaml")
    shutil.rmtree(place / "texts")  # from now on it could be a name on the Hub
    assert "numbers: its text is missing" in drprune("plan", "recipe.yaml")
    drprune("prune", "recipe.yaml")
    field("data.domains.numbers.source", "texts/letters")(place)
    assert "texts/letters" in drprune("prepare", "recipe.yaml", status=2)


def test_a_recipe_beside_a_lock_or_a_log_is_the_users(place: Place) -> None:
    for name in (".lock", "metrics.jsonl"):
        place.write(f"out/{name}", "")
        place.write("out/recipe.yaml", (place / "recipe.yaml").read_text() + "# mine\n")
        before = (place / "out/recipe.yaml").read_bytes()
        assert "was not written by a run" in drprune("prepare", "recipe.yaml", status=2)
        assert open_recipe("out/recipe.yaml").output == "out"
        assert (place / "out/recipe.yaml").read_bytes() == before
        (place / "out" / name).unlink()


def test_a_command_that_finds_the_folder_locked_removes_nothing(tmp_path: Path) -> None:
    def begin() -> None:
        with rollback_on_error(tmp_path):
            (tmp_path / "recipe.yaml").touch()  # meanwhile, by the command that holds the lock
            with folder_lock(tmp_path, "another process works here"):
                pass

    with folder_lock(tmp_path, "first"), pytest.raises(FolderLocked):
        begin()
    assert (tmp_path / "recipe.yaml").is_file()


@pytest.mark.usefixtures("place")
def test_the_way_to_the_optimizer_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def counted(name: str) -> None:
        original = getattr(preflight, name)

        def count(*arguments: Any, **options: Any) -> Any:
            looked.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(preflight, name, count)

    for name in ("source_config", "source_shape", "domain_sources", "check_sources",
                 "saved_recipe", "complete_data"):  # fmt: skip
        counted(name)
    read: list[str] = []
    original = files.read_config
    for module in (files, inspect):
        monkeypatch.setattr(
            module, "read_config", lambda name, *rest: read.append(name) or original(name, *rest)
        )
    found: list[str] = []
    resolve = sources._resolve
    monkeypatch.setattr(
        sources,
        "_resolve",
        lambda domain, **part: found.append(domain.name) or resolve(domain, **part),
    )
    drprune("prune", "recipe.yaml")
    assert Counter(found) == dict.fromkeys(("numbers", "colours", "animals"), 2), (
        "for the plan, and once it has been read"
    )
    assert sorted(looked) == sorted(set(looked))
    assert len(looked) == 6
    assert read == ["model"] * 3, (
        "for the plan, and by the guard of loading, maybe hours later: to be measured, to be pruned"
    )


def test_several_targets_look_for_the_text_once(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    original = preflight.domain_sources
    monkeypatch.setattr(preflight, "domain_sources", lambda r: looked.append(r) or original(r))
    recipe_values["model"] = {
        "source": recipe_values["model"]["source"],
        "targets": {"large": {"num_layers": 2}, "small": {"num_layers": 1}},
    }
    plan = plan_recipe(parse_recipe(recipe_values))
    assert not plan.problems
    assert len(plan.plans) == 2
    assert len(looked) == 1


@pytest.mark.parametrize(
    ("name", "field_name"),
    [
        ("model/config.json", "model.source"),
        ("model/tokenizer.json", "model.source"),
        ("model/model.safetensors", "model.source"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_may_not_be_read_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, name: str, field_name: str
) -> None:
    open_ = builtins.open
    path_open = Path.open

    def refused(path: Any) -> None:
        if str(path).endswith(name):
            raise PermissionError(13, os.strerror(13), str(path))

    def deny(self: Path, *arguments: Any, **options: Any) -> Any:
        refused(self)
        return path_open(self, *arguments, **options)

    def deny_open(path: Any, *arguments: Any, **options: Any) -> Any:
        refused(path)
        return open_(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    monkeypatch.setattr("io.open", deny_open)
    monkeypatch.setattr(builtins, "open", deny_open)
    message = drprune("plan", "recipe.yaml", status=2)
    assert field_name in message
    assert f"{name} cannot be read: permission denied" in message.lower()


def test_a_run_opened_from_its_folder_knows_its_final_size(place: Place) -> None:
    drprune("prepare", "recipe.yaml")
    run = Run.open(place / "out")
    shape = json.loads((place / "model/config.json").read_text())
    assert run.plan.final_shape.num_layers == 2 < shape["num_hidden_layers"]


def test_a_moved_folder_of_several_targets_is_resumed_under_a_relative_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    field("model", {
        "source": "model",
        "targets": {"large": {"hidden_size": 24}, "small": {"hidden_size": 16}},
    })(place)  # fmt: skip
    drprune("prune", "recipe.yaml")
    (place / "out").rename(place / "moved")
    drprune("evaluate", "moved")
    evaluated = load_evaluation(place / "moved/small/evaluation/source.json")
    assert evaluated is not None
    assert evaluated.path == str(place / "moved/large/pruned")
    assert drprune("prune", "moved/recipe.yaml").count("done already") == 2
    assert "done already" in drprune("prune", "moved/small/recipe.yaml")
    monkeypatch.chdir(place / "moved/small")
    own = open_recipe("recipe.yaml")
    assert own.model.source == str(place / "moved/large/pruned")
    assert own.prepared_folder == place / "moved/data"
    assert not (place / "out").exists()
    assert not list((place / "moved").rglob("moved"))


def test_domains_that_run_out_are_not_named_by_the_thousand() -> None:
    plan = domain_plans.DomainPlan(0.01, 1000, 10, exact=True, exhausted_at=("pretrain", 1),
                                on_exhausted="repeat")  # fmt: skip
    lines = domain_plans.repetition_warnings({f"d{i}": plan for i in range(100)})
    assert len(lines) == 21
    assert lines[-1] == "data.domains: 80 more domains run out before the end"
