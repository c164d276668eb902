"""`evaluate --tasks` and `compare`: scores are kept, failures are said, nothing is done twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval")

import datasets

from drpruning.evaluation import harness
from drpruning.models import loading
from drpruning.pipeline import task_evaluation
from drpruning.recipe import parse_recipe
from drpruning.runs.records import load_run
from helpers.damaged_places import Place
from helpers.local_tasks import QUESTIONS, TEXTS, write_tasks
from helpers.small_runs import drprune, only_pretraining, run, write

PROMPTS = {
    "kinds": {"asked": [f"{{question}}{end}" for end in ("", " one", " two", " red", " cat")]},
    "tasks": {"local_choice": {"kind": "asked", "fields": {"question": "question"}}},
}


@pytest.fixture
def home(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model, its tasks and prompts."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tasks(place / "tasks")
    (place / "prompts.yaml").write_text(yaml.safe_dump(PROMPTS))
    return place.folder


def other_model(name: str, seed: int) -> Path:
    """A model like the source's with other weights."""
    shutil.copytree("model", name, dirs_exist_ok=True)
    file = Path(name, "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: value + 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    return Path(name)


def evaluate(*targets: str, tasks: str = "local_choice", status: int = 0) -> str:
    return drprune(
        "evaluate", *targets, "--tasks", tasks, "--task-path", "tasks", "--output", "scores",
        status=status,
    )  # fmt: skip


def kept(folder: str = "scores") -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]


@pytest.fixture
def _local_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing lm-eval's own tasks, to look for a name among them, takes many seconds."""
    real = harness.TaskManager
    monkeypatch.setattr(
        harness, "TaskManager", lambda include_path, **_: real(None, include_path, False)
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that are really run, in their order."""
    tasks: list[str] = []
    run_task = harness.run_task

    def noted(model: Any, catalogue: Any, spec: Any, *args: Any) -> Any:
        tasks.append(spec.title)
        return run_task(model, catalogue, spec, *args)

    monkeypatch.setattr(harness, "run_task", noted)
    return tasks


@pytest.mark.usefixtures("home")
def test_a_score_is_measured_once_for_a_model_whatever_its_name(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("model", "copy")
    table = evaluate("model", tasks="local_choice,local_texts")
    assert "local_choice" in table
    assert "word_perplexity" in table
    assert measured == ["local_choice", "local_texts"]
    found = {each["key"]["task"]: each for each in kept()}
    assert len(found["local_choice"]["result"]["document_scores"]) == len(QUESTIONS)
    assert len(found["local_texts"]["result"]["document_scores"]) == len(TEXTS)

    def loaded_again(*_: object) -> None:
        raise AssertionError("nothing is to be measured")

    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_model", loaded_again)
        again = evaluate("model", "copy", tasks="local_choice,local_texts")
    assert measured == ["local_choice", "local_texts"]
    assert "copy" in again
    other_model("copy", 1)
    evaluate("copy")
    assert measured == ["local_choice", "local_texts", "local_choice"]


def test_what_changes_a_score_is_measured_anew(home: Path, measured: list[str]) -> None:
    evaluate("model")
    evaluate("model", tasks="local_choice@1")
    drprune("evaluate", "model", "--tasks", "local_choice", "--task-path", "tasks",
            "--output", "scores", "--limit", "2")  # fmt: skip
    write_tasks(home / "tasks", local_choice={"doc_to_text": "so {{question}}"})
    evaluate("model")
    assert len(measured) == len(kept()) == 4
    assert sorted(each["result"]["documents"] for each in kept()) == [2, 3, 3, 3]


@pytest.mark.usefixtures("home")
def test_a_task_that_fails_leaves_the_others(measured: list[str]) -> None:
    tasks = "local_absent,local_choice"
    said = evaluate("model", tasks=tasks, status=1)
    assert "warning: local_absent: its data is not in the Hugging Face cache" in said
    assert "1 task could not be run (local_absent); the scores of the others are kept" in said
    assert [each["key"]["task"] for each in kept()] == ["local_choice"]
    evaluate("model", tasks=tasks, status=1)
    assert measured == ["local_absent", "local_choice", "local_absent"]


@pytest.mark.usefixtures("home")
def test_an_interruption_keeps_what_was_measured(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = harness.run_task

    def interrupted(model: Any, catalogue: Any, spec: Any, *args: Any) -> Any:
        if spec.name == "local_texts":
            raise KeyboardInterrupt
        return counting(model, catalogue, spec, *args)

    with monkeypatch.context() as patched:
        patched.setattr(harness, "run_task", interrupted)
        evaluate("model", tasks="local_choice,local_texts", status=130)
    assert len(kept()) == 1
    evaluate("model", tasks="local_choice,local_texts")
    assert measured == ["local_choice", "local_texts"]


@pytest.mark.usefixtures("home")
def test_a_damaged_score_is_named() -> None:
    evaluate("model")
    (file,) = Path("scores").glob("*.json")
    file.write_text(file.read_text()[:40])
    assert f"{file} is not JSON" in evaluate("model", status=2)


@pytest.mark.usefixtures("home", "_local_tasks_only")
def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    said = drprune(
        "evaluate", "model", "--tasks", "local_choise", "--task-path", "tasks",
        "--output", "scores", status=2,
    )  # fmt: skip
    assert "has no task local_choise; did you mean local_choice" in said
    assert not Path("scores").exists()


@pytest.mark.usefixtures("home")
def test_without_lm_eval_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_evaluation, "find_spec", lambda _: None)
    assert "pip install 'drpruning[eval]'" in evaluate("model", status=2)


def test_the_models_of_a_run_have_their_scores_in_its_folder(
    home: Path, recipe_values: dict[str, Any]
) -> None:
    values = only_pretraining(recipe_values)
    values["evaluate"] = {"tasks": ["local_choice"], "task_path": str(home / "tasks")}
    folder = run(values, "prepare", "pretrain", "evaluate")
    results = kept(str(folder / "evaluation/tasks"))
    assert {each["model"] for each in results} == {"source", "model"}
    assert load_run(folder).evaluations.keys() == {"source", "model"}
    saved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert saved["evaluate"]["tasks"] == ["local_choice"]
    said = drprune("compare", folder, "model", "--tasks", "local_choice", "--task-path", "tasks",
                   "--prompts", "prompts.yaml", "--data", folder)  # fmt: skip
    assert "over 5 pairs of task and prompt" in said
    assert len(kept(str(folder / "evaluation/tasks"))) == 2 + 2 * 5


@pytest.mark.usefixtures("_local_tasks_only")
def test_a_recipes_unknown_task_is_found_before_training(
    home: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    values = only_pretraining(recipe_values)
    values["evaluate"] = {"tasks": ["local_choise"], "task_path": str(home / "tasks")}
    said = drprune("run", write(values, tmp_path / "recipe.yaml"), status=2)
    assert "evaluate.tasks: lm-eval" in said
    assert not (Path(parse_recipe(values).output) / "model").exists()


def test_a_run_with_a_task_that_fails_is_complete_and_ends_with_status_1(
    home: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    values = only_pretraining(recipe_values)
    values["evaluate"] = {"tasks": ["local_absent"], "task_path": str(home / "tasks")}
    said = drprune("run", write(values, tmp_path / "recipe.yaml"), status=1)
    assert "1 task could not be run (local_absent)" in said
    assert (Path(values["output"]) / "report.html").is_file()


def compare(*targets: str, status: int = 0) -> str:
    return drprune(
        "compare", *targets, "--tasks", "local_choice@1", "--task-path", "tasks",
        "--prompts", "prompts.yaml", "--output", "scores", status=status,
    )  # fmt: skip


@pytest.mark.usefixtures("home")
def test_two_models_are_compared_under_every_prompt(measured: list[str]) -> None:
    other_model("other", 1)
    said = compare("model", "other")
    assert len(measured) == 2 * 5
    assert "over 5 pairs of task and prompt" in said
    assert "bootstrap over pairs: 95% from" in said
    assert "bootstrap over documents: 95% from" in said
    assert {each["prompt"] for each in kept()} == {1, 2, 3, 4, 5}
    assert said.endswith(compare("model", "other")), "the same numbers from what is kept"
    assert len(measured) == 2 * 5


@pytest.mark.usefixtures("home")
def test_pairs_of_models_are_pooled_and_equal_models_do_not_differ() -> None:
    shutil.copytree("model", "copy")
    for number, name in enumerate(("a", "b")):
        other_model(name, number)
    said = compare("model", "copy", "a", "b")
    assert "over 5 pairs of task and prompt: no t-test, as all differences are equal" in said
    assert "bootstrap over documents: 95% from +0.00 to +0.00, p 1" in said
    assert "All pairs together: difference" in said
    assert "over 10 pairs of task and prompt" in said
