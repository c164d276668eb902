import copy

import pytest
import torch
from tiny_models import CASES, TARGETS, TOKENS, VARIANTS, masked, targets_of, tiny

from drpruning.common.errors import BadInput
from drpruning.pruning import ModelShape, attach_masks, hard_concrete
from drpruning.pruning.gates import GatedWeight
from drpruning.pruning.masks import INITIAL_PENALTY

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
cases = pytest.mark.parametrize(("variant", "target"), CASES.values(), ids=CASES)
ONCE_A_FAMILY = {n: v for n, v in VARIANTS.items() if "tied" not in n and "plain" not in n}
once_a_family = pytest.mark.parametrize("variant", ONCE_A_FAMILY.values(), ids=ONCE_A_FAMILY)
COMPILED_BY_DEFAULT = {"gpt_neox"}


def gradients(model, *, part=0):
    model.zero_grad()
    model.set_step(5, 0.5, part)
    loss = model(input_ids=TOKENS, labels=TOKENS).loss + model.lagrangian()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@variants
def test_masks_of_one_are_the_source(variant):
    model = tiny(**variant)
    expected = model(TOKENS).logits
    wrapped = masked(model, **targets_of(variant)["all"])
    for mode in (True, False):
        wrapped.train(mode).use_masks("ones")
        assert torch.allclose(wrapped(input_ids=TOKENS).logits, expected, atol=1e-6, rtol=0)


def test_train_samples_and_eval_is_deterministic():
    wrapped = masked(tiny(), **TARGETS["all"])
    assert wrapped.train().mode == "sampled"
    assert wrapped.eval().mode == "current"
    assert torch.equal(wrapped(TOKENS).logits, wrapped(TOKENS).logits)
    wrapped.use_masks("target")
    assert wrapped.train().mode == "sampled"
    with pytest.raises(BadInput, match="'half' is none of sampled, current, target, ones"):
        wrapped.use_masks("half")


def test_noise_depends_on_seed_step_and_part_only():
    wrapped = masked(tiny(), seed=4, **TARGETS["all"])

    def sampled(model, step, part, consume=0):
        torch.rand(consume)
        for log_alpha in model.masks.log_alpha.values():
            torch.nn.init.zeros_(log_alpha)
        model.set_step(step, 0.3, part)
        return model.masks.values("sampled")

    first = sampled(wrapped, 7, 2)
    wrapped.set_part(3)
    other_part = wrapped.masks.values("sampled")
    others = [
        sampled(wrapped, 8, 2),
        sampled(masked(tiny(), seed=5, **TARGETS["all"]), 7, 2),
        other_part,
    ]
    fresh = masked(tiny(), seed=4, **TARGETS["all"])
    for name, value in sampled(fresh, 7, 2, consume=9).items():
        assert torch.equal(value, first[name])
        if name != "layer":
            assert all(not torch.equal(value, other[name]) for other in others)


@variants
def test_every_mask_multiplier_and_weight_gets_a_gradient(variant):
    wrapped = masked(tiny(**variant), random_masks=False, **targets_of(variant)["all"]).train()
    with torch.no_grad():
        for log_alpha in wrapped.masks.log_alpha.values():
            log_alpha.fill_(0.5)
    wrapped.set_step(0, 0.5)
    names, reached = set(dict(wrapped.named_parameters())), set()
    for part in range(40):
        _, found = gradients(wrapped, part=part)
        reached |= {name for name, grad in found.items() if grad is not None and grad.any()}
        if reached == names:
            break
    assert reached == names


def test_every_single_mask_entry_is_trained():
    wrapped = masked(tiny(), random_masks=False, **TARGETS["all"]).train()
    with torch.no_grad():
        for log_alpha in wrapped.masks.log_alpha.values():
            log_alpha.fill_(0.0)
    reached = {name: torch.zeros_like(a).bool() for name, a in wrapped.masks.log_alpha.items()}
    for part in range(60):
        wrapped.zero_grad()
        wrapped.set_step(0, 0.5, part)
        wrapped(input_ids=TOKENS, labels=TOKENS).loss.backward()
        for name, log_alpha in wrapped.masks.log_alpha.items():
            reached[name] |= log_alpha.grad != 0
    assert all(entries.all() for entries in reached.values())


def test_gated_gradients_are_those_of_the_plain_product():
    generator = torch.Generator().manual_seed(0)
    weight, row, column = (
        torch.randn(*size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in ((4, 3), (4,), (3,))
    )
    unit = torch.tensor([0.5, 0.0, 0.5, 0.5**0.5], dtype=torch.float64)
    for inputs in (
        (weight, row, column, None),
        (weight, row, None, None),
        (weight, None, column, None),
        (weight, row, column, unit),
        (weight, row, None, unit),
    ):
        assert torch.autograd.gradcheck(GatedWeight.apply, inputs)


def test_gated_weight_keeps_its_type():
    weight = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    row, column = torch.rand(4, requires_grad=True), torch.rand(3, requires_grad=True)
    gated = GatedWeight.apply(weight, row, column, None)
    gated.sum().backward()
    assert gated.dtype == weight.grad.dtype == torch.bfloat16
    assert row.grad.dtype == column.grad.dtype == torch.float32
    assert torch.allclose(row.grad, weight.detach().float() @ column.detach(), rtol=1e-5)


@once_a_family
def test_gradients_of_mask_values_are_those_of_the_model_under_them(variant):
    wrapped = masked(tiny(**variant).double(), **targets_of(variant)["all"]).eval()
    generator = torch.Generator().manual_seed(5)
    values = {
        name: torch.rand(a.shape, generator=generator, dtype=torch.float64) * (kept > 0)
        for (name, a), kept in zip(
            wrapped.masks.log_alpha.items(), wrapped.masks.kept("target").values(), strict=True
        )
    }
    direction = {
        name: torch.randn(v.shape, generator=generator, dtype=torch.float64) * (v != 0)
        for name, v in values.items()
    }

    weights = torch.randn(2, 11, 61, generator=generator, dtype=torch.float64)

    def loss(step):
        moved = {n: v + step * direction[n] for n, v in values.items()}
        return (wrapped.run_with(moved, TOKENS).logits * weights).sum()

    for value in values.values():
        value.requires_grad_()
    loss(0.0).backward()
    slope = sum((direction[n] * v.grad).sum() for n, v in values.items())
    with torch.no_grad():
        expected = (loss(3e-3) - loss(-3e-3)) / 6e-3
    assert slope.item() == pytest.approx(expected.item(), rel=3e-3)
    assert abs(slope) > 0.1


def test_a_dropped_group_drops_its_query_heads_whatever_their_masks_say():
    wrapped = masked(tiny(kv_heads=2), num_heads=2, num_kv_heads=2).eval()
    model = tiny(kv_heads=2)
    values = {"group": torch.ones(4, 2), "head": torch.ones(4, 2, 2)}
    assert torch.allclose(wrapped.run_with(values, TOKENS).logits, model(TOKENS).logits, atol=1e-5)
    values["group"][:, 1] = 0
    dropped = wrapped.run_with(values, TOKENS).logits
    values["head"][:, 1] = 0.5
    assert torch.equal(wrapped.run_with(values, TOKENS).logits, dropped)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, 16:] = 0
    assert torch.allclose(dropped, model(TOKENS).logits, atol=1e-5)


def test_norms_see_kept_dimensions_only():
    """LayerNorm's mean and variance, and a norm over all heads, against their definitions."""
    wrapped = masked(tiny("gpt_neox"), hidden_size=16, num_heads=2).eval()
    seen = {}
    norm = wrapped.model.gpt_neox.layers[0].input_layernorm
    norm.register_forward_hook(lambda _module, _args, output: seen.update(out=output))
    wrapped(TOKENS)
    values = wrapped.masks.values("current")["hidden"]
    kept = values != 0
    stream = tiny("gpt_neox").gpt_neox.embed_in(TOKENS)[..., kept] * values[kept]
    centred = stream - stream.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    plain = tiny("gpt_neox").gpt_neox.layers[0].input_layernorm
    expected = centred / (variance + plain.eps).sqrt() * plain.weight[kept] + plain.bias[kept]
    assert torch.allclose(seen["out"][..., kept], expected * values[kept], atol=1e-5)
    assert (seen["out"][..., ~kept] == 0).all()

    wrapped = masked(tiny("olmo2"), num_heads=2).eval()
    attention = wrapped.model.model.layers[1].self_attn
    attention.q_norm.register_forward_hook(lambda _module, _args, output: seen.update(q=output))
    attention.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.update(x=kwargs["hidden_states"]), with_kwargs=True
    )
    wrapped.use_masks("target")
    wrapped(TOKENS)
    kept = (wrapped.masks.values("target")["head"][1] != 0).repeat_interleave(8)
    plain = tiny("olmo2").model.layers[1].self_attn
    queries = plain.q_proj(seen["x"])[..., kept]
    scale = (queries.square().mean(-1, keepdim=True) + plain.q_norm.variance_epsilon).rsqrt()
    expected = queries * scale * plain.q_norm.weight[kept]
    assert torch.allclose(seen["q"][..., kept], expected, atol=1e-5)


@once_a_family
def test_gradient_checkpointing_gives_the_same_gradients(variant):
    target = targets_of(variant)["all"]
    plain, recomputed = (masked(tiny(**variant), **target).train() for _ in range(2))
    newer = getattr(recomputed.model, "activation_checkpointing_enable", None)
    (newer or recomputed.model.gradient_checkpointing_enable)()
    loss, expected = gradients(plain)
    other_loss, found = gradients(recomputed)
    assert torch.equal(loss, other_loss)
    for name, grad in expected.items():
        assert torch.equal(grad, found[name]), name


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, id=n, marks=[] if n in COMPILED_BY_DEFAULT else pytest.mark.slow)
        for n, v in ONCE_A_FAMILY.items()
    ],
)
def test_layers_compile_without_a_break_and_compute_the_same(variant):
    torch.compiler.reset()
    target = targets_of(variant)["all"]
    eager, compiled = (masked(tiny(**variant), **target).train() for _ in range(2))
    backend = "aot_eager" if variant["family"] == "llama" else "eager"
    for layer in compiled.model.get_decoder().layers:
        layer.compile(backend=backend, fullgraph=True)
    loss, expected = gradients(eager)
    other_loss, found = gradients(compiled)
    assert torch.allclose(loss, other_loss, atol=1e-5)
    for name, grad in expected.items():
        assert torch.allclose(grad, found[name], atol=1e-4), name


@pytest.mark.parametrize("seed", range(4))
def test_layers_of_alternating_kinds_stay_in_pairs(seed):
    model = tiny("gemma2", num_hidden_layers=8)
    wrapped = masked(model, seed=seed, num_layers=4, hidden_size=24)
    assert wrapped.masks.log_alpha["layer"].shape == (4,)
    layers = wrapped.plan().layers
    assert [layer % 2 for layer in layers] == [0, 1] * 2
    assert all(second == first + 1 for first, second in zip(layers[::2], layers[1::2], strict=True))
    small = wrapped.export()  # compares the logits of the masked and of the exported model
    assert small.config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert int(wrapped.masks.parameter_count(wrapped.masks.kept("target"))) == sum(
        parameter.numel() for parameter in small.parameters()
    )


@pytest.mark.slow
def test_no_step_after_the_first_ones_compiles_again():
    torch.compiler.reset()
    wrapped = masked(tiny("gemma2", kv_heads=2), **targets_of(VARIANTS["gemma2-grouped"])["all"])
    wrapped.model.compile(backend="eager", fullgraph=True)

    def work(part):
        gradients(wrapped.train(), part=part)
        with torch.no_grad():
            wrapped.eval()(input_ids=TOKENS, labels=TOKENS)

    work(0)
    work(1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for part in (2, 3):
            work(part)
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_what_is_compiled_for_a_layer_serves_all_layers(family):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    wrapped = masked(tiny(family, num_hidden_layers=12), hidden_size=16, num_heads=2)
    for layer in wrapped.model.get_decoder().layers:
        layer.compile(backend="eager")
    inputs = {"input_ids": TOKENS, "labels": TOKENS, "use_cache": False}
    wrapped.train()(**inputs).loss.backward()
    with torch.no_grad():
        wrapped.eval()(**inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_float64_models_have_the_gradients_of_float32():
    variant = VARIANTS["gpt_neox"]
    target = targets_of(variant)["all"]
    single = masked(tiny(**variant), **target).train()
    double = masked(tiny(**variant).double(), **target).train()
    (loss, expected), (other, found) = gradients(single), gradients(double)
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in expected.items():
        assert torch.allclose(gradient, found[name].float(), atol=1e-3, rtol=1e-3), name


def test_every_mode_brings_log_alphas_back_into_their_range():
    for mode in ("sampled", "current", "target"):
        wrapped = masked(tiny(), **TARGETS["all"])
        with torch.no_grad():
            for log_alpha in wrapped.masks.log_alpha.values():
                log_alpha[..., 0], log_alpha[..., 1] = 9.0, -9.0
        wrapped.masks.values(mode)
        for log_alpha in wrapped.masks.log_alpha.values():
            assert log_alpha.max() == torch.tensor(hard_concrete.LARGEST_LOG_ALPHA)
            assert log_alpha.min() == torch.tensor(hard_concrete.SMALLEST_LOG_ALPHA)


def test_samples_have_the_score_and_the_median_of_the_distribution():
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 2.0, 4.0])
    uniform = ((torch.arange(20_000) + 0.5) / 20_000)[:, None].expand(-1, 5)
    values = hard_concrete.sample(log_alpha.expand(20_000, 5), uniform)
    score = hard_concrete.expected_score(log_alpha)
    assert torch.allclose((values != 0).float().mean(0), score, atol=1e-3)
    median = (torch.sigmoid(log_alpha / (2 / 3)) * 1.2 - 0.1).clamp(0, 1)
    assert torch.allclose(values.median(0).values, median, atol=1e-3)


def test_embedding_is_masked_in_training():
    wrapped = masked(tiny(), random_masks=False, hidden_size=12).train()
    with torch.no_grad():
        wrapped.masks.log_alpha["hidden"][:5] = -100.0
    seen = []
    wrapped.model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    wrapped(input_ids=TOKENS)
    zeros = wrapped.masks.values("sampled")["hidden"] == 0
    assert zeros[:5].sum() >= 3
    assert (seen[0][..., zeros] == 0).all()
    assert (seen[0][..., ~zeros] != 0).all()


@pytest.mark.parametrize("name", TARGETS)
def test_axes_left_alone_have_no_masks(name):
    wrapped = masked(tiny(), **TARGETS[name])
    axes = {"num_layers": "layer", "hidden_size": "hidden", "num_heads": "head",
            "intermediate_size": "intermediate"}  # fmt: skip
    expected = {axes[dimension] for dimension in TARGETS[name]}
    assert set(wrapped.masks.granularities) == expected
    assert set(wrapped.sparsity()) == set(wrapped.target_sparsity()) == expected
    assert len(list(wrapped.masks.parameters())) == 3 * len(expected)


@cases
def test_expected_parameters(variant, target):
    wrapped = masked(tiny(**variant), **target)
    source, final = wrapped.source.num_parameters(), wrapped.target.num_parameters()
    hard = {name: keep.float() for name, keep in wrapped.masks.kept("target").items()}
    assert wrapped.masks.parameter_count(hard) == final
    assert wrapped.masks.parameter_count({n: torch.ones_like(k) for n, k in hard.items()}) == source
    assert 0 < wrapped.expected_parameters() < source


def test_current_masks_have_as_many_zeros_as_expected():
    wrapped = masked(tiny(), **TARGETS["all"]).eval()
    values = wrapped.masks.values("current")
    for name, scores in wrapped.masks.expected_scores().items():
        zeros = (values[name] == 0).sum(-1)
        expected = (1 - scores).sum(-1).round().clamp(max=scores.shape[-1] - 1)
        assert (zeros - expected).abs().max() <= 1
    with torch.no_grad():
        for log_alpha in wrapped.masks.log_alpha.values():
            log_alpha.fill_(-100.0)
    assert all((value != 0).any(-1).all() for value in wrapped.masks.values("current").values())


def test_first_masks_are_tied_and_nearly_open():
    wrapped = masked(tiny(), random_masks=False, **TARGETS["all"])
    values = wrapped.masks.values("current")
    assert all((value == value.flatten()[0]).all() for value in values.values())
    assert values["hidden"][0].item() == pytest.approx(0.996, abs=1e-3)
    assert all(share == pytest.approx(0.002, abs=1e-3) for share in wrapped.sparsity().values())


def test_scheduled_sparsity_follows_the_warm_up():
    wrapped = masked(tiny(), **TARGETS["all"])
    final = {"layer": 0.5, "hidden": 0.5, "head": 0.5, "intermediate": 0.55}
    for progress in (0.0, 0.4, 1.0):
        wrapped.set_step(1, progress)
        for name, share in wrapped.target_sparsity().items():
            assert share == pytest.approx(progress * final[name])
    with pytest.raises(ValueError, match="progress"):
        wrapped.set_step(1, 1.2)


def test_lagrangian_is_equation_1():
    wrapped = masked(tiny(), **TARGETS["all"])
    wrapped.set_step(0, 0.5)
    deviations = [
        1 - scores.mean(-1) - wrapped.target_sparsity()[name]
        for name, scores in wrapped.masks.expected_scores().items()
    ]
    penalty = sum(INITIAL_PENALTY * d.square().mean().item() for d in deviations)
    assert wrapped.lagrangian().item() == pytest.approx(penalty, rel=1e-4)
    expected = 0.0
    for name, scores in wrapped.masks.expected_scores().items():
        with torch.no_grad():
            wrapped.masks.linear[name].fill_(2.0)
            wrapped.masks.quadratic[name].fill_(3.0)
        deviation = 1 - scores.mean(-1) - wrapped.target_sparsity()[name]
        expected += (2 * deviation + 3 * deviation**2).mean().item()
        assert wrapped.sparsity_deviation()[name] == pytest.approx(deviation.abs().max().item())
    assert wrapped.lagrangian().item() == pytest.approx(expected, rel=1e-4)


def test_optimisation_reaches_the_target_in_every_layer():
    torch.manual_seed(1)
    wrapped = masked(tiny(), random_masks=False, **TARGETS["all"]).train()
    groups = wrapped.parameter_groups(learning_rate=1e-3, mask_learning_rate=1.0)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    steps = 150
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 1.0 if step < steps // 2 else 0.97
        wrapped.set_step(step, min(1.0, step / 40))
        optimizer.zero_grad()
        loss = wrapped(input_ids=TOKENS, labels=TOKENS).loss + wrapped.lagrangian()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
    for name, deviation in wrapped.sparsity_deviation().items():
        assert deviation < 0.05, (name, wrapped.sparsity(), wrapped.target_sparsity())
    assert all((p != 0).all() for p in wrapped.masks.linear.values())


def test_parameter_groups_cover_everything_once():
    wrapped = masked(tiny(tied=True), **TARGETS["all"])
    weights, masks, multipliers = wrapped.parameter_groups(
        learning_rate=1e-4, mask_learning_rate=0.5, multiplier_learning_rate=2.0, weight_decay=0.1
    )
    together = [p for g in (weights, masks, multipliers) for p in g["params"]]
    assert {id(p) for p in together} == {id(p) for p in wrapped.parameters()}
    assert len(together) == len({id(p) for p in together})
    assert [g["lr"] for g in (weights, masks, multipliers)] == [1e-4, 0.5, 2.0]
    assert [g["weight_decay"] for g in (weights, masks, multipliers)] == [0.1, 0, 0]
    assert multipliers["maximize"]


def test_state_round_trip():
    wrapped = masked(tiny(), seed=1, **TARGETS["all"]).eval()
    other = masked(tiny(seed=9), seed=2, **TARGETS["all"]).eval()
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(wrapped(TOKENS).logits, other(TOKENS).logits)
    assert set(wrapped.masks.state_dict()) == {
        f"{kind}.{name}"
        for kind in ("log_alpha", "linear", "quadratic")
        for name in ("layer", "hidden", "head", "intermediate")
    }


def test_plain_state_has_the_models_own_names_and_weights():
    model = tiny("qwen2", tied=True)
    before = copy.deepcopy(model.state_dict())
    wrapped = masked(model, **TARGETS["all"])
    plain = wrapped.plain_state_dict()
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[name], value) for name, value in before.items())
    other = tiny("qwen2", tied=True, seed=5).state_dict()
    wrapped.load_plain_state_dict(other)
    assert all(torch.equal(wrapped.plain_state_dict()[name], other[name]) for name in other)


def test_wrapped_inner_model_still_works():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    wrapped = masked(tiny(), **TARGETS["all"]).train()
    loss, _ = gradients(wrapped)
    wrapped.model = Wrapper(wrapped.model)
    assert gradients(wrapped)[0] == loss
    assert "model.embed_tokens.weight" in wrapped.plain_state_dict()
    assert wrapped.export().num_parameters() == wrapped.target.num_parameters()


def test_copies_are_independent_even_between_passes():
    wrapped = masked(tiny(), **TARGETS["all"]).train()
    loss, _ = gradients(wrapped)
    copied = copy.deepcopy(wrapped)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    wrapped(TOKENS)
    assert gradients(copied)[0] == loss


def test_bad_targets_and_models_are_refused():
    model = tiny()
    shape = ModelShape.of(model)
    with pytest.raises(BadInput, match="nothing to prune"):
        attach_masks(model, shape)
    with pytest.raises(BadInput, match="model_type"):
        attach_masks(model, ModelShape.of(tiny("qwen2")).pruned_to(num_layers=1))
    with pytest.raises(BadInput, match="hidden_size 48 is larger"):
        attach_masks(model, ModelShape.of(tiny(hidden_size=48, head_dim=8)))
    wrapped = attach_masks(model, shape.pruned_to(num_layers=1))
    for again in (model, wrapped):
        with pytest.raises(BadInput, match="attached already"):
            attach_masks(again, shape.pruned_to(num_layers=1))
    foreign = tiny()
    foreign.model.layers[1].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(BadInput, match="extra"):
        attach_masks(foreign, shape.pruned_to(num_layers=1))
    with pytest.raises(BadInput, match="not a LlamaForCausalLM"):
        attach_masks(tiny().model, shape.pruned_to(num_layers=1))


def test_dropout_that_undoes_the_centring_is_refused_before_masks_are_attached():
    model = tiny("gpt_neox", hidden_dropout=0.1)
    shape = ModelShape.of(model)
    with pytest.raises(BadInput, match=r"hidden_dropout 0\.1 does not go with masks .* set it to"):
        attach_masks(model, shape.pruned_to(hidden_size=16, num_heads=2))
    assert ModelShape.of(model) == shape
    attach_masks(model, shape.pruned_to(num_layers=2))  # without masks over hidden dimensions
