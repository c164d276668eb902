"""`drprune init`: what it asks, what it proposes, and that the recipe it writes works."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drpruning.cli import init
from drpruning.cli.commands import app
from drpruning.common.errors import BadInput
from drpruning.pipeline.draft_inputs import FoundDomain, find_domains, find_model
from drpruning.pipeline.recipe_draft import propose_shares, propose_sizes, read_target
from drpruning.pruning import ModelShape
from drpruning.recipe import Recipe, load_recipe
from drpruning.recipe.json_schema import recipe_schema
from drpruning.recipe.yaml_io import read_yaml
from helpers.json_schema import accepts

DOMAINS = {"numbers", "colours", "animals"}
LINE = json.dumps({"text": "one two three " * 20}) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def drprune(*arguments: str | Path, answers: str = "", status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=answers)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def written(file: Path = Path("recipe.yaml")) -> Recipe:
    assert accepts(recipe_schema(), read_yaml(file, "recipe"), recipe_schema())
    return load_recipe(file)


def texts(place: Path, *names: str) -> Path:
    """Files of text of these names, below a folder."""
    for name in names:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LINE)
    return place


# The recipe.


@pytest.mark.usefixtures("folder")
def test_what_it_writes_is_planned_and_run(model_folder: Path, text_folder: Path) -> None:
    flags = ["--model", model_folder, "--domain", text_folder, "--yes"]
    said = drprune("init", *flags, "--prune-steps", "2", "--pretrain-steps", "2")
    assert said.endswith("next: drprune plan recipe.yaml what it will do, and what cannot work "
                         "drprune run recipe.yaml does it")  # fmt: skip
    recipe = written()
    assert set(recipe.data.domains) == DOMAINS
    assert recipe.model.target is not None
    assert recipe.model.target.is_resolved
    assert "numbers" in drprune("plan", "recipe.yaml")
    drprune("run", "recipe.yaml")
    assert (Path(recipe.output) / "model" / "config.json").is_file()


@pytest.mark.usefixtures("folder")
def test_every_line_of_the_recipe_is_explained(model_folder: Path, text_folder: Path) -> None:
    drprune("init", "--model", model_folder, "--domain", text_folder, "--yes")
    lines = Path("recipe.yaml").read_text().splitlines()
    assert lines[0].startswith("# Prunes a model")
    settings = [line for line in lines if line.startswith("  ") and line.endswith(("0", "e"))]
    unexplained = [line for line in settings if "#" not in line and not line.startswith("    ")]
    assert unexplained == []
    assert any(line.strip().startswith("# distill: none") for line in lines)


@pytest.mark.usefixtures("folder")
def test_the_first_line_leads_editors_to_a_schema_beside_it(
    model_folder: Path, text_folder: Path
) -> None:
    drprune("schema", "--output", "recipe.schema.json")
    drprune("init", "--model", model_folder, "--domain", text_folder, "--yes")
    first = Path("recipe.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert set(written().data.domains) == DOMAINS


@pytest.mark.usefixtures("folder")
def test_flags_say_everything(model_folder: Path, text_folder: Path) -> None:
    numbers, colours = text_folder / "numbers.jsonl", text_folder / "colours.jsonl"
    drprune(
        "init", "other.yaml", "--model", model_folder, "--domain", f"counts={numbers}",
        "--domain", colours, "--target", "{num_layers: 2, hidden_size: 24}",
        "--prune-steps", "30", "--pretrain-steps", "70", "--output", "out",
    )  # fmt: skip
    recipe = written(Path("other.yaml"))
    assert list(recipe.data.domains) == ["counts", "colours"]
    assert recipe.model.target is not None
    assert recipe.model.target.dimensions() == {"num_layers": 2, "hidden_size": 24}
    assert {name: phase.steps for name, phase in recipe.phases.items()} == {
        "prune": 30,
        "pretrain": 70,
    }
    assert recipe.output == "out"


@pytest.mark.usefixtures("folder")
def test_nothing_is_pruned_on_request(model_folder: Path, text_folder: Path) -> None:
    flags = ["--model", model_folder, "--domain", text_folder, "--output", "o"]
    drprune("init", *flags, "--params", "none", "--pretrain-steps", "9")
    recipe = written()
    assert recipe.model.target is None
    assert list(recipe.phases) == ["pretrain"]
    assert "distill" not in Path("recipe.yaml").read_text()
    drprune("plan", "recipe.yaml")


@pytest.mark.usefixtures("folder")
def test_neither_asking_nor_planning_needs_torch(model_folder: Path, text_folder: Path) -> None:
    arguments = ["init", "--model", str(model_folder), "--domain", str(text_folder), "--yes"]
    code = (
        f"import sys\nfrom drpruning.cli.commands import app\ntry: app({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# What is there already, and answers that are missing.


@pytest.mark.usefixtures("folder")
def test_an_existing_file_is_replaced_by_force_alone(model_folder: Path, text_folder: Path) -> None:
    flags = ["--model", model_folder, "--domain", text_folder, "--yes"]
    Path("recipe.yaml").write_text("mine")
    assert "recipe.yaml: exists; name another file, or replace it with --force" in drprune(
        "init", *flags, status=2
    )
    assert Path("recipe.yaml").read_text() == "mine"
    drprune("init", *flags, "--force")
    assert written().model.source == str(model_folder)
    os.symlink("recipe.yaml", "link.yaml")  # noqa: PTH211
    assert "symbolic link" in drprune("init", "link.yaml", *flags, "--force", status=2)


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ([], "give --model, --domain, --target, --prune-steps, --pretrain-steps, --output; --yes"),
        (["--yes"], "give --model, --domain"),
        (["--yes", "--model", "m"], "give --domain"),
        (["--model", "m", "--domain", "t", "--params", "1B", "--output", "o", "--prune-steps", "1"],
         "give --pretrain-steps; --yes"),
        (["--model", "m", "--domain", "t", "--params", "none", "--output", "o"],
         "give --pretrain-steps; --yes"),
    ],
)  # fmt: skip
def test_without_a_terminal_missing_flags_are_named(
    folder: Path, flags: list[str], missing: str
) -> None:
    said = drprune("init", *flags, status=2)
    assert f"there is no terminal to ask on: {missing}" in said
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("folder")
def test_answers_that_cannot_work_are_asked_for_again(
    model_folder: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "can_ask", lambda: True)
    answers = [
        "no/such/model", str(model_folder),
        "gone.jsonl", "x" * 5000, str(text_folder / "numbers.jsonl"),
        f"numbers={text_folder / 'animals.jsonl'}", f"twin={text_folder / 'numbers.jsonl'}",
        f"colours={text_folder / 'colours.jsonl'}", "",
        "9T", "{num_layers: 3}", "6000", "7", "1",
        "none", "12", "30",
        str(model_folder), "runs/mine",
    ]  # fmt: skip
    said = drprune("init", answers="\n".join(answers) + "\n")
    for words in (
        "no/such/model is no folder", "gone.jsonl", "File name too long",
        "there are two domains numbers",
        "is used by data.domains.numbers too", "--target", "model's own shape",
        "write a number from 1 to",
        "none: write a number of steps",
        "output:",
    ):  # fmt: skip
        assert words in said, words
    recipe = written()
    assert list(recipe.data.domains) == ["numbers", "colours"]
    assert {name: phase.steps for name, phase in recipe.phases.items()} == {
        "prune": 12,
        "pretrain": 30,
    }
    assert recipe.output == "runs/mine"


def test_questions_that_end_early_leave_nothing(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "can_ask", lambda: True)
    assert "interrupted" in drprune("init", answers=f"{model_folder}\n", status=130)
    assert list(folder.iterdir()) == []


# What is found and proposed.


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/x.jsonl", "b/deep/y.txt", "c.parquet.md", ".hidden/z.txt"],
         {"a": ("a", None), "b": ("b", None)}),
        (["a.jsonl", "b.txt.gz"], {"a": ("a.jsonl", None), "b": ("b.txt.gz", None)}),
        (["web-00001-of-00002.jsonl", "web-00002-of-00002.jsonl"], {"text": ("", None)}),
        (["train.jsonl", "validation.jsonl"], {"text": ("train.jsonl", "validation.jsonl")}),
        (["en/train.jsonl.zst", "en/dev.jsonl.zst", "en/test.jsonl", "de/1.txt", "de/2.txt"],
         {"de": ("de", None), "en": ("en/train.jsonl.zst", "en/dev.jsonl.zst")}),
        (["a/x.txt", "more words.txt"], {"a": ("a", None), "more-words": ("more words.txt", None)}),
    ],
)  # fmt: skip
def test_domains_of_a_folder(
    folder: Path, files: list[str], expected: dict[str, tuple[str, str | None]]
) -> None:
    texts(folder / "text", *files)
    found = find_domains("text/", "no-tokenizer")
    shown = {d.name: (d.source.removeprefix("text").lstrip("/"), d.validation) for d in found}
    wanted = {n: (s, v if v is None else f"text/{v}") for n, (s, v) in expected.items()}
    assert shown == wanted
    readable = [d for d in found if not d.source.endswith((".gz", ".zst"))]
    assert all(d.tokens for d in readable)


def test_a_named_folder_is_one_domain(folder: Path) -> None:
    texts(folder, "t/a/x.jsonl", "t/b/y.jsonl")
    assert [(d.name, d.source) for d in find_domains("all=t", "m")] == [("all", "t")]


@pytest.mark.usefixtures("folder")
def test_datasets_on_the_hub_and_addresses_are_domains_of_unknown_size() -> None:
    (hub,) = find_domains("uonlp/CulturaX", "m")
    (remote,) = find_domains("web=memory://bucket/web/*.jsonl", "m")
    assert (hub.name, hub.on_hub, hub.tokens) == ("CulturaX", True, None)
    assert (remote.name, remote.on_hub, remote.tokens) == ("web", False, None)
    assert propose_shares([hub, remote]) == {"CulturaX": 0.5, "web": 0.5}


@pytest.mark.parametrize("text", ["", "a=", "gone", "gone/deep/er.jsonl", "empty", "$NOT_SET/x"])
def test_text_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(BadInput):
        find_domains(text, "m")


@pytest.mark.parametrize("sizes", [[5, 5], [10**9, 1, 1], [3, 7, 11, 13], [1]])
def test_shares_follow_the_sizes_and_sum_to_one(sizes: list[int]) -> None:
    domains = [FoundDomain(f"d{i}", "x", tokens=size) for i, size in enumerate(sizes)]
    shares = propose_shares(domains)
    assert math.isclose(math.fsum(shares.values()), 1, abs_tol=1e-9)
    for domain, size in zip(domains, sizes, strict=True):
        assert shares[domain.name] == pytest.approx(size / sum(sizes), abs=2e-4)
        assert shares[domain.name] > 0


@pytest.mark.parametrize("tokens", [3000, 10**5, 10**7, 10**9, 10**12, None])
@pytest.mark.parametrize("prunes", [True, False])
def test_sizes_read_the_text_about_once(
    model_folder: Path, tokens: int | None, prunes: bool
) -> None:
    model = find_model(str(model_folder))
    domains = [FoundDomain("a", "x", tokens=tokens), FoundDomain("b", "y", tokens=tokens)]
    sizes = propose_sizes(model, domains, prunes=prunes)
    assert sizes.sequence_length <= 64
    phases = ["prune", "pretrain"] if prunes else ["pretrain"]
    planned = sum(sizes.tokens(phase, sizes.steps[phase]) for phase in phases)
    assert sizes.global_batch["prune"] % 4 == 0
    if tokens is not None and tokens > 10**6:
        assert planned <= 1.1 * 2 * tokens
    assert sizes.steps["prune"] <= 3200
    assert 16 <= sizes.validation_blocks <= 500


def test_targets_as_people_write_them(model_folder: Path) -> None:
    shape = ModelShape.of(model_folder)
    target, proposals = read_target("8K", shape)
    assert target.params == 8000
    assert proposals[0].shape.num_parameters() == pytest.approx(8000, rel=0.1)
    assert read_target("{num_layers: 2}", shape)[0].dimensions() == {"num_layers": 2}
    assert read_target("{params: 8K, num_layers: 2}", shape)[1][0].shape.num_layers == 2
    for text, words in {
        "{num_layerz: 2}": "num_layerz: unknown key; did you mean 'num_layers'",
        "{num_layers: 9}": "--target",
        "{num_layers: 3}": "own shape",
        "0": "greater than 0",
        "[1": "not valid YAML",
        "[1]": "--target: write dimensions",
        "9T": "--target",
        str(model_folder): "own shape",
    }.items():
        with pytest.raises(BadInput, match="--target") as error:
            read_target(text, shape)
        assert words in str(error.value), text


@pytest.mark.usefixtures("folder")
def test_paths_stay_what_they_were(model_folder: Path, text_folder: Path) -> None:
    numbers, colours = text_folder / "numbers.jsonl", text_folder / "colours.jsonl"
    model = ["--model", model_folder, "--yes", "--force"]
    drprune("init", *model, "--domain", numbers)
    assert [d.source for d in written().data.domains.values()] == [str(numbers)]
    drprune("init", *model, "--domain", numbers, "--domain", colours)
    data = written().data
    assert data.root == str(text_folder)
    assert [d.source for d in data.domains.values()] == ["numbers.jsonl", "colours.jsonl"]
    Path("own.jsonl").write_text(colours.read_text())
    drprune("init", *model, "--domain", numbers, "--domain", "own.jsonl")
    data = written().data
    assert data.root is None
    assert [d.source for d in data.domains.values()] == [str(numbers), "own.jsonl"]


def test_the_recipe_reads_odd_names_back(
    folder: Path, model_folder: Path, text_folder: Path
) -> None:
    odd: Any = "it's: #1, {text}.jsonl"
    (folder / odd).write_text((text_folder / "numbers.jsonl").read_text())
    drprune("init", "--model", model_folder, "--domain", odd, "--yes", "--output", "a: b #c")
    recipe = written()
    assert [domain.source for domain in recipe.data.domains.values()] == [odd]
    assert recipe.output == "a: b #c"
