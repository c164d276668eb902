"""Shapes for a parameter budget: near it, reachable, in proportion, the same without torch."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.common.errors import BadInput
from drpruning.pruning import FAMILIES, ModelShape, propose_shapes
from drpruning.pruning.clients import client_limits, heads_that_fill, new_limits

PRUNABLE = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")


def shape(
    family: str, layers: int, hidden: int, intermediate: int, heads: tuple[int, int], head_dim: int,
    vocabulary: int, **other: Any,
) -> ModelShape:  # fmt: skip
    return ModelShape(
        model_type=family, num_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, vocab_size=vocabulary,
        **other,
    )  # fmt: skip


LLAMA2_7B = shape("llama", 32, 4096, 11008, (32, 32), 128, 32000)
QWEN2_7B = shape("qwen2", 28, 3584, 18944, (28, 4), 128, 152064)
QWEN_TIED = shape("qwen2", 24, 896, 4864, (14, 2), 64, 151936, tied_embeddings=True)
SOURCES = {
    "llama2-7b": LLAMA2_7B,
    "llama2-13b": shape("llama", 40, 5120, 13824, (40, 40), 128, 32000),
    "llama3-8b": shape("llama", 32, 4096, 14336, (32, 8), 128, 128256),
    "llama3-70b": shape("llama", 80, 8192, 28672, (64, 8), 128, 128256),
    "qwen2-7b": QWEN2_7B,
    "qwen2-0.5b": QWEN_TIED,
    "tinyllama": shape("llama", 22, 2048, 5632, (32, 4), 64, 32000),
    "base-8m": shape("llama", 8, 256, 704, (8, 8), 32, 4096),
}


def sizes(of: ModelShape) -> tuple[int, ...]:
    return tuple(getattr(of, name) for name in PRUNABLE)


def check(source: ModelShape, params: int, fixed: dict[str, int]) -> None:
    proposals = propose_shapes(source, params, **fixed)
    assert 1 <= len(proposals) <= 5
    assert len({sizes(p.shape) for p in proposals}) == len(proposals)
    near = abs(proposals[0].deviation) <= 0.02
    for proposal in proposals:
        assert source.pruned_to(**dict(zip(PRUNABLE, sizes(proposal.shape), strict=True))) == (
            proposal.shape
        )
        assert proposal.shape != source
        assert proposal.deviation == proposal.shape.num_parameters() / params - 1
        assert abs(proposal.deviation) <= 0.02 or not near
        assert "budget" in proposal.reason
        for name, size in fixed.items():
            assert getattr(proposal.shape, name) == size


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.7, 0.95])
def test_proposals_are_near_the_budget_and_reachable(name: str, share: float) -> None:
    source = SOURCES[name]
    params = int(share * source.num_parameters())
    check(source, params, {})
    assert abs(propose_shapes(source, params)[0].deviation) <= 0.02


@settings(max_examples=60)
@given(
    family=st.sampled_from(["llama", "qwen2"]),
    layers=st.integers(1, 20),
    groups=st.integers(1, 6),
    queries=st.integers(1, 4),
    head_dim=st.sampled_from([8, 10, 64]),
    wide=st.integers(1, 3),
    intermediate=st.integers(3, 2000),
    tied=st.booleans(),
    part=st.floats(0, 1),
)
def test_every_budget_in_the_range_has_a_proposal(
    family: str, layers: int, groups: int, queries: int, head_dim: int, wide: int,
    intermediate: int, tied: bool, part: float,
) -> None:  # fmt: skip
    heads = groups * queries
    source = shape(family, layers, wide * heads * head_dim, intermediate, (heads, groups), head_dim,
                   50, tied_embeddings=tied)  # fmt: skip
    with pytest.raises(BadInput, match="possible: ") as error:
        propose_shapes(source, 1)
    told = str(error.value).rpartition("possible: ")[2].replace(",", "")
    smallest, largest = map(int, told.split(" to "))
    assert 1 < smallest <= largest < source.num_parameters()
    check(source, round(smallest + part * (largest - smallest)), {})
    with pytest.raises(BadInput, match="possible: "):
        propose_shapes(source, source.num_parameters())


@pytest.mark.parametrize(
    ("params", "paper"),
    [
        (2_701_560_320, (32, 2560, 6912, 20, 20)),
        (2_700_000_000, (32, 2560, 6912, 20, 20)),
        (1_345_423_360, (24, 2048, 5504, 16, 16)),
        (373_867_520, (24, 1024, 2816, 8, 8)),
    ],
)
def test_the_papers_shapes_of_llama_come_first(params: int, paper: tuple[int, ...]) -> None:
    assert sizes(propose_shapes(LLAMA2_7B, params)[0].shape) == paper


def test_the_round_budgets_of_the_paper_give_close_kin() -> None:
    assert sizes(propose_shapes(LLAMA2_7B, 1_300_000_000)[0].shape)[:2] == (24, 2048)
    for proposal in propose_shapes(QWEN2_7B, 1_800_000_000):
        assert 18 <= proposal.shape.num_layers <= 28
        assert 1536 <= proposal.shape.hidden_size <= 1920
        assert proposal.shape.num_kv_heads == 2


def test_widths_suit_the_hardware() -> None:
    for source in (LLAMA2_7B, QWEN2_7B):
        for share in (0.15, 0.3, 0.6):
            for proposal in propose_shapes(source, int(share * source.num_parameters())):
                assert proposal.shape.hidden_size % 128 == 0
                assert proposal.shape.intermediate_size % 128 == 0
    best = propose_shapes(LLAMA2_7B, 3_000_000_000)[0].shape
    assert best.num_heads * best.head_dim == best.hidden_size


@pytest.mark.parametrize(
    "fixed",
    [
        {"num_layers": 32},
        {"hidden_size": 2048},
        {"num_heads": 16},
        {"intermediate_size": 5504},
        {"num_layers": 20, "hidden_size": 2048, "num_heads": 16},
    ],
    ids="-".join,
)
def test_given_dimensions_stand(fixed: dict[str, int]) -> None:
    check(LLAMA2_7B, 1_300_000_000, fixed)
    assert abs(propose_shapes(LLAMA2_7B, 1_300_000_000, **fixed)[0].deviation) <= 0.02


@pytest.mark.parametrize(
    ("params", "fixed", "words"),
    [
        (7_000_000_000, {}, ["7,000,000,000", "6,738,415,616", "possible: "]),
        (1_000_000, {}, ["1,000,000", "possible: "]),
        (1_300_000_000, {"hidden_size": 128 * 3}, ["hidden_size 384", "possible: "]),
        (1_300_000_000, {"num_layers": 40}, ["num_layers 40"]),
        (1_300_000_000, {"num_heads": 16, "num_kv_heads": 5}, ["num_heads 16", "num_kv_heads 5"]),
    ],
)
def test_impossible_budgets_are_refused(
    params: int, fixed: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(BadInput) as error:
        propose_shapes(LLAMA2_7B, params, **fixed)
    for word in words:
        assert word in str(error.value)


def test_search_needs_no_torch() -> None:
    code = (
        "import sys\nfrom drpruning.pruning import ModelShape, propose_shapes\n"
        f"source = ModelShape.from_dict({QWEN_TIED.to_dict()!r})\n"
        "print(len(propose_shapes(source, 300_000_000)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_what_other_software_does_not_take_is_not_proposed(name: str, share: float) -> None:
    source = SOURCES[name]
    best = propose_shapes(source, int(share * source.num_parameters()))[0].shape
    assert [limit for limit in new_limits(source, best) if limit.severe] == []
    assert [limit for limit in new_limits(source, best) if "of 32" in limit.rule] == []


def test_what_other_software_does_not_take_is_proposed_on_demand() -> None:
    fixed = {"hidden_size": 1536, "num_heads": 14, "num_kv_heads": 2}
    shape = propose_shapes(QWEN2_7B, 1_800_000_000, **fixed)[0].shape
    (limit,) = (limit for limit in new_limits(QWEN2_7B, shape) if limit.severe)
    assert limit.problem == "heads x head size (14 x 128) is not the hidden size (1,536)"
    assert heads_that_fill(QWEN2_7B, 1536) == (12, 2)
    assert heads_that_fill(QWEN2_7B, 1500) is None


HEADS_FILL = {
    "llama": {"CTranslate2"},
    "qwen2": {"llama.cpp", "vLLM", "CTranslate2"},
    "olmo2": {"llama.cpp"},
    "phi3": {"llama.cpp"},
}
"""Family -> who needs heads x head size to be the hidden size, as in docs/clients.md."""


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt_neox"}))
def test_who_needs_heads_that_fill_the_hidden_size(family: str) -> None:
    """GPT-NeoX has no others; what the programs do is tried in tests/clients."""
    source = shape(family, 4, 1024, 2048, (8, 8), 128, 100)
    target = shape(family, 4, 1024, 2048, (4, 4), 128, 100)
    limits = new_limits(source, target)
    clients = {effect.split()[0] for limit in limits if limit.severe for effect in limit.effects}
    assert clients == HEADS_FILL.get(family, set())


def test_what_the_source_lacks_too_is_no_limit_of_a_target() -> None:
    source = shape("llama", 4, 1000, 3000, (8, 8), 64, 100)
    target = shape("llama", 2, 500, 1500, (4, 4), 64, 100)
    assert client_limits(source)
    assert new_limits(source, target) == []


def test_a_source_that_is_not_quantized_well_itself_is_cut_in_proportion() -> None:
    """Where no target could be better than the source, blocks of weights are no reason."""
    source = shape("llama", 24, 1000, 2730, (10, 10), 100, 32000)
    best = propose_shapes(source, int(0.4 * source.num_parameters()))[0].shape
    assert best.num_layers >= 20
    assert best.num_heads * best.head_dim == best.hidden_size


def test_layers_that_alternate_are_proposed_in_pairs() -> None:
    gemma = shape("gemma2", 42, 3584, 14336, (16, 8), 256, 256000, tied_embeddings=True)
    for share in (0.3, 0.6):
        proposals = propose_shapes(gemma, int(share * gemma.num_parameters()))
        assert [p.shape.num_layers % 2 for p in proposals] == [0] * len(proposals)
