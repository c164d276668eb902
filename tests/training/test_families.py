"""Every family through the whole command, from the check of its files to a model to load."""

import json
from pathlib import Path
from typing import Any

import pytest

from drpruning.pruning import FAMILIES, ModelShape
from helpers.small_runs import drprune, write

MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 8, "num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
}
BY_DEFAULT = {"gpt_neox"}


FAMILY = pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in BY_DEFAULT else pytest.mark.slow) for f in FAMILIES],
)
TARGET = {"num_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}


def made(family: str, folder: Path, **values: Any) -> Path:
    """A small random model of a family, as Transformers saves it."""
    import torch
    import transformers

    sizes = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": None,
        "bos_token_id": None, "eos_token_id": 0, "head_dim": 8, "num_key_value_heads": 4,
    }  # fmt: skip
    if family == "gpt_neox":
        del sizes["head_dim"], sizes["num_key_value_heads"]
    model = getattr(transformers, FAMILIES[family].architecture)
    torch.manual_seed(0)
    config = model.config_class(**(sizes | MORE.get(family, {}) | values))
    model(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@FAMILY
def test_a_run_from_plan_to_a_model_in_plain_transformers(
    family: str, model_folder: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    import transformers

    source = made(family, tmp_path / family)
    # Transformers would read these tokenizer files otherwise beside a Qwen2 configuration.
    tokenizer = str(model_folder)
    recipe_values["model"] = {"source": str(source), "tokenizer": tokenizer, "target": TARGET}
    recipe_values["prune"].update(steps=4)
    recipe_values["pretrain"].update(steps=2)
    recipe = write(recipe_values, tmp_path / "recipe.yaml")
    shape = ModelShape.of(source).pruned_to(**TARGET)
    assert f"{shape.num_parameters():,}" in drprune("plan", recipe)
    said = drprune("run", recipe)
    reads_another = "reads " + tokenizer + " as another tokenizer"
    assert (reads_another in said) == (family == "qwen2"), said
    folder = Path(recipe_values["output"])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(loaded).__name__ == FAMILIES[family].architecture
    assert ModelShape.of(loaded) == shape
    assert loaded.num_parameters() == shape.num_parameters()
    # The last model has the source's type; the one that training goes on from is not rounded.
    assert loaded.dtype == torch.bfloat16
    assert transformers.AutoConfig.from_pretrained(folder / "pruned").dtype == torch.float32
    for stage in ("pruned", "model"):
        own = (folder / stage / "tokenizer.json").read_bytes()
        assert own == (model_folder / "tokenizer.json").read_bytes()
    text = loaded.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)
    assert text.shape[0] == 1
    assert "done already" in drprune("run", recipe)


@FAMILY
def test_a_result_is_a_source_a_start_of_nested_targets_and_a_reference_model(
    family: str, text_folder: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Bytes and their pairs: all classes of tokenizers read these the same.
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    core.train_from_iterator(text_folder.joinpath("numbers.jsonl").read_text().split(), trainer)
    source = made(family, tmp_path / family, vocab_size=300)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(source)
    targets = {"large": {"num_layers": 2}, "small": {"num_layers": 1}}
    recipe_values["model"] = {"source": str(source), "targets": targets}
    recipe_values["prune"].update(steps=2)
    del recipe_values["pretrain"]
    recipe = write(recipe_values, tmp_path / "recipe.yaml")
    drprune("prune", recipe)
    folder = Path(recipe_values["output"])
    large, small = folder / "large" / "pruned", folder / "small" / "pruned"
    dtypes = [transformers.AutoConfig.from_pretrained(f).dtype for f in (large, small)]
    assert dtypes == [torch.float32, torch.bfloat16], "the start of another target is not rounded"

    recipe_values["model"] = {"source": str(large), "target": targets["small"]}
    recipe_values["scheduling"] = {"reference_loss": {"from_model": str(small)}}
    recipe_values["output"] = str(tmp_path / "again")
    again = write(recipe_values, tmp_path / "again.yaml")
    drprune("prune", again)
    saved = json.loads((tmp_path / "again" / "reference_loss.json").read_text())
    assert saved["models"][0]["path"] == str(small)
    assert ModelShape.of(tmp_path / "again" / "pruned") == ModelShape.of(small)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "again" / "pruned").dtype == (
        torch.bfloat16
    ), "the type of the first source, two models back"


def test_pretraining_that_is_added_later_says_that_the_cut_model_was_rounded(
    model_folder: Path, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    source, pretrain = made("llama", tmp_path / "llama"), recipe_values.pop("pretrain")
    for file in model_folder.glob("tokenizer*"):
        (source / file.name).write_bytes(file.read_bytes())
    (source / "generation_config.json").write_text('{"temperature": 0.9}')
    recipe_values["model"] = {"source": str(source), "target": TARGET}
    recipe_values["prune"].update(steps=2)
    recipe = write(recipe_values, tmp_path / "recipe.yaml")
    assert "has temperature without do_sample: true" in drprune("plan", recipe)
    drprune("prune", recipe)
    recipe_values["pretrain"] = pretrain | {"steps": 1}
    said = drprune("pretrain", write(recipe_values, tmp_path / "recipe.yaml"))
    assert "its weights are rounded to bfloat16, for the recipe had no pretrain phase" in said
