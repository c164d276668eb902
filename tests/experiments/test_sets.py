"""Sets of experiments: every variant is a command of the package, and starts are made once."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from held_out import split_text

from drpruning.common.errors import BadInput
from drpruning.recipe import Recipe, load_recipe
from drpruning.runs.folder import RunFolder
from experiments import one_shot, random_weights, run
from experiments.run import HERE, Experiments
from helpers.fake_run import FakeRun
from helpers.small_runs import drprune, write

DOMAINS = ("cc", "c4-rp", "github", "book", "wiki", "arxiv", "stackexchange")
SETS = sorted(
    path.stem for path in HERE.glob("*.yaml") if "variants" in yaml.safe_load(path.read_text())
    or "like" in yaml.safe_load(path.read_text())
)  # fmt: skip


class InThisThread(nullcontext[Any]):
    """Stands for a pool of threads."""

    def __enter__(self) -> "InThisThread":
        return self

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterable[Any]:
        return map(function, values)


def experiments(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiments:
    """A set whose pruning runs have measured some losses."""
    losses = dict.fromkeys(DOMAINS, 3.0)
    monkeypatch.setattr(Experiments, "_source_losses", lambda *_: losses)
    return Experiments(name, tmp_path / "models", tmp_path / "text", tmp_path / "work")


def recipe_in(command: list[str]) -> Recipe:
    """The recipe that a command names, with its changes."""
    position = next(i for i, part in enumerate(command) if part.endswith(".yaml"))
    changes = command[position + 1 :]
    assert changes[::2] == ["--set"] * (len(changes) // 2)
    return load_recipe(command[position], changes[1::2])


@pytest.mark.parametrize("name", SETS)
def test_every_variant_of_every_set_is_a_recipe_that_the_package_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = experiments(name, tmp_path, monkeypatch)
    outputs = set()
    for variant in these.variants:
        command = these.command(variant, 7)
        assert command[1] == "run"
        recipe = recipe_in(command)
        assert recipe.training.seed == 7
        assert Path(recipe.output) == tmp_path / "work" / name / variant / "7"
        assert not {"MODELS", "WORK"} & set(str(recipe.model.source).split("/"))
        outputs.add(recipe.output)
    assert len(outputs) == len(these.variants)
    for command in these.starts([7], list(these.variants)).values():
        if "random_weights.py" not in command[1]:
            assert recipe_in(command).prune is not None


def test_each_kind_of_start_is_made_before_the_runs_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = experiments("scratch-en7", tmp_path, monkeypatch)
    work, models = tmp_path / "work" / "scratch-en7", tmp_path / "models"
    chosen = ["learned", "taylor", "default-taylor", "random"]
    starts = these.starts([1, 2], chosen)
    assert list(starts) == [
        *(work / "prune" / seed / "pruned" for seed in "12"),
        *(work / "starts" / "one_shot-taylor" / seed / "pruned" for seed in "12"),
        *(work / "starts" / "random-base-3m" / seed / "model" for seed in "12"),
    ]
    one_shot = starts[work / "starts" / "one_shot-taylor" / "2" / "pruned"]
    assert [Path(part).name for part in one_shot[1:4]] == [
        "one_shot.py",
        "taylor",
        "en7-prune.yaml",
    ]
    recipe = recipe_in(one_shot)
    assert recipe.model.source == str(models / "base-8m")
    assert (recipe.training.seed, RunFolder(Path(recipe.output)).pruned) == (
        2, work / "starts" / "one_shot-taylor" / "2" / "pruned",
    )  # fmt: skip
    model = work / "starts" / "random-base-3m" / "1" / "model"
    assert starts[model] == [
        sys.executable, str(HERE / "random_weights.py"), str(models / "base-3m"), str(model),
        "--seed", "1",
    ]  # fmt: skip
    sources = {name: recipe_in(these.command(name, 1)).model.source for name in chosen}
    assert list(map(Path, sources.values())) == [
        work / "prune" / "1" / "pruned",
        work / "starts" / "one_shot-taylor" / "1" / "pruned",
        work / "starts" / "one_shot-taylor" / "1" / "pruned",
        model,
    ]
    kinds = [these.start_of(name) for name in chosen]
    assert kinds == [
        {"prune": "base-8m"}, {"one_shot": "taylor"}, {"one_shot": "taylor"}, {"random": "base-3m"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "steps"), [("scratch-en7", 900), ("ablation-en7", 900), ("main-en7", 600)]
)
def test_variants_that_are_compared_train_on_equally_many_tokens(
    name: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = experiments(name, tmp_path, monkeypatch)
    blocks = set()
    for variant in these.variants:
        phases = list(recipe_in(these.command(variant, 1)).phases.values())
        if "prune" in these.start_of(variant):
            pruning = these.starts([1], [variant])[these._source(variant, 1)]
            phases += recipe_in(pruning).phases.values()
        blocks.add(sum(phase.steps * phase.global_batch for phase in phases))
    assert blocks == {steps * 8}


def test_the_second_source_of_the_main_set_is_what_the_set_of_sources_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiments("source-en7", tmp_path, monkeypatch)
    output = Path(recipe_in(made.command("initial-ratio", 1)).output)
    main, other = (
        experiments(name, tmp_path, monkeypatch) for name in ("main-en7", "main-en7-ratio")
    )
    assert main.variants == other.variants
    source = Path(str(recipe_in(other.command("default", 1)).model.source))
    assert source.resolve() == RunFolder(output).model


@pytest.mark.parametrize("start", [{"one_shots": "taylor"}, "random", {"random": "a", "b": "c"}])
def test_an_unknown_start_is_refused_by_name(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = experiments("scratch-en7", tmp_path, monkeypatch)
    these.variants["odd"] = {"start": start}
    with pytest.raises(BadInput, match=r"variants\.odd\.start: write \{random: NAME\}"):
        these.starts([1], ["odd"])
    these = experiments("pilot-ml8", tmp_path, monkeypatch)
    these.variants["odd"] = {"start": {"one_shot": "taylor"}}
    with pytest.raises(BadInput, match="one_shot needs prune"):
        these.starts([1], ["odd"])


@pytest.mark.parametrize("name", ["en7", "nowhere"])
def test_what_is_no_set_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"{name}\.yaml: no set"):
        Experiments(name, tmp_path, tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_run_is_finished_when_every_phase_of_its_recipe_is(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / "run")
    assert not run._is_finished(fake.folder)
    fake.recipe()
    fake.metrics("prune", total_steps=40, every=20)
    assert not run._is_finished(fake.folder)
    fake.metrics("pretrain", total_steps=40, every=20, until=20)
    assert not run._is_finished(fake.folder)
    fake.metrics("pretrain", total_steps=40, every=20)
    assert run._is_finished(fake.folder)


def test_only_what_is_missing_is_made_and_results_say_what_each_run_started_from(
    recipe_values: dict[str, Any],
    model_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A set of tiny runs, twice; each command is run in this process."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    del recipe_values["data"]["root"]
    text = tmp_path / "text"
    text.mkdir()
    for name, domain in recipe_values["data"]["domains"].items():
        documents = (text_folder / domain["source"]).read_text().splitlines(keepends=True)
        (text / domain["source"]).write_text("".join(documents[:80]))
        (text / f"{name}-held.jsonl").write_text("".join(documents[80:]))
        domain["validation"] = f"{name}-held.jsonl"
    recovery = {k: v for k, v in recipe_values.items() if k != "prune"}
    recovery["model"] = {"source": "SET_BY_RUN"}
    pruning = {k: v for k, v in recipe_values.items() if k != "pretrain"}
    pruning["prune"] = recipe_values["prune"] | {"steps": 2}
    recovery["pretrain"] = recipe_values["pretrain"] | {"steps": 2}
    write(pruning, tmp_path / "prune.yaml")
    write(recovery, tmp_path / "recover.yaml")
    name = model_folder.name
    given = {
        "text": "text",
        "prune": {"recipe": "prune.yaml", "source": name},
        "recipe": "recover.yaml",
        "variants": {
            "cut": {"start": {"one_shot": "magnitude"}, "scheduling.policy": "constant"},
            "random": {"start": {"random": name}, "scheduling.policy": "constant"},
        },
    }
    write(given, tmp_path / "tiny.yaml")
    commands = []

    def in_this_process(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        program = Path(command[1]).name
        if command[0] == run.DRPRUNE:
            drprune(*command[1:])
        else:
            {"one_shot.py": one_shot, "random_weights.py": random_weights}[program].main(
                command[2:]
            )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run, "_run", in_this_process)
    monkeypatch.setattr(run, "ThreadPoolExecutor", InThisThread)  # training sets signal handlers

    def go(*variants: str) -> list[run.Result]:
        these = Experiments("tiny", model_folder.parent, tmp_path, tmp_path / "work")
        these.run([1], list(variants), 1)
        return these.results()

    results = go("cut", "random")
    assert [(r.variant, r.start) for r in results] == [
        ("cut", {"one_shot": "magnitude"}),
        ("random", {"random": name}),
    ]
    assert all(result.source and result.machine for result in results)
    assert all(result.loss.keys() == result.validation.keys() for result in results)
    assert all(result.loss[d] != result.validation[d] for result in results for d in result.loss)
    assert len(commands) == 7  # data of both halves, three starts, two runs
    assert go("cut", "random") == results
    assert len(commands) == 7


def test_no_document_steers_and_is_reported_on(tmp_path: Path) -> None:
    text, folder = tmp_path / "text", tmp_path / "split"
    text.mkdir()
    documents = [f'{{"text": "number {i} \u2028 \x85"}}\n' for i in range(5)]
    (text / "held.jsonl").write_text("".join(documents), encoding="utf-8")
    (text / "train.jsonl").write_text("x\n")
    domains = {"a": {"source": "train.jsonl", "validation": "held.jsonl"}}
    recipe = write({"data": {"domains": domains}}, tmp_path / "recipe.yaml")
    assert split_text(recipe, text, folder) == {"a": "held-test.jsonl"}
    halves = [
        (folder / name).read_text(encoding="utf-8") for name in ("held.jsonl", "held-test.jsonl")
    ]
    assert halves == ["".join(documents[::2]), "".join(documents[1::2])]
    assert (folder / "train.jsonl").read_text() == "x\n"
    (folder / "held-test.jsonl").write_text("kept")
    assert split_text(recipe, text, folder) == {"a": "held-test.jsonl"}
    assert (folder / "held-test.jsonl").read_text() == "kept"
