"""A result that another program could not read is refused before it is kept."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

from tiny_models import tiny

from drpruning.common.errors import TrainingError
from drpruning.models import result
from drpruning.models.layout import LayoutError, check_layout
from drpruning.models.loading import load_model
from drpruning.models.result import Origin, save_model
from drpruning.pruning import FAMILIES

Change = Callable[[dict[str, Any]], None]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "source"
    tiny(plain=True, kv_heads=2, rope_parameters=LLAMA3).save_pretrained(folder)
    return folder


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    save_model(load_model(str(source)), Origin.of(str(source)), folder)
    return folder


def rewrite(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_family_have_the_layout_of_their_class(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path / "source")
    output = tmp_path / "output"
    save_model(load_model(str(tmp_path / "source")), Origin.of(str(tmp_path / "source")), output)
    check_layout(output)
    file = output / "model.safetensors"
    weights = load_file(file)
    name = min(weights)
    save_file({k: v for k, v in weights.items() if k != name}, file)
    with pytest.raises(LayoutError, match=f"it has no weights for {name}"):
        check_layout(output)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(architectures=["Qwen2ForCausalLM"]), "Qwen2ForCausalLM"),
        (lambda c: c.update(num_key_value_heads=4), r"k_proj.weight has shape \[16, 32\]"),
        (lambda c: c.update(num_key_value_heads=3), "num_key_value_heads|num_kv_heads"),
        (lambda c: c.update(head_dim=4), r"has shape \[16, 32\], and the model \[8, 32\]"),
        (lambda c: c.pop("head_dim"), "head_dim is None, where the weights have 8"),
        (lambda c: c.update(vocab_size=64), r"lm_head.weight has shape \[61, 32\]"),
        (lambda c: c.update(num_hidden_layers=5), "it has no weights for model.layers.4"),
        (lambda c: c.update(num_hidden_layers=3), "weights that the model lacks: model.layers.3"),
        (lambda c: c.update(torch_dtype="bfloat16"), "torch_dtype is bfloat16"),
        (lambda c: c.update(layer_types=["full_attention"] * 4 + ["x"]), "layer_types|layers"),
        (lambda c: c.pop("max_position_embeddings"), "max_position_embeddings is None"),
        (lambda c: c.pop("rope_scaling"), "rope_scaling is missing, .* the type llama3"),
        (lambda c: c.update(rope_theta=5e5), "rope_theta is 500000.0 beside 10000.0"),
        (lambda c: c.update(tie_word_embeddings=True, vocab_size=0), "vocab"),
    ],
)
def test_a_config_that_contradicts_the_weights_or_a_reader_is_refused(
    output: Path, change: Change, problem: str
) -> None:
    check_layout(output)
    rewrite(output / "config.json", change)
    with pytest.raises(LayoutError, match=problem):
        check_layout(output)


def test_an_output_matrix_may_be_left_out_only_where_it_is_tied(output: Path) -> None:
    file = output / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "lm_head.weight"}, file)
    with pytest.raises(LayoutError, match=r"no weights for lm_head\.weight"):
        check_layout(output)
    rewrite(output / "config.json", lambda config: config.update(tie_word_embeddings=True))
    check_layout(output)


def test_a_token_beyond_the_vocabulary_is_refused(output: Path, model_folder: Path) -> None:
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"content": "<beyond>", "id": 1_000_000})
    (output / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(LayoutError, match="its largest id is 1000000"):
        check_layout(output)


def test_a_model_of_another_layout_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = result.published_config

    def wrong(*arguments: Any) -> dict[str, Any]:
        return made(*arguments) | {"intermediate_size": 24}

    monkeypatch.setattr(result, "published_config", wrong)
    output = tmp_path / "output"
    with pytest.raises(TrainingError, match=r"not written, .*down_proj\.weight has shape"):
        save_model(load_model(str(source)), Origin.of(str(source)), output, "# card")
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_has_a_default_for_is_written_for_readers_without_it(
    tmp_path: Path,
) -> None:
    terse = tmp_path / "terse"
    tiny("gemma2", plain=True, max_position_embeddings=8192, eps=1e-6).save_pretrained(terse)
    left_out = {"max_position_embeddings", "rms_norm_eps", "attn_logit_softcapping"}
    rewrite(terse / "config.json", lambda config: [config.pop(name) for name in left_out])
    output = tmp_path / "output"
    save_model(load_model(str(terse)), Origin.of(str(terse)), output)
    written = json.loads((output / "config.json").read_text())
    assert written["max_position_embeddings"] == 8192
    assert written["rms_norm_eps"] == 1e-6
    assert written["attn_logit_softcapping"] == 50.0
    assert torch.equal(*(load_model(str(f)).lm_head.weight for f in (terse, output)))
