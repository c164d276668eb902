"""A model's revision on the Hub: where it is used, and that paths are left alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

from drpruning.common.errors import BadInput
from drpruning.common.hub import split_revision
from drpruning.models.files import check_files, read_config
from drpruning.pipeline.targets import plan_recipe
from drpruning.recipe import Recipe, parse_recipe
from drpruning.recipe.changes import differences, fixed_settings

COMMITS = {"main": "a" * 40, "v1.0": "b" * 40}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("org/tiny", ("org/tiny", "main")),
        ("org/tiny@v1.0", ("org/tiny", "v1.0")),
        ("org/tiny@refs/pr/3", ("org/tiny", "refs/pr/3")),
        ("tiny@" + "c" * 40, ("tiny", "c" * 40)),
        ("org/tiny@", ("org/tiny@", "main")),
        ("org/tiny@../../x", ("org/tiny@../../x", "main")),
        ("org/tiny@/x", ("org/tiny@/x", "main")),
        ("org/tiny@a b", ("org/tiny@a b", "main")),
        ("/models/tiny@v1.0", ("/models/tiny@v1.0", "main")),
        ("../tiny@v1.0", ("../tiny@v1.0", "main")),
        ("", ("", "main")),
        ("a\0b@v1", ("a\0b@v1", "main")),
    ],
)
def test_only_a_name_on_the_hub_has_a_revision(name: str, parts: tuple[str, str]) -> None:
    assert split_revision(name) == parts


def test_a_folder_with_such_a_name_is_that_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "tiny@v1.0")
    monkeypatch.chdir(tmp_path)
    assert split_revision("tiny@v1.0") == ("tiny@v1.0", "main")
    assert read_config("tiny@v1.0", "model.source")["num_hidden_layers"] == 3


def test_a_folder_has_no_revisions(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"^MODEL: tiny is on this machine, .* leave @v1\.0 out"):
        read_config("tiny@v1.0", "MODEL")


def recipe(**model: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"source": "org/tiny"} | model,
            "data": {"domains": {"a": {"source": "a.txt", "share": 1.0}}},
            "pretrain": {"steps": 2},
            "output": "out",
        }
    )


def test_the_tokenizer_follows_the_revision_unless_it_is_another_models() -> None:
    assert recipe().model.reference == recipe().model.tokenizer_source == "org/tiny"
    model = recipe(revision="v1.0").model
    assert model.reference == model.tokenizer_source == "org/tiny@v1.0"
    assert recipe(revision="v1.0", tokenizer="org/b").model.tokenizer_source == "org/b"


def test_a_run_does_not_change_its_revision() -> None:
    now, saved = fixed_settings(recipe(revision="v1.0")), fixed_settings(recipe())
    assert differences(now, saved) == ["model.revision (saved None, now 'v1.0')"]
    assert parse_recipe(yaml.safe_load(recipe(revision="v1.0").to_yaml())).model.revision == "v1.0"


def test_a_nested_target_starts_from_a_folder_with_the_tokenizer_of_the_revision(
    recipe_values: dict[str, Any], model_folder: Path
) -> None:
    recipe_values["model"] = {
        "source": "org/tiny",
        "revision": "v1.0",
        "shape": json.loads((model_folder / "config.json").read_text()),
        "targets": {"large": {"num_layers": 2}, "small": {"num_layers": 1}},
    }
    large, small = plan_recipe(parse_recipe(recipe_values)).plans.values()
    assert large.recipe.model.reference == "org/tiny@v1.0"
    assert small.recipe.model.revision is None
    assert small.recipe.model.reference == str(Path(recipe_values["output"]) / "large/pruned")
    assert small.recipe.model.tokenizer_source == "org/tiny@v1.0"


def test_a_repository_without_config_is_named_for_what_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    def download(name: str, _file: str, *, revision: str) -> str:
        asked.append((name, revision))
        error = RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        raise error  # its constructor wants a response of the HTTP library of the day

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(BadInput, match=r"^MODEL: org/tiny-GGUF@v2 on the Hub has no config\.json"):
        read_config("org/tiny-GGUF@v2", "MODEL")
    assert asked == [("org/tiny-GGUF", "v2")]


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path) -> Path:
    """A cache of the Hub with two revisions of a model: other weights, other tokenizers."""
    home = tmp_path / "hub/models--org--tiny"
    for revision, commit in COMMITS.items():
        snapshot = home / "snapshots" / commit
        shutil.copytree(model_folder, snapshot)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / revision).write_text(commit)
    snapshot = home / "snapshots" / COMMITS["v1.0"]
    weights = load_file(snapshot / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, snapshot / "model.safetensors", {"format": "pt"})
    content = json.loads((snapshot / "tokenizer.json").read_text())
    content["model"]["vocab"]["seventeen"] = content["model"]["vocab"].pop("seven")
    (snapshot / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 48}))
    return tmp_path / "hub"


CHILD = """
import json, sys
from drpruning.data.tokenization import tokenizer_digest
from drpruning.models.files import read_config
from drpruning.models.loading import check_loadable, load_model
from drpruning.models.tokenizer import vocabulary
for name in sys.argv[1:]:
    check_loadable(name, "MODEL")
    print(json.dumps({
        "positions": read_config(name, "MODEL")["max_position_embeddings"],
        "norm": float(load_model(name).model.norm.weight.mean()),
        "has_seventeen": "seventeen" in vocabulary(name, "MODEL"),
        "digest": tokenizer_digest(name),
    }))
"""


def offline(hub: Path, *arguments: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_config_weights_and_tokenizer_are_those_of_the_revision(hub: Path) -> None:
    names = ("org/tiny", "org/tiny@v1.0", f"org/tiny@{COMMITS['v1.0']}")
    main, tag, commit = map(json.loads, offline(hub, "-c", CHILD, *names).splitlines())
    assert (main["positions"], main["norm"], main["has_seventeen"]) == (64, 1.0, False)
    assert (tag["positions"], tag["norm"], tag["has_seventeen"]) == (48, 2.0, True)
    assert main["digest"] != tag["digest"]
    assert tag == commit


def test_files_that_only_one_revision_has_are_of_that_revision(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "models--org--tiny/snapshots" / COMMITS["v1.0"] / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_files("org/tiny", "MODEL")
    with pytest.raises(BadInput, match=r"^MODEL: org/tiny@v1\.0 is an adapter"):
        check_files("org/tiny@v1.0", "MODEL")


@pytest.mark.slow
def test_a_run_of_a_revision(hub: Path, recipe_values: dict[str, Any], tmp_path: Path) -> None:
    del recipe_values["prune"]
    recipe_values["pretrain"] |= {"steps": 2, "learning_rate": 1e-9}
    recipe_values["model"] = {"source": "org/tiny", "revision": "v1.0"}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values))
    command = ("-m", "drpruning.cli")
    assert "org/tiny@v1.0" in offline(hub, *command, "plan", str(file))
    offline(hub, *command, "run", str(file))
    output = Path(recipe_values["output"])
    weights = load_file(output / "model/model.safetensors")
    assert float(weights["model.norm.weight"].mean()) == pytest.approx(2.0, abs=1e-3)
    assert "seventeen" in (output / "model/tokenizer.json").read_text()
    assert json.loads((output / "evaluation/source.json").read_text())["path"] == "org/tiny@v1.0"
    assert "org/tiny@v1.0" in (output / "model/README.md").read_text()


def test_plan_names_quantized_weights_of_the_hub(
    hub: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """The small files say so, before the weights are fetched and the data are prepared."""
    file = hub / "models--org--tiny/snapshots" / COMMITS["main"] / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"quantization": {"bits": 4, "group_size": 64}}))
    recipe_values["model"]["source"] = "org/tiny"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    command = [sys.executable, "-m", "drpruning.cli", "plan", str(recipe)]
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "model.source: the config.json of org/tiny has a quantization of MLX" in done.stderr
