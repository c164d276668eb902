"""Attention and fused kernels that a recipe names: the same losses, or a clear refusal."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from drpruning.common.errors import BadInput
from drpruning.models.kernels import use_default_attention, use_kernels
from drpruning.models.loading import load_model
from drpruning.pruning import ModelShape, attach_masks
from drpruning.recipe import Training, parse_recipe
from helpers.small_runs import run, variant

TOKENS = torch.arange(22).view(2, 11)


def bound_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    """As Liger does it: one operation that reads the module's weight and epsilon."""
    norm.calls += 1
    return nn.functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands for Liger: it binds other forward methods to the norms of an instance."""

    def apply(model: LlamaForCausalLM) -> None:
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.calls = 0
                norm.forward = MethodType(bound_norm, norm)

    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    patch._apply_liger_kernel_to_instance = apply
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patch.__name__, patch)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return patch


def both_phases(values: dict[str, Any], name: str, **training: Any) -> Path:
    """Both phases of the recipe under other settings; returns the run folder."""
    return run(variant(values, name, **training), "prune", "pretrain")


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [r["loss"] for r in records if r["kind"] == "step"]


def small(family: str) -> Any:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
             "pad_token_id": 0}  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


@pytest.mark.slow
def test_eager_attention_gives_the_losses_of_sdpa(recipe_values: dict[str, Any]) -> None:
    folders = [both_phases(recipe_values, name, attention=name) for name in ("eager", "sdpa")]
    eager, sdpa = map(losses, folders)
    assert eager == pytest.approx(sdpa, abs=1e-4)
    for stage in ("pruned", "model"):
        assert "attn_implementation" not in (folders[0] / stage / "config.json").read_text()


def test_attention_is_what_the_recipe_names_until_the_export(model_folder: Path) -> None:
    model = load_model(str(model_folder), training=Training(attention="eager"))
    assert model.config._attn_implementation == "eager"
    use_default_attention(model)
    assert model.config._attn_implementation == "sdpa"
    capped = small("gemma2")
    use_kernels(capped, Training(attention="flex_attention"))
    use_default_attention(capped)
    assert capped.config._attn_implementation == "eager"


@pytest.mark.parametrize("training", [None, Training()])
def test_soft_caps_are_computed_whatever_transformers_takes_by_default(
    training: Training | None, tmp_path: Path
) -> None:
    small("gemma2").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), training=training)
    assert model.config._attn_implementation == "eager"
    with suppress(ValueError):  # newer Transformers refuse it
        model.set_attn_implementation("sdpa")
    use_kernels(model, training)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_missing_flash_attention_is_refused_and_never_fetched(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was fetched")

    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda: True)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    with pytest.raises(BadInput, match=rf"training\.attention: {name} needs .* package flash-attn"):
        load_model(str(model_folder), training=Training(attention=name))


def test_attention_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(BadInput, match=r"training\.attention: sdpa does not work for gemma2"):
        use_kernels(small("gemma2"), Training(attention="sdpa"))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"attention": "flash"}, "training.attention: "),
        ({"attention": "owner/kernel"}, "training.attention: "),
        ({"attention": "flash_attention_2", "precision": "fp32"}, "no float32 arithmetic"),
    ],
)
def test_recipe_refuses_attention_that_cannot_work(
    recipe_values: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    recipe_values["training"].update(training)
    with pytest.raises(BadInput, match=message):
        parse_recipe(recipe_values)


@pytest.mark.usefixtures("liger")
def test_masks_act_through_fused_norms(model_folder: Path) -> None:
    outputs = []
    for fused in (False, True):
        model = load_model(str(model_folder), training=Training(liger=fused))
        masked = attach_masks(model, ModelShape.of(model).pruned_to(hidden_size=16), seed=3)
        with torch.no_grad():
            masked.masks.log_alpha["hidden"].copy_(torch.linspace(-4, 4, 32))
        masked.train()
        masked(input_ids=TOKENS, labels=TOKENS).loss.backward()
        gradient = masked.masks.log_alpha["hidden"].grad
        masked.use_masks("target")
        outputs.append((masked(input_ids=TOKENS).logits, gradient, masked.export().eval()))
    calls = model.model.layers[0].input_layernorm.calls
    assert calls > 2
    (plain, gradient, exported), (fused, fused_gradient, fused_exported) = outputs
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused_gradient, gradient, atol=1e-5, rtol=1e-3)
    states = exported.state_dict(), fused_exported.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.usefixtures("liger")
def test_run_with_fused_kernels_has_the_losses_of_the_plain_one(
    recipe_values: dict[str, Any],
) -> None:
    folders = [both_phases(recipe_values, f"run-{fused}", liger=fused) for fused in (False, True)]
    plain, fused = map(losses, folders)
    assert fused == pytest.approx(plain, abs=1e-4)


def test_liger_that_cannot_work_is_refused(
    liger: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("gemma2")
    with pytest.raises(BadInput, match=r"training\.liger: Liger has no kernels for gemma2"):
        use_kernels(model, Training(liger=True))
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"training\.liger: .* need a GPU"):
        use_kernels(small("llama"), Training(liger=True))
    monkeypatch.setitem(sys.modules, liger.__name__, None)
    with pytest.raises(BadInput, match=r"training\.liger: needs the package liger-kernel"):
        use_kernels(small("llama"), Training(liger=True))
