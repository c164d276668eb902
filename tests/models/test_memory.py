"""The memory estimate against torch's own trackers, on tensors that are never allocated."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from drpruning.common.chunks import LOGIT_CHUNK
from drpruning.models.memory import (
    EAGER_BY_DEFAULT,
    MemoryEstimate,
    estimate_memory,
    teacher_memory,
)
from drpruning.pruning import FAMILIES, ModelShape, attach_masks
from drpruning.recipe import Distill, Training

TOLERANCE = 0.05
LENGTH = 2048
CONFIG = LlamaConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=4096,
)
SHAPE = ModelShape.of(CONFIG)
TARGET = SHAPE.pruned_to(num_layers=3, hidden_size=512, intermediate_size=1408, num_heads=8)


def training(*, checkpointing: bool, precision: str = "bf16", **more: object) -> Training:
    settings = {"gradient_checkpointing": checkpointing, "precision": precision}
    return Training.model_validate({"micro_batch": 2, **settings, **more})


@pytest.fixture(autouse=True)
def no_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers looks at the positions for packed sequences, which fake tensors do not have."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)


@pytest.fixture
def ranks() -> Iterator[Callable[[int], object]]:
    """A mesh of so many ranks, of which there is only one."""

    def mesh(count: int) -> object:
        dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
        return init_device_mesh("cpu", (count,))

    yield mesh
    if dist.is_initialized():
        dist.destroy_process_group()


def peak(model: LlamaForCausalLM, settings: Training, *, masked: bool, mesh: object = None) -> int:
    """Bytes at the peak of the second micro-batch, when gradients and moments are there."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    half = settings.precision == "bf16"
    trained = attach_masks(model, TARGET) if masked else model
    if mesh is not None:
        arithmetic = torch.bfloat16 if half else None
        policy = MixedPrecisionPolicy(param_dtype=arithmetic, reduce_dtype=torch.float32)
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    blocks = torch.randint(CONFIG.vocab_size, (settings.micro_batch, LENGTH))
    optimizer = torch.optim.AdamW(model.parameters())
    tracker = MemTracker() if mesh is None else FSDPMemTracker(model, optimizer)
    tracker.track_external(trained, *([optimizer] if mesh is None else []))

    def accumulate() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half and mesh is None):
            loss = trained(input_ids=blocks, labels=blocks, use_cache=False).loss
        loss.backward()

    with tracker:
        accumulate()
        optimizer.step()
        tracker.reset_mod_stats()
        accumulate()
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("precision", "masked"),
    [("bf16", False), ("bf16", True), pytest.param("fp32", True, marks=pytest.mark.slow)],
)
def test_whole_estimate_agrees_with_the_tracker(
    checkpointing: bool, precision: str, masked: bool
) -> None:
    settings = training(checkpointing=checkpointing, precision=precision)
    with FakeTensorMode():
        measured = peak(LlamaForCausalLM(CONFIG).train(), settings, masked=masked)
    estimate = estimate_memory(SHAPE, settings, LENGTH, masked=masked)
    assert estimate.whole == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow), 8])
def test_sharded_estimate_agrees_with_the_tracker(
    ranks: Callable[[int], object], count: int, checkpointing: bool
) -> None:
    settings, mesh = training(checkpointing=checkpointing), ranks(count)
    masked = count == 4
    with FakeTensorMode():
        measured = peak(LlamaForCausalLM(CONFIG).train(), settings, masked=masked, mesh=mesh)
    estimate = estimate_memory(SHAPE, settings, LENGTH, masked=masked)
    assert estimate.sharded[count] == pytest.approx(measured, rel=TOLERANCE)


def llama(**settings: object) -> MemoryEstimate:
    more = {"checkpointing": True} | settings
    loss = {name: bool(more.pop(name, False)) for name in ("masked", "distilled")}
    return estimate_memory(SHAPE, training(**more), LENGTH, **loss, gpus=(1, 2, 4, 8, 64))


def test_more_gpus_need_less_memory_each() -> None:
    for masked in (False, True):
        sizes = [*llama(masked=masked).sharded.values()]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] > sizes[0] / 64


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({}, {"masked": True}),
        ({}, {"checkpointing": False}),
        ({}, {"micro_batch": 4}),
        ({}, {"attention": "eager", "micro_batch": 2}),
        ({"liger": True}, {}),
        (
            {"liger": True, "checkpointing": False},
            {"liger": True, "checkpointing": False, "distilled": True},
        ),
        ({"checkpointing": False}, {"checkpointing": False, "precision": "fp32"}),
    ],
)
def test_settings_change_the_estimate_in_their_direction(
    smaller: dict[str, object], larger: dict[str, object]
) -> None:
    less, more = llama(**smaller), llama(**larger)
    assert less.whole < more.whole
    assert all(less.sharded[count] < more.sharded[count] for count in less.sharded)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_without_fused_attention_are_known(family: str) -> None:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(family))]
    assert model_class._supports_sdpa == (family not in EAGER_BY_DEFAULT)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_memory_of_a_teacher_agrees_with_the_tracker(dtype: str) -> None:
    settings = training(checkpointing=False)
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(torch.float32 if dtype == "fp32" else torch.bfloat16)
        try:
            model = LlamaForCausalLM(CONFIG).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        blocks = torch.randint(CONFIG.vocab_size, (settings.micro_batch, LENGTH))
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            hidden = model.model(input_ids=blocks, use_cache=False).last_hidden_state
            rows = LOGIT_CHUNK // (4 * CONFIG.vocab_size)
            logits = model.lm_head(hidden.flatten(0, 1)[:rows])
            in_float32 = logits.to(torch.float32, copy=True)
            in_float32.log_softmax(-1)
    measured = sum(d["Total"] for d in tracker.get_tracker_snapshot("peak").values())
    estimate = teacher_memory(SHAPE, Distill.model_validate({"dtype": dtype}), settings, LENGTH, 1)
    assert estimate == pytest.approx(measured, rel=TOLERANCE)
