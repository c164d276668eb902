"""What comes with a model, a checkpoint or data is never run, and no network is touched unasked."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drpruning.common.errors import BadInput
from drpruning.pipeline.preflight import plan_run
from drpruning.recipe import parse_recipe
from helpers.damaged_places import Place

PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "state.pkl", "rng.npy")
CODE = (
    "modeling_own.py", "configuration_own.py", "tokenization_own.py", "sitecustomize.py",
    "conftest.py", "custom_generate/generate.py", "own_dataset.py",
)  # fmt: skip
CHILD = """
import json, os, signal, sys

folder, arguments = sys.argv[1], json.loads(sys.argv[2])
seen = {"open": [], "pickle": [], "network": []}

def watch(event, details):
    if event == "open" and isinstance(details[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(details[0]))
        if path.startswith(folder + os.sep):
            seen["open"].append(os.path.relpath(path, folder))
    elif event == "pickle.find_class":
        seen["pickle"].append(".".join(map(str, details)))
    elif event in ("socket.connect", "socket.bind", "socket.listen", "socket.getaddrinfo"):
        seen["network"].append(f"{event} {details[1:]}")

os.chdir(folder)
sys.path.append(folder)  # what lies there could be imported, were it ever asked for
sys.addaudithook(watch)
from drpruning.cli.commands import app
from drpruning.training.trainer import Trainer
if stop := os.environ.get("STOP_AFTER"):
    step = Trainer._train_step
    def train_step(self, *given, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given, **named)
    Trainer._train_step = train_step
status = []
for words in arguments:
    try:
        app(words)
    except SystemExit as end:
        status.append(end.code)
print(json.dumps({"status": status, **seen}))
"""


class Marker:
    """Unpickled, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.file), "w")


def plant(folder: Path, marker: Path) -> set[Path]:
    """Put pickles and code into a folder that leave `marker` where they are run."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = {folder / name for name in (*PICKLES, *CODE)}
    for file in planted:
        file.parent.mkdir(exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, np.array([Marker(marker)], dtype=object), allow_pickle=True)
        elif file.suffix == ".py":
            file.write_text(f"open({str(marker)!r}, 'w')\n")
        else:
            file.write_bytes(pickle.dumps(Marker(marker)))
    return planted


def point_to_code(model: Path) -> None:
    """Let a model's JSON files name code of its own."""
    own = {
        "config.json": {
            "AutoConfig": "configuration_own.C",
            "AutoModelForCausalLM": "modeling_own.M",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.T", "tokenization_own.F"]},
    }
    for name, classes in own.items():
        values = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**values, "auto_map": classes}))


def watched(place: Place, *arguments: tuple[str, ...], **environment: str) -> dict[str, Any]:
    """Run commands in one process; what it opened under the place, unpickled and connected to."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(place.folder), json.dumps(arguments)],
        capture_output=True, text=True, check=False, env=own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_nothing_that_is_planted_is_run_and_nobody_is_called(
    tmp_path: Path, text_folder: Path, model_folder: Path
) -> None:
    marker = tmp_path / "ran"
    place = Place(tmp_path / "place", text_folder, model_folder)
    place.recipe["prune"]["steps"] = 2
    place.recipe["data"]["domains"]["numbers"]["source"] = "text"
    (place / "text").mkdir()
    (place / "numbers.jsonl").rename(place / "text/numbers.jsonl")
    place.save()
    point_to_code(place / "model")
    planted = plant(place / "model", marker) | plant(place / "text", marker)
    recipe = "recipe.yaml"

    first = watched(place, ("plan", recipe), ("prepare", recipe), ("prune", recipe), STOP_AFTER="1")
    assert first["status"] == [0, 0, 130]
    checkpoints = [path for path in (place / "out/checkpoints").iterdir() if path.is_dir()]
    assert checkpoints
    for folder in (*checkpoints, *map(place.folder.joinpath, ("out", "out/data", "out/prune"))):
        planted |= plant(folder, marker)

    second = watched(
        place, ("run", recipe), ("evaluate", "out"), ("apply-plan", "out", "model", "cut")
    )
    assert second["status"] == [0, 0, 0]
    assert f"out/checkpoints/{checkpoints[-1].name}/state.json" in second["open"]  # it went on
    assert not marker.exists()
    opened = {place / name for name in (*first["open"], *second["open"])}
    assert place / "model/config.json" in opened
    assert not opened & planted
    for home in ("model", "out/pruned", "out/model", "out/checkpoints", "cut"):
        own = [file for file in opened if file.is_relative_to(place / home)]
        kinds = {file.suffix for file in own if not (file.is_dir() or file.name.startswith("."))}
        assert kinds <= {".json", ".safetensors", ".jinja", ".md"}, (home, kinds)
    assert first["pickle"] + second["pickle"] == []
    assert first["network"] + second["network"] == []


def test_a_plan_warns_of_code_that_a_model_names(
    tmp_path: Path, text_folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "place", text_folder, model_folder)
    monkeypatch.chdir(place.folder)
    assert not [w for w in plan_run(parse_recipe(place.recipe)).warnings if "auto_map" in w]
    point_to_code(place / "model")
    plan = plan_run(parse_recipe(place.recipe))
    assert plan.problems == []
    for file in ("config.json", "tokenizer_config.json"):
        assert [w for w in plan.warnings if w.startswith(f"model.source: {file} names code")]


@pytest.mark.parametrize("field", ["model.source", "MODEL"])
def test_an_index_cannot_lead_to_pickles(
    tmp_path: Path, text_folder: Path, model_folder: Path, field: str
) -> None:
    from drpruning.models.loading import load_model

    marker = tmp_path / "ran"
    place = Place(tmp_path / "place", text_folder, model_folder)
    plant(place / "model", marker)
    (place / "model/model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    place.write("model/model.safetensors.index.json", json.dumps(index))
    with pytest.raises(BadInput, match=rf"{field}: .*index.json names 'pytorch_model.bin'"):
        load_model(str(place / "model"), field)
    assert not marker.exists()
