"""What is written is what readers of published models expect, for every family."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

from tiny_models import TOKENS, VARIANTS, masked, targets_of, tiny

from drpruning.common.errors import BadInput
from drpruning.models.auxiliary_files import card_metadata, generation_warnings
from drpruning.models.card import TrainedPhase, cut_model_card, model_card, with_results
from drpruning.models.inspect import check_weights
from drpruning.models.loading import load_model
from drpruning.models.result import Origin, save_model
from drpruning.pruning import FAMILIES, ModelShape, apply_plan
from drpruning.recipe import parse_recipe
from drpruning.recipe.changes import fixed_settings

TARGET = {"num_layers": 2, "hidden_size": 16, "intermediate_size": 9, "num_heads": 2}
LONGROPE = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
ROTARY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"rope_type": "default"}, {"rope_theta": 5e5}),
    "mistral": ({"rope_type": "default"}, {"rope_theta": 5e5}),
    "gemma2": ({"rope_type": "default"}, {"rope_theta": 5e5}),
    "qwen3": ({"rope_type": "default"}, {"rope_theta": 5e5}),
    "llama, linear": (
        {"rope_type": "linear", "factor": 4.0},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "llama, llama3": (
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama, longrope": (
        {"rope_type": "longrope", "original_max_position_embeddings": 16, **LONGROPE},
        {
            "rope_theta": 5e5, "original_max_position_embeddings": 16,
            "rope_scaling": {
                "rope_type": "longrope", "original_max_position_embeddings": 16, **LONGROPE,
            },
        },
    ),
    "qwen2, yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "olmo2, linear": (
        {"rope_type": "linear", "factor": 4},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "phi3": (
        {"rope_type": "default", "partial_rotary_factor": 0.75},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.75},
    ),
    "phi3, longrope": (
        {
            "rope_type": "longrope", "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 16, **LONGROPE,
        },
        {
            "rope_theta": 5e5, "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", **LONGROPE},
        },
    ),
    "gpt_neox": (
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e5, "rotary_pct": 0.5},
    ),
}  # fmt: skip
"""Family and kind -> the rotary settings as Transformers 5 writes them, and as 4 did."""
OF_TRANSFORMERS_4 = {
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct",
}  # fmt: skip
ROTARY_CASES = pytest.mark.parametrize(("kind", "forms"), ROTARY.items(), ids=ROTARY)


def written(source: Path, output: Path, **target: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A cut of a model that was written to a folder, and the folder's config.json."""
    wanted = masked(load_model(str(source)), **(target or TARGET)).plan()
    cut = apply_plan(load_model(str(source)), wanted)
    save_model(cut, Origin.of(str(source)), output)
    return cut, json.loads((output / "config.json").read_text())


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


@pytest.fixture
def llama(tmp_path: Path, model_folder: Path) -> Path:
    """A small Llama with the tokenizer files of a published one."""
    folder = tmp_path / "llama"
    tiny().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    config = folder / "tokenizer_config.json"
    change(config, tokenizer_class="PreTrainedTokenizerFast", backend=..., is_local=...)
    change(config, local_files_only=..., add_bos_token=True, legacy=False)
    return folder


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_result_has_published_names_and_is_a_source_again(
    variant: dict[str, Any], tmp_path: Path
) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    tiny(**variant).save_pretrained(source)
    cut, config = written(source, output, **targets_of(variant)["all"])
    shape = ModelShape.of(cut)
    family = shape.family
    table = family.full_table(shape.num_layers, shape.switches, tied=shape.tied_embeddings)
    found = load_file(output / "model.safetensors")
    assert found.keys() == {family.file_names.get(name, name) for name in table}
    assert ("embed_out.weight" in found) == (
        family.model_type == "gpt_neox" and not variant.get("tied", False)
    )
    check_weights(str(output), ModelShape.of(config), "model.source")
    loaded, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(TOKENS).logits, cut.eval()(TOKENS).logits)
    own, other = cut.config.to_dict(), loaded.config.to_dict()
    # Transformers keeps this field beside the parameters that it also puts it into.
    ignored = {"_name_or_path", "partial_rotary_factor"}
    assert {k: v for k, v in own.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }
    again = tmp_path / "again"
    save_model(load_model(str(output)), Origin.of(str(output)), again)
    assert json.loads((again / "config.json").read_text()) == config
    assert (again / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


@ROTARY_CASES
def test_rotary_settings_of_transformers_5_are_written_for_4_too(
    kind: str, forms: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    modern, older = forms
    source, output = tmp_path / "source", tmp_path / "output"
    parameters = {"rope_theta": 5e5, **modern}
    length = modern.get("original_max_position_embeddings")
    more = {"original_max_position_embeddings": length} if kind == "phi3, longrope" else {}
    tiny(kind.partition(",")[0], plain=True, rope_parameters=parameters, **more).save_pretrained(
        source
    )
    assert not OF_TRANSFORMERS_4 & json.loads((source / "config.json").read_text()).keys()
    cut, config = written(source, output)
    assert config["rope_parameters"] == parameters
    assert {key: config[key] for key in OF_TRANSFORMERS_4 & config.keys()} == {
        key: value for key, value in older.items() if key in OF_TRANSFORMERS_4
    }
    assert config.items() >= older.items()
    loaded = AutoModelForCausalLM.from_pretrained(output)
    long = TOKENS.repeat(1, 4)  # beyond the length after which longrope has other factors
    assert torch.equal(loaded(long).logits, cut.eval()(long).logits)


def test_the_factor_that_transformers_5_asks_for_is_not_in_what_4_reads(tmp_path: Path) -> None:
    modern, older = ROTARY["phi3, longrope"]
    length = modern["original_max_position_embeddings"]
    parameters = {"rope_theta": 5e5, **modern, "factor": 64 / length}
    more = {"rope_parameters": parameters, "original_max_position_embeddings": length}
    tiny("phi3", plain=True, **more).save_pretrained(tmp_path / "source")
    _, config = written(tmp_path / "source", tmp_path / "output")
    assert config["rope_parameters"] == parameters
    assert config["rope_scaling"] == older["rope_scaling"]


def test_an_older_field_that_is_null_is_written_too(llama: Path) -> None:
    modern, older = ROTARY["llama, llama3"]
    parameters = {"rope_theta": 5e5, **modern}
    change(llama / "config.json", rope_parameters=parameters, rope_scaling=None)
    _, config = written(llama, llama.with_name("out"))
    assert config["rope_parameters"] == parameters
    assert config.items() >= older.items()


@ROTARY_CASES
def test_rotary_settings_of_transformers_4_stay_as_they_are(
    kind: str, forms: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    modern, older = forms
    source, output = tmp_path / "source", tmp_path / "output"
    length = modern.get("original_max_position_embeddings")
    more = {"original_max_position_embeddings": length} if kind == "phi3, longrope" else {}
    parameters = {"rope_theta": 5e5, **modern}
    model = tiny(kind.partition(",")[0], plain=True, rope_parameters=parameters, **more)
    model.save_pretrained(source)
    change(source / "config.json", rope_parameters=..., dtype=..., torch_dtype="float32", **older)
    cut, config = written(source, output)
    assert config.items() >= older.items()
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_parameters"] == parameters
    inverse = model.get_decoder().rotary_emb.inv_freq
    assert torch.equal(cut.get_decoder().rotary_emb.inv_freq, inverse)
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(loaded.get_decoder().rotary_emb.inv_freq, inverse)


def test_what_the_program_does_not_know_of_a_config_stays_and_leftovers_go(llama: Path) -> None:
    change(
        llama / "config.json", pad_token_id=2, pretraining_tp=1, note="ours", auto_map={"A": "b.C"},
        _name_or_path="/home/me/llama", quantization_config=None, architectures=...,
    )  # fmt: skip
    _, config = written(llama, llama.with_name("out"))
    assert config["architectures"] == ["LlamaForCausalLM"]  # servers choose their code by it
    assert {"pad_token_id": 2, "pretraining_tp": 1, "note": "ours"}.items() <= config.items()
    assert not {"auto_map", "_name_or_path", "quantization_config"} & config.keys()
    assert config["num_hidden_layers"] == 2
    assert config["head_dim"] == 8


def test_auxiliary_files_are_those_of_the_source(llama: Path) -> None:
    copied = {
        "tokenizer.model": b"\x0a\x00sentencepiece", "vocab.json": b"{}", "merges.txt": b"a b\r\n",
        "special_tokens_map.json": b'{"eos_token":"</s>"}', "chat_template.jinja": b"{{ x }}\n",
        "additional_chat_templates/tools.jinja": b"{{ y }}", "LICENSE.txt": b"terms\r\n",
        "NOTICE": b"notice", "USE_POLICY.md": b"policy", "tekken.json": b"{}",
        "added_tokens.json": b"{}", "vocab.txt": b"a\nb", "spiece.model": b"\x0a",
        "sentencepiece.bpe.model": b"\x0a\x01", "tokenizer.model.v3": b"\x0a\x02",
        "chat_template.json": b"{ }", "license.md": b"more terms", "Notice.txt": b"another",
        "COPYING": b"copying",
        "generation_config.json": b'{"temperature": 0.6}', "qwen.tiktoken": b"IQ== 0",
    }  # fmt: skip
    left = ["pytorch_model.bin", "modeling.py", "training_args.bin", ".gitattributes"]
    for name, content in (copied | dict.fromkeys(left, b"left")).items():
        (llama / name).parent.mkdir(exist_ok=True)
        (llama / name).write_bytes(content)
        (llama / name).chmod(0o400)
    llama.chmod(0o500)  # a source that cannot be written to
    output = llama.with_name("out")
    try:
        written(llama, output)
    finally:
        llama.chmod(0o700)
    for name in (*copied, "tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (llama / name).read_bytes(), name
    assert not any((output / name).exists() for name in left)
    mode = 0o666 & ~(mask := os.umask(0))
    os.umask(mask)
    files = [file for file in output.rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}


def test_no_generation_config_is_made_up(llama: Path) -> None:
    (llama / "generation_config.json").unlink()
    output = llama.with_name("out")
    written(llama, output)
    assert not (output / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"auto_map": {"AutoTokenizer": ["t.T", None]}}, {}),
        ({"is_local": True, "local_files_only": True, "backend": "tokenizers"}, {}),
        ({"tokenizer_class": "TokenizersBackend"}, {}),
        (
            {"extra_special_tokens": ["<|im_start|>"]},
            {"additional_special_tokens": ["<|im_start|>"]},
        ),
    ],
)
def test_a_tokenizer_config_for_transformers_5_alone_is_rewritten(
    llama: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    file = llama / "tokenizer_config.json"
    before = json.loads(file.read_text())
    change(file, **given)
    output = llama.with_name("out")
    written(llama, output)
    assert json.loads((output / file.name).read_text()) == before | expected
    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (llama, output))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert first.all_special_tokens == second.all_special_tokens


def test_a_tokenizer_of_its_own_comes_from_there_and_the_licence_from_the_model(
    llama: Path, model_folder: Path
) -> None:
    (llama / "LICENSE").write_text("of the model")
    (llama / "tokenizer.model").write_text("not the tokenizer that was used")
    output = llama.with_name("out")
    save_model(load_model(str(llama)), Origin.of(str(llama), str(model_folder)), output)
    assert (output / "LICENSE").read_text() == "of the model"
    assert not (output / "tokenizer.model").exists()
    tokenizer = model_folder / "tokenizer.json"
    assert (output / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


# Weights.


def test_weights_are_cut_into_files_of_the_size_asked_for(llama: Path) -> None:
    model, output = load_model(str(llama)), llama.with_name("out")
    save_model(model, Origin.of(str(llama)), output, max_shard_size="20KB")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    parts = sorted(output.glob("*.safetensors"))
    assert len(parts) > 2
    assert {part.name for part in parts} == set(index["weight_map"].values())
    stored = {part.name: load_file(part) for part in parts}
    assert all(sum(t.nbytes for t in part.values()) <= 20_000 for part in stored.values())
    assert {name: file for file, part in stored.items() for name in part} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert not (output / "model.safetensors").exists()
    again = load_model(str(output))
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    check_weights(str(output), ModelShape.of(output), "model.source")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_type_asked_for_is_that_of_files_and_config(llama: Path, name: str) -> None:
    model, output, dtype = load_model(str(llama)), llama.with_name("out"), getattr(torch, name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_model(model, Origin.of(str(llama)), output, dtype=dtype)
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == name
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[n], p.to(dtype)) for n, p in before.items())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert AutoModelForCausalLM.from_pretrained(output).dtype == dtype


def test_the_original_type_is_known_after_a_model_in_between(llama: Path) -> None:
    tiny().to(torch.bfloat16).save_pretrained(llama)
    origin = Origin.of(str(llama))
    assert origin.stored_dtype == origin.original_dtype == torch.bfloat16
    assert origin.result_dtype("auto") == torch.bfloat16
    assert origin.result_dtype("float16") == torch.float16
    between, last = llama.with_name("between"), llama.with_name("last")
    save_model(load_model(str(llama)), origin, between)
    origin = Origin.of(str(between))
    assert origin.stored_dtype == torch.float32
    assert origin.result_dtype("auto") == torch.bfloat16
    save_model(load_model(str(between)), origin, last, dtype=origin.result_dtype("auto"))
    with safe_open(last / "model.safetensors", "pt") as content:
        assert content.metadata() == {"format": "pt"}


def test_of_mixed_types_that_of_most_numbers_counts(llama: Path) -> None:
    model = tiny()
    by_size = sorted(model.parameters(), key=torch.numel, reverse=True)
    largest = by_size[: len(by_size) // 2 - 1]
    assert 2 * sum(p.numel() for p in largest) > sum(p.numel() for p in by_size)
    for parameter in largest:
        parameter.data = parameter.data.bfloat16()
    model.save_pretrained(llama)
    assert Origin.of(str(llama)).stored_dtype == torch.bfloat16


def test_a_source_in_float64_gives_a_result_in_float32(llama: Path) -> None:
    tiny().double().save_pretrained(llama)
    origin, output = Origin.of(str(llama)), llama.with_name("out")
    model = load_model(str(llama))
    save_model(model, origin, output, dtype=origin.result_dtype("auto"))
    assert json.loads((output / "config.json").read_text())["dtype"] == "float32"
    assert load_model(str(output)).dtype == torch.float32


def test_weights_beyond_float16_are_refused_and_nothing_is_written(llama: Path) -> None:
    model, output = load_model(str(llama)), llama.with_name("out")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = 70_000
    with pytest.raises(BadInput, match=r"model\.dtype: float16 .* lm_head\.weight; write bfloat16"):
        save_model(model, Origin.of(str(llama)), output, dtype=torch.float16)
    assert not output.exists()


# Cards.


def done(**steps: int) -> dict[str, TrainedPhase]:
    """Phases of so many steps each, of whose data nothing is known."""
    return {name: TrainedPhase(steps=count, mean_ratio={}) for name, count in steps.items()}


ODD_NAMES = ["a: b", "it's", '"quoted"', "tail #1", "- list", "two\nlines", "модель", "{x}", "`c`"]


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_card_is_readable_and_has_nothing_local_whatever_the_path(
    name: str, tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    from huggingface_hub import ModelCard

    source = tmp_path / "private" / name
    tiny(plain=True).save_pretrained(source)
    recipe_values["model"]["source"] = str(source)
    recipe, model = parse_recipe(recipe_values), load_model(str(source))
    metadata = Origin.of(str(source)).card
    plan = masked(load_model(str(source)), **TARGET).plan()
    cards = [
        model_card(recipe, ModelShape.of(model), "prune", metadata, done(prune=20), plan),
        model_card(recipe, ModelShape.of(model), "pretrain", metadata, done(prune=20, pretrain=12)),
        cut_model_card(str(source), plan, metadata),
    ]
    for card in cards:
        assert front_matter(card) == {
            "library_name": "transformers", "pipeline_tag": "text-generation",
            "tags": ["pruning", "drpruning"],
        }  # fmt: skip
        assert ModelCard(card).data.to_dict() == front_matter(card)
        assert "private" not in card
        assert " ".join(name.replace("`", "'").split()) in card.split("\n# ")[1]


def test_a_card_says_what_was_trained_and_on_what(
    llama: Path, recipe_values: dict[str, Any]
) -> None:
    recipe, shape = parse_recipe(recipe_values), ModelShape.of(llama)
    first, *_, last = recipe.initial_ratio
    tokens = recipe.phases["prune"].global_batch * recipe.data.sequence_length
    trained = done(prune=3)
    trained["prune"] = replace(trained["prune"], mean_ratio={first: 0.25, last: 0.75})
    pruned = model_card(recipe, shape, "prune", {}, trained)
    assert "- pruning: 3 steps of " in pruned
    assert f", {3 * tokens:,} in all\n" in pruned
    assert "- continued pretraining" not in pruned
    assert "| domain | initial share | mean share, pruning |" in pruned
    share = f"{100 * recipe.initial_ratio[last]:.2f}%"
    assert f"| {last} | {share} | 75.00% |" in pruned
    both = model_card(recipe, shape, "pretrain", {}, trained | done(pretrain=7))
    assert "- pruning: 3 steps of" in both
    assert "- continued pretraining: 7 steps of" in both
    assert "| domain | initial share | mean share, pruning |" in both


def test_a_card_names_the_programs_that_load_the_model_and_those_that_do_not() -> None:
    """Qwen 2 whose heads do not fill the hidden size, Gemma 2 whose layers do not alternate."""
    cards = {}
    for family, target in {
        "llama": {"num_layers": 2},
        "qwen2": {"hidden_size": 16},
    }.items():
        plan = masked(tiny(family, plain=True), **target).plan()
        cards[family] = cut_model_card("org/name", plan, {})
        assert "| layers | 4 |" in cards[family]
        assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in cards[family]
    assert "vllm serve path/to/this/folder" in cards["llama"]
    assert "convert_hf_to_gguf.py path/to/this/folder" in cards["llama"]
    assert "Not with vLLM: heads x head size (4 x 8) is not the hidden size (16)." in cards["qwen2"]
    assert "Not with llama.cpp: heads x head size" in cards["qwen2"]
    assert "vllm serve" not in cards["qwen2"]
    mixed = replace(masked(tiny("gemma2", plain=True), num_layers=2).plan(), layers=(0, 2))
    card = cut_model_card("org/name", mixed, {})
    assert "Not with llama.cpp: sliding and full attention do not take turns" in card
    assert "With vLLM:" in card


def test_a_card_names_the_terms_of_the_source(llama: Path) -> None:
    plan = masked(load_model(str(llama)), **TARGET).plan()
    known = {"license": "other", "license_name": "llama2", "license_link": "LICENSE.txt"}
    known["base_model"] = "a/b"
    assert "The terms of `a/b` apply: [llama2](LICENSE.txt).\n" in cut_model_card(
        "a/b", plan, known
    )
    assert "apply: `mit`.\n" in cut_model_card("a/b", plan, {"base_model": "a/b", "license": "mit"})
    card = cut_model_card("a/b", plan, {"base_model": "a/b"})
    assert "The terms of `a/b` apply; see there.\n" in card
    assert "deng-etal-2025-drpruning" in card


def test_results_are_put_between_the_marks_of_a_card_and_nowhere_else(
    llama: Path, recipe_values: dict[str, Any]
) -> None:
    card = model_card(parse_recipe(recipe_values), ModelShape.of(llama), "prune", {}, done(prune=3))
    assert "\nNot measured yet.\n" in card
    once = with_results(card, "| a | 1.00 |")
    assert once == card.replace("Not measured yet.", "| a | 1.00 |")
    assert with_results(with_results(once, "other"), "| a | 1.00 |") == once
    for own in ("# Mine\n", card.replace("<!-- end of results -->", ""), ""):
        assert with_results(own, "| a | 1.00 |") == own


def test_a_card_names_the_teachers_of_a_phase(llama: Path, recipe_values: dict[str, Any]) -> None:
    recipe_values["prune"]["distill"] = {"teacher": "self"}
    recipe_values["pretrain"]["distill"] = {
        "teachers": {"/private/large-model": 1, "meta/code-model": 2}
    }
    recipe, shape = parse_recipe(recipe_values), ModelShape.of(llama)
    card = model_card(recipe, shape, "pretrain", {}, done(prune=3, pretrain=7))
    assert "in all, taught by itself without masks\n" in card
    assert ", taught by `large-model` and `" in card
    assert "private" not in card
    del recipe_values["prune"]["distill"]
    recipe_values["pretrain"]["distill"] = {"weight": 0.5}
    card = model_card(
        parse_recipe(recipe_values),
        shape,
        "pretrain",
        {"base_model": "meta/llama"},
        done(prune=3, pretrain=7),
    )
    assert card.count("taught by") == 1
    assert ", taught by `meta/llama`\n" in card


def test_the_licence_and_the_published_ancestor_go_from_card_to_card(llama: Path) -> None:
    (llama / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama2\nlicense_link: LICENSE.txt\nbase_model: a/b\n"
        "tags: [x]\n---\n# Llama\n"
    )
    kept = {"license": "other", "license_name": "llama2", "license_link": "LICENSE.txt"}
    assert card_metadata(str(llama), llama) == kept
    published = card_metadata("meta/llama", llama)
    assert published == {"base_model": "meta/llama", **kept}
    shape = ModelShape.of(llama)
    plan = masked(load_model(str(llama)), **TARGET).plan()
    card = cut_model_card("meta/llama", plan, published)
    assert front_matter(card)["license_name"] == "llama2"
    assert "# Cut out of `meta/llama` by a pruning plan" in card
    (llama / "README.md").write_text(card)
    assert card_metadata(str(llama), llama) == published
    assert shape == plan.source


@pytest.mark.parametrize(
    "card",
    ["", "# no front matter", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\ntags: 3\n---"],
)
def test_a_card_that_says_nothing_usable_is_no_hindrance(card: str, llama: Path) -> None:
    (llama / "README.md").write_text(card)
    assert card_metadata(str(llama), llama) == {}


# Generation settings.


def test_sampling_settings_without_sampling_are_warned_of(llama: Path) -> None:
    file = llama / "generation_config.json"
    file.write_text('{"temperature": 0.9, "top_p": 0.6, "max_length": 4096}')
    (warning,) = generation_warnings(str(llama), "model.source")
    assert f"the generation_config.json of {llama} has temperature, top_p without" in warning
    assert "write do_sample: true in it, or take them out" in warning
    for settings in (
        '{"temperature": 0.9, "do_sample": true}',
        '{"top_p": 1.0, "top_k": 50}',
        '{"temperature": null, "min_p": null}',
        "{}",
    ):
        file.write_text(settings)
        assert generation_warnings(str(llama), "model.source") == []
    file.unlink()
    assert generation_warnings(str(llama), "model.source") == []


def test_every_setting_of_sampling_is_known(llama: Path) -> None:
    for name, value in {
        "temperature": 0.6, "top_p": 0.9, "top_k": 20, "typical_p": 0.5, "epsilon_cutoff": 3e-4,
        "eta_cutoff": 3e-4, "min_p": 0.1, "top_h": 0.4,
    }.items():  # fmt: skip
        (llama / "generation_config.json").write_text(json.dumps({name: value}))
        (warning,) = generation_warnings(str(llama), "model.source")
        assert f"has {name} without do_sample: true" in warning


# A name on the Hub.


@pytest.fixture
def cached(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small Llama as `someone/llama` in a cache of the Hub, without a network."""
    cache = tmp_path / "cache"
    model, commit = cache / "models--someone--llama", "0123456789" * 4
    snapshot = model / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    llama.rename(snapshot)
    (model / "refs").mkdir()
    for name in ("main", "v1"):
        (model / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("name", ["someone/llama", "someone/llama@v1"])
def test_files_of_a_name_on_the_hub_are_taken_from_the_cache(
    name: str, cached: Path, tmp_path: Path
) -> None:
    (cached / "LICENSE").write_text("terms")
    origin, output = Origin.of(name), tmp_path / "out"
    assert origin.folder == cached
    assert origin.card == {"base_model": "someone/llama"}
    save_model(load_model(str(cached)), origin, output)
    for file in ("LICENSE", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (output / file).read_bytes() == (cached / file).read_bytes()
    plan = masked(load_model(str(cached)), **TARGET).plan()
    assert f"# Cut out of `{name}` by" in cut_model_card(name, plan, origin.card)


@pytest.mark.usefixtures("cached")
def test_a_name_that_neither_hub_nor_cache_has_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.source: someone/else is no folder on this machine"):
        Origin.of("someone/else")


def test_every_family_has_its_rotary_settings_in_the_table() -> None:
    assert {kind.partition(",")[0] for kind in ROTARY} == FAMILIES.keys()


def test_type_and_file_size_of_a_result_may_change_while_a_run_is_under_way(
    recipe_values: dict[str, Any],
) -> None:
    before = fixed_settings(parse_recipe(recipe_values))
    recipe_values["model"] |= {"dtype": "float16", "max_shard_size": "500MB"}
    assert fixed_settings(parse_recipe(recipe_values)) == before
