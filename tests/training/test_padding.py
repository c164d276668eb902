"""A model's padding token has no part in training: its row is trained like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drpruning.models.loading import load_model
from drpruning.pruning import ModelShape, PruningPlan, apply_plan, attach_masks
from helpers.small_runs import logged, run

EOS = 0


def padded(model: Path, place: Path, pad: int | None) -> Path:
    shutil.copytree(model, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    return place


@pytest.mark.parametrize("phase", ["prune", "pretrain"])
def test_losses_and_the_end_of_documents_do_not_depend_on_it(
    recipe_values: dict[str, Any], model_folder: Path, tmp_path: Path, phase: str
) -> None:
    other = {"prune": "pretrain", "pretrain": "prune"}[phase]
    del recipe_values[other]
    recipe_values[phase]["steps"] = 2
    if phase == "pretrain":
        del recipe_values["model"]["target"]
    results, logs = [], []
    for pad in (None, EOS, 5):
        source = padded(model_folder, tmp_path / f"model-{pad}", pad)
        values = recipe_values | {
            "model": recipe_values["model"] | {"source": str(source)},
            "output": str(tmp_path / f"run-{pad}"),
        }
        folder = run(values, "prepare", phase)
        result = folder / ("pruned" if phase == "prune" else "model")
        assert json.loads((result / "config.json").read_text())["pad_token_id"] == pad
        results.append(load_file(result / "model.safetensors")["model.embed_tokens.weight"])
        logs.append(logged(folder))
    assert logs[0] == logs[1] == logs[2]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    if phase == "pretrain":
        before = load_file(model_folder / "model.safetensors")["model.embed_tokens.weight"]
        assert (results[0] - before)[EOS].abs().max() > 0


def test_the_row_has_a_gradient_in_every_model_that_is_made(
    model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(str(padded(model_folder, tmp_path / "model", EOS)))
    shape = ModelShape.of(model)
    masked = attach_masks(model, shape.pruned_to(num_layers=2))
    plan: PruningPlan = masked.plan()
    exported = masked.export()
    cut = apply_plan(load_model(str(tmp_path / "model")), plan)
    tokens = torch.tensor([[3, EOS, 4, EOS]])
    for made in (load_model(str(tmp_path / "model")), exported, cut):
        assert made.config.pad_token_id == EOS
        made(input_ids=tokens, labels=tokens).loss.backward()
        gradient = made.get_input_embeddings().weight.grad
        assert gradient is not None
        assert gradient[EOS].abs().sum() > 0
