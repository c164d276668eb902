import copy
import json

import pytest
import torch
from tiny_models import CASES, TARGETS, TOKENS, VARIANTS, masked, targets_of, tiny
from transformers import AutoModelForCausalLM

from drpruning.common.errors import BadInput
from drpruning.pruning import ExportError, ModelShape, PruningPlan, apply_plan

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
cases = pytest.mark.parametrize(("variant", "target"), CASES.values(), ids=CASES)


@cases
def test_export_equals_the_masked_model(variant, target):
    wrapped = masked(tiny(**variant), **target).eval()
    wrapped.use_masks("target")
    expected = wrapped(TOKENS).logits
    exported = wrapped.export()
    assert torch.allclose(exported(TOKENS).logits, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, tiny(**variant)(TOKENS).logits, atol=0.1)
    assert ModelShape.of(exported) == wrapped.target
    assert exported.num_parameters() == wrapped.target.num_parameters()
    assert wrapped.mode == "target"


@variants
def test_exported_folder_loads_and_generates_in_plain_transformers(variant, tmp_path):
    model = tiny(**variant)
    model.generation_config.max_new_tokens = 7
    wrapped = masked(model, **targets_of(variant)["all"])
    wrapped.export().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    wrapped.eval().use_masks("target")
    assert torch.allclose(loaded(TOKENS).logits, wrapped(TOKENS).logits, atol=1e-4, rtol=0)
    text = loaded.generate(TOKENS, do_sample=False)
    assert text.shape == (2, 18)
    for length in range(11, 18):
        logits = loaded(text[:, :length], use_cache=False).logits[:, -1]
        chosen = logits.gather(1, text[:, length : length + 1])[:, 0]
        assert torch.allclose(chosen, logits.max(-1).values, atol=1e-4)


def test_export_leaves_the_masked_model_as_it_was():
    wrapped = masked(tiny("qwen2", kv_heads=2), **TARGETS["all"]).train()
    before = copy.deepcopy(wrapped.state_dict())
    with torch.no_grad():
        for parameter in wrapped.export().parameters():
            parameter.zero_()
    assert wrapped.training
    assert wrapped.mode == "sampled"
    assert all(torch.equal(before[name], value) for name, value in wrapped.state_dict().items())


@variants
def test_bfloat16_is_checked_in_float32_and_returned_as_it_was(variant):
    target = targets_of(variant)["all"]
    model = tiny(**variant).to(torch.bfloat16)
    exported = masked(model, **target).export()
    assert {p.dtype for p in (*exported.parameters(), *model.parameters())} == {torch.bfloat16}
    base = exported.get_decoder()
    assert base.rotary_emb.inv_freq.dtype == torch.float32
    wide = masked(tiny(**variant).to(torch.bfloat16).float(), **target).export()
    for found, wanted in zip(exported.parameters(), wide.parameters(), strict=True):
        assert torch.equal(found, wanted.to(torch.bfloat16))
    expected, found = wide(TOKENS).logits, exported(TOKENS).logits.float()
    assert (found - expected).abs().max() < 0.1 * max(1.0, expected.std())


def test_a_wrong_export_is_never_returned():
    wrapped = masked(tiny(), **TARGETS["all"])
    wrapped.model.model.layers[0].register_forward_hook(lambda *args: args[2] + 0.5)
    with pytest.raises(ExportError, match=r"differ .* by \d"):
        wrapped.export()
    broken = masked(tiny(), **TARGETS["all"])
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ExportError, match="by nan"):
        broken.export()


def test_config_follows_the_kept_layers():
    model = tiny(
        "qwen2", kv_heads=2, use_sliding_window=True, sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    wrapped = masked(model, random_masks=False, num_layers=2)
    with torch.no_grad():
        wrapped.masks.log_alpha["layer"].copy_(torch.tensor([-1.0, 2.0, 1.0, -2.0]))
    exported = wrapped.export()
    assert wrapped.plan().layers == (1, 2)
    assert exported.config.layer_types == ["sliding_attention", "full_attention"]
    assert exported.config.num_hidden_layers == len(exported.model.layers) == 2
    assert model.config.num_hidden_layers == 4


def test_sliding_windows_and_the_first_windowed_layer_follow_the_kept_layers():
    model = tiny("qwen2", layer_types=None, max_window_layers=2)
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    wrapped = masked(model, random_masks=False, num_layers=2)
    with torch.no_grad():
        wrapped.masks.log_alpha["layer"].copy_(torch.tensor([-1.0, 2.0, -2.0, 1.0]))
    config = wrapped.export().config
    assert config.layer_types == ["full_attention", "sliding_attention"]
    assert config.max_window_layers == 1
    config.layer_types = None
    again = type(config)(**{k: v for k, v in config.to_dict().items() if k != "layer_types"})
    assert again.layer_types == ["full_attention", "sliding_attention"]


@variants
def test_exported_config_has_the_target_shape_and_the_source_rest(variant):
    model = tiny(**variant)
    exported = masked(model, **targets_of(variant)["all"]).export()
    before, after = model.config.to_dict(), exported.config.to_dict()
    shape = {
        *ModelShape.of(model).config_fields(), "layer_types", "max_window_layers",
        "transformers_version", "dtype", "architectures", "_name_or_path",
    }  # fmt: skip
    assert {k: v for k, v in before.items() if k not in shape} == {
        k: v for k, v in after.items() if k not in shape
    }
    assert torch.equal(
        model.get_decoder().rotary_emb.inv_freq, exported.get_decoder().rotary_emb.inv_freq
    )


@variants
def test_a_plan_cuts_weights_without_rescaling_them(variant):
    model = tiny(**variant)
    before = copy.deepcopy(model.state_dict())
    plan = masked(tiny(**variant), **targets_of(variant)["all"]).plan()
    cut = apply_plan(model, plan)
    shape, family = plan.source, plan.source.family
    assert ModelShape.of(cut) == plan.target
    parameters = dict(cut.named_parameters())
    for name, axes in family.layer_table(shape.switches).items():
        for position, layer in enumerate(plan.layers):
            source = before[f"{family.layers}.{layer}.{name}"]
            for dimension, axis in enumerate(axes):
                kept = plan.indices(axis, position)
                if kept is not None:
                    source = source.index_select(dimension, torch.tensor(kept))
            assert torch.equal(parameters[f"{family.layers}.{position}.{name}"], source)
    embedded = cut.get_input_embeddings()(TOKENS)
    expected = model.get_input_embeddings()(TOKENS)[..., list(plan.hidden)]
    assert torch.allclose(embedded, expected, rtol=1e-6)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert cut.config._attn_implementation == model.config._attn_implementation


def test_a_plan_of_a_tied_model_with_scaled_embedding_keeps_the_logits_scale():
    model = tiny("gemma2", tied=True, final_logit_softcapping=None)
    plan = masked(tiny("gemma2", tied=True), **TARGETS["all"]).plan()
    cut = apply_plan(model, plan)
    kept = list(plan.hidden)
    matrix = model.lm_head.weight[:, kept] * (1 + model.model.norm.weight[kept])
    found = cut.lm_head.weight * (1 + cut.model.norm.weight)
    assert torch.allclose(found, matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0, 2, 3, 4],
                  "long_factor": [2.0, 3, 4, 5], "rope_theta": 1e4}),
        ("llama", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        ("llama", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}),
    ],
)  # fmt: skip
def test_rotary_scalings_survive(family, rope, tmp_path):
    more = {"original_max_position_embeddings": 32} if family == "phi3" else {}
    model = tiny(family, rope_parameters=rope, **more)
    wrapped = masked(model, **TARGETS["all"])
    wrapped.export().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    wrapped.eval().use_masks("target")
    assert torch.allclose(loaded(TOKENS).logits, wrapped(TOKENS).logits, atol=1e-4, rtol=0)


def test_plans_of_other_models_are_refused():
    plan = masked(tiny(), **TARGETS["all"]).plan()
    with pytest.raises(BadInput, match="intermediate_size 22, not 20"):
        apply_plan(tiny(intermediate_size=22), plan)
    with pytest.raises(BadInput, match="attached already"):
        apply_plan(masked(tiny(), **TARGETS["all"]).model, plan)


@targets
def test_plan_round_trip(target, tmp_path):
    plan = masked(tiny("qwen2", kv_heads=2), **target).plan()
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert "\n" not in plan.to_json()
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_plan_keeps_the_highest_scores_and_the_lower_index_of_equals():
    target = TARGETS["all"] | {"num_heads": 4, "num_kv_heads": 2}
    wrapped = masked(tiny("mistral", num_attention_heads=12, head_dim=4, kv_heads=4), **target)
    plan = wrapped.plan()
    scores = wrapped.masks.log_alpha
    assert set(plan.hidden) == set(scores["hidden"].topk(16).indices.tolist())
    for position, layer in enumerate(plan.layers):
        best = scores["intermediate"][layer].topk(9).indices.tolist()
        assert plan.intermediate[position] == tuple(sorted(best))
        groups = sorted(scores["group"][layer].topk(2).indices.tolist())
        assert plan.kv_groups[position] == tuple(groups)
        within = [scores["head"][layer, group].topk(2).indices.sort().values for group in groups]
        heads = [3 * g + i for g, best in zip(groups, within, strict=True) for i in best.tolist()]
        assert plan.heads[position] == tuple(heads)
    tied = masked(tiny(), random_masks=False, **TARGETS["all"])
    tied.masks.clamp()
    assert tied.plan().layers == (0, 1)


def test_plan_reads_well():
    text = str(masked(tiny("qwen2", kv_heads=2), **TARGETS["all"]).plan())
    plan = masked(tiny("qwen2", kv_heads=2), **TARGETS["all"]).plan()
    removed = ", ".join(str(i) for i in range(4) if i not in plan.layers)
    assert f"layers removed: {removed}" in text
    assert "num_heads" in text
    assert f"{plan.target.num_parameters():,}" in text


def test_similarity_counts_equal_decisions():
    source = ModelShape.of(tiny())
    target = source.pruned_to(num_layers=2, num_heads=2)
    everything = tuple(range(20))

    def plan(layers, heads):
        return PruningPlan(
            source=source, target=target, layers=layers, hidden=tuple(range(32)),
            kv_groups=heads, heads=heads, intermediate=(everything, everything),
        )  # fmt: skip

    first = plan((0, 1), ((0, 1), (0, 1)))
    assert first.similarity(first) == {"layer": 1, "head": 1}
    other = plan((0, 2), ((0, 2), (0, 1)))
    assert first.similarity(other) == {"layer": 0.5, "head": 1 - 6 / 16}
    assert other.similarity(first) == first.similarity(other)
    stranger = masked(tiny("qwen2"), **TARGETS["all"]).plan()
    with pytest.raises(BadInput, match="different sources: model_type"):
        first.similarity(stranger)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version 1"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [0, 9]}, "below 4"),
        ({"layers": [0]}, "1 entries where the target has 2"),
        ({"layers": ["a", "b"]}, "whole numbers"),
        ({"layers": 3}, "wrong type"),
        ({"hidden": "ff"}, "8 entries where the target has 16"),
        ({"hidden": "xyz"}, "hexadecimal string"),
        ({"hidden": [1, 2]}, "hexadecimal string"),
        ({"hidden": "-1"}, "hexadecimal"),
        ({"heads": [[0, 1], [1, 2]]}, "2 in each kept"),
        ({"heads": [[0, 1]]}, "one entry for each"),
        ({"source": {}}, "lacks"),
    ],
)
def test_bad_plans_are_refused(change, told, tmp_path):
    plan = masked(tiny(kv_heads=2), **TARGETS["all"]).plan()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(json.loads(plan.to_json()) | change))
    with pytest.raises(BadInput, match=told):
        PruningPlan.load(file)


def test_unreadable_plans_are_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read the plan"):
        PruningPlan.load(tmp_path / "none.json")
    for text, told in (("{", "not valid JSON"), ("[]", "JSON object"), ('{"version": 1}', "lacks")):
        with pytest.raises(BadInput, match=told):
            PruningPlan.from_json(text)
