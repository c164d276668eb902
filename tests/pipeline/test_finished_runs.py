"""A finished run started again: shown, or refused with a remedy that works; its record stays."""

import shutil
from pathlib import Path

import pytest
import yaml

from drpruning.models.card import with_results
from drpruning.recipe import load_recipe
from helpers.damaged_places import RECIPE, Place
from helpers.small_runs import drprune, drprune_in, evaluations, logged

ACCEPT = ("--set", "training.checkpoint.accept_changes=true")


@pytest.fixture(scope="module")
def pruned_place(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, model_folder: Path
) -> Path:
    """A place in which the recipe has been prepared and pruned."""
    made = Place(tmp_path_factory.mktemp("pruned") / "place", text_folder, model_folder)
    return drprune_in(made.folder, "prune")


@pytest.fixture(scope="module")
def finished_place(tmp_path_factory: pytest.TempPathFactory, pruned_place: Path) -> Path:
    """The same once both phases are finished."""
    folder = tmp_path_factory.mktemp("finished") / "place"
    return drprune_in(shutil.copytree(pruned_place, folder), "pretrain")


@pytest.fixture
def pruned(pruned_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and the current folder."""
    monkeypatch.chdir(shutil.copytree(pruned_place, tmp_path / "pruned"))
    return tmp_path / "pruned"


@pytest.fixture
def finished(finished_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and the current folder."""
    monkeypatch.chdir(shutil.copytree(finished_place, tmp_path / "finished"))
    return tmp_path / "finished"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the log of its commands, its evaluations and its page."""
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (name := str(path.relative_to(folder))).startswith(("evaluation", "report"))
        and path.name != "sessions.jsonl"
    }


@pytest.mark.parametrize("steps", [1, 4])
def test_another_number_of_steps_is_refused_with_the_remedy(finished: Path, steps: int) -> None:
    before = contents(finished)
    asked = ("--set", f"pretrain.steps={steps}")
    for arguments in (("run", "recipe.yaml", *asked), ("pretrain", "recipe.yaml", *asked, *ACCEPT),
                      ("plan", "out/recipe.yaml", *asked, *ACCEPT)):  # fmt: skip
        message = drprune(*arguments, status=2)
        assert "out holds a finished run with other settings " in message
        assert f"(pretrain.steps (saved 2, now {steps}))" in message
        for remedy in ("drprune run out/recipe.yaml", "data.prepared: out/data",
                       "model.source: out/model", "scheduling.start: out/start.yaml",
                       "drprune export-schedule out"):  # fmt: skip
            assert remedy in message
        assert contents(finished) == before
    assert "pretrain: done already" in drprune("pretrain", "recipe.yaml"), "as it was begun"
    assert contents(finished) == before


def test_the_remedy_trains_the_model_further(finished: Path) -> None:
    drprune("export-schedule", "out")
    further = {key: value for key, value in RECIPE.items() if key != "prune"} | {
        "model": {"source": "out/model"},
        "data": RECIPE["data"] | {"prepared": "out/data"},
        "scheduling": {"start": "out/start.yaml"},
        "pretrain": RECIPE["pretrain"] | {"steps": 4},
        "output": "further",
    }
    Path("further.yaml").write_text(yaml.safe_dump(further))
    before = contents(finished / "out")
    drprune("pretrain", "further.yaml")
    assert contents(finished / "out") == before
    assert not Path("further/data").exists(), "nothing is prepared again"
    first = evaluations(Path("further"), "pretrain")[0]
    last = evaluations(Path("out"), "pretrain")[-1]
    assert first["loss"] == pytest.approx(last["loss"]), "it begins where the other one ended"
    assert first["ratio"] == pytest.approx(last["ratio"], abs=0.05)
    assert logged(Path("further"))[-1]["step"] == 4


@pytest.mark.parametrize(
    "change",
    ["prune.steps=8", "prune=null", "pretrain=null", "scheduling.policy=constant",
     "data.sequence_length=32", "training.log_every=1", "training.seed=3",
     "model.dtype=float16", "model.max_shard_size=1GB"],
)  # fmt: skip
def test_nothing_else_that_was_run_can_be_said_to_be_otherwise(finished: Path, change: str) -> None:
    before = contents(finished)
    field = change.partition("=")[0]
    also = ("--set", "model.target=null") if field == "prune" else ()
    message = drprune("run", "recipe.yaml", "--set", change, *also, *ACCEPT, status=2)
    assert field in message
    assert "out" in message
    assert ("nothing is prepared again" in message) == (not change.startswith("data."))
    assert contents(finished) == before


def test_settings_that_may_change_do_not_rewrite_the_record(finished: Path) -> None:
    before = contents(finished / "out")
    changes = ["training.micro_batch=1", "data.workers=2", "training.checkpoint.keep=5"]
    words = [word for change in changes for word in ("--set", change)]
    assert drprune("run", "recipe.yaml", *words, *ACCEPT).count("done already") == 2
    after = contents(finished / "out")
    for card in ("pruned/README.md", "model/README.md"):  # what is measured is put into them
        assert with_results(after.pop(card).decode(), "") == with_results(
            before.pop(card).decode(), ""
        )
    assert after == before
    assert load_recipe("out/recipe.yaml").training.micro_batch == 4
    assert len((finished / "out/sessions.jsonl").read_text().splitlines()) == 3


def test_a_phase_that_is_finished_stands_while_another_is_not(pruned: Path) -> None:
    before = contents(pruned)
    for change in ("prune.steps=8", "prune.learning_rate=0.5"):
        message = drprune("run", "recipe.yaml", "--set", change, *ACCEPT, status=2)
        assert f"out has finished prune with other settings ({change.partition('=')[0]}" in message
        assert "drprune run out/recipe.yaml" in message
        assert contents(pruned) == before
    drprune("pretrain", "recipe.yaml", "--set", "pretrain.steps=4")
    recipe = load_recipe("out/recipe.yaml")
    assert recipe.prune is not None
    assert recipe.pretrain is not None
    steps = {name: phase.steps for name, phase in recipe.phases.items()}
    assert steps == {"prune": 4, "pretrain": 4}
    card = (pruned / "out/model/README.md").read_text()
    assert "- pruning: 4 steps" in card
    assert "- continued pretraining: 4 steps" in card
    for name, count in steps.items():
        assert evaluations(pruned / "out", name)[-1]["step"] == count


def test_a_phase_may_be_added_to_a_run_that_was_finished_without_it(pruned: Path) -> None:
    shutil.copy("out/recipe.yaml", "both.yaml")
    drprune("prune", "recipe.yaml", "--set", "pretrain=null")
    assert load_recipe("out/recipe.yaml").pretrain is not None, "nothing was run"
    drprune("pretrain", "recipe.yaml", "--set", "pretrain.steps=4")
    assert evaluations(pruned / "out", "pretrain")[-1]["step"] == 4


def test_kept_checkpoints_of_a_finished_phase_stay(pruned: Path) -> None:
    kept = pruned / "out/checkpoints/pretrain-00000001"
    drprune("pretrain", "recipe.yaml", "--set", "training.checkpoint.keep_every=1")
    assert kept.is_dir()
    drprune("pretrain", "recipe.yaml")
    assert kept.is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.sequence_length=32"], "sequence_length (saved 16, now 32)"),
        (["data.special_tokens=parse"], "special_tokens (saved text, now parse)"),
        (["data.domains.numbers.where={n: 1}"], "the where of domain numbers"),
        (["data.domains.numbers.share=0", "data.normalise_shares=true"],
         "whether domain numbers is trained on (share above 0)"),
    ],
)  # fmt: skip
def test_data_of_other_settings_are_refused_by_plan_too(
    pruned: Path, changes: list[str], words: str
) -> None:
    asked = [*changes, "output=other", "data.prepared=out/data"]
    arguments = [word for change in asked for word in ("--set", change)]
    before = contents(pruned)
    for command in ("plan", "run"):
        message = drprune(command, "recipe.yaml", *arguments, status=2)
        assert "data.prepared: out/data holds data that was prepared with other settings" in message
        assert f"what differs: {words}. Give data.prepared another folder" in message
    assert contents(pruned) == before


def test_commands_in_a_refusal_are_quoted_for_a_shell(finished: Path) -> None:
    shutil.move(finished / "out", finished / "my $run")
    message = drprune("plan", "my $run/recipe.yaml", "--set", "pretrain.steps=9", status=2)
    assert "`drprune run 'my $run/recipe.yaml'`" in message
    assert "`drprune export-schedule 'my $run'`" in message
    assert "model.source: my $$run/model" in message, "as a recipe has it"
