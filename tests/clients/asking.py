"""Asking other people's software what it makes of a model folder.

Every client has an environment of its own, which `make clients` sets up (environments/NAME.txt).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drpruning.models.loading import load_model
from drpruning.pipeline.apply_plan import cut_model
from drpruning.pruning import ModelShape, attach_masks
from drpruning.recipe import Training

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("CLIENTS", HERE.parents[1] / ".clients"))
IDS = torch.randint(3, 500, (48,), generator=torch.Generator().manual_seed(1)).tolist()
TEXTS = ["The value of an expression is", "  def f(x):\n\treturn x", "Größe 漢字 🙂 <s> a"]
NAMES = (
    "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "phi3", "phi3-longrope",
    "gpt_neox",
)  # fmt: skip
TARGET = {"num_layers": 2, "hidden_size": 256, "intermediate_size": 256, "num_heads": 4}


def python_of(environment: str) -> Path:
    """The interpreter of a client's environment."""
    python = CLIENTS / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing; run `make clients`")
    return python


def run_worker(environment: str, worker: str, argument: Path) -> None:
    """Run a script of workers/ in a client's environment, without a network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python_of(environment), HERE / "workers" / f"{worker}.py", argument],
        env={name: v for name, v in os.environ.items() if name != "PYTHONPATH"} | offline,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def ask(
    environment: str, worker: str, models: dict[str, Path], out: Path, **more: object
) -> dict[str, Any]:
    """Have a client compute the logits of models for `IDS`, and the ids of `TEXTS`.

    Returns:
        Model -> what the worker writes into answers.json, and its `logits`, where it has some.
    """
    out.mkdir(parents=True)
    job = {"models": {n: str(f) for n, f in models.items()}, "ids": IDS, "texts": TEXTS}
    (out / "job.json").write_text(json.dumps(job | {"out": str(out)} | more))
    run_worker(environment, worker, out / "job.json")
    answers: dict[str, Any] = json.loads((out / "answers.json").read_text())
    for name in models:
        if (file := out / f"{name}.npy").exists():
            answers[name]["logits"] = np.load(file)
    return answers


def own_logits(folder: Path) -> np.ndarray:
    """What a model computes for `IDS` here, float64 [tokens, vocabulary]."""
    model = load_model(str(folder), training=Training(attention="eager", precision="fp32"))
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS])).logits[0]
    return logits.double().numpy()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(one - other).max())


def cut(source: Path, output: Path, target: dict[str, int]) -> None:
    """Cut a model to a shape, by a plan drawn at random."""
    model = load_model(str(source))
    plan = attach_masks(model, ModelShape.of(model).pruned_to(**target), seed=3).plan()
    plan.save(output.with_suffix(".json"))
    cut_model(output.with_suffix(".json"), str(source), output)
