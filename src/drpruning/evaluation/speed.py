"""Speed of text generation with a key-value cache, and its peak memory.

Prefill is reading a prompt in one forward pass, decode is writing after it, one token a pass. The
first is bound by arithmetic, the second by reading weights and cache, so a pruned model may gain
differently in the two.
"""

import inspect
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.common.errors import BadInput
from drpruning.models.loading import check_loadable, load_model
from drpruning.runs.speed import BatchSpeed, Spread

PROMPT, NEW = 512, 128
"""Tokens of a prompt and tokens written after it, at most."""
BATCHES = (1, 8)
"""Texts at once: one, where decoding waits for memory, and several, which share each reading."""
REPEATS = 5
FIELD = "--speed"


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What each model does.

    Attributes:
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens that are written after it.
        vocab_size: Token ids are below it.
        device: `cuda` or `cpu`.
        repeats: How often each is measured, after a first time that does not count.
        batches: Texts at once, ascending.
    """

    prompt_tokens: int
    new_tokens: int
    vocab_size: int
    device: str
    repeats: int
    batches: tuple[int, ...] = BATCHES

    @classmethod
    def within(cls, positions: int | None, vocab_size: int, device: str) -> "SpeedSettings":
        """Settings that fit into this many positions; None: there is no limit."""
        limit = PROMPT + NEW if positions is None else positions
        new = min(NEW, max(1, limit // 4))
        return cls(
            prompt_tokens=min(PROMPT, max(1, limit - new)),
            new_tokens=new,
            vocab_size=vocab_size,
            device=device,
            repeats=REPEATS,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and arithmetic: what models are used with on such a device."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def prompts(self, batch: int) -> Tensor:
        """Random token ids [batch, prompt_tokens], the same in every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.prompt_tokens)
        return torch.randint(self.vocab_size, shape, generator=generator).to(self.device)


@dataclass
class Samples:
    """What was measured of one model with one batch size, in the order of the repeats."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: float = math.nan


def place(path: str, name: str, settings: SpeedSettings) -> nn.Module:
    """Load a model for generation.

    Args:
        path: A folder, or a name on the Hub.
        name: What named it, for the message.
        settings: Device and type.

    Raises:
        BadInput: It cannot be loaded, or does not fit into the GPU's memory.
    """
    model: nn.Module = load_model(path, name, dtype=settings.dtype)
    try:
        model.to(settings.device)
    except torch.OutOfMemoryError:
        raise BadInput(
            f"{FIELD}: {path} does not fit into the memory of the GPU beside the source model; "
            "free some, or measure on a larger one"
        ) from None
    return model.eval()


@torch.inference_mode()
def generate(model: nn.Module, prompts_BT: Tensor, new_tokens: int) -> tuple[float, float]:
    """Read prompts and write after them, each time the likeliest token.

    Args:
        model: A causal language model.
        prompts_BT: Token ids.
        new_tokens: Tokens that are written, the first of which follows from the prompt.

    Returns:
        Seconds of prefill and of decode.
    """
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1  # as in Transformers' own generation
    start = _now(prompts_BT.device)
    output = model(input_ids=prompts_BT, **options)
    token_B1 = output.logits[:, -1:].argmax(-1)
    read = _now(prompts_BT.device)
    for _ in range(new_tokens):
        output = model(input_ids=token_B1, past_key_values=output.past_key_values, **options)
        token_B1 = output.logits[:, -1:].argmax(-1)
    return read - start, _now(prompts_BT.device) - read


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_in_turn(
    models: Sequence[nn.Module], settings: SpeedSettings, on_progress: Callable[[], None]
) -> dict[int, list[Samples]]:
    """Measure models one after the other, again and again, so that all meet the same conditions.

    A machine that becomes warmer, or that others use too, then slows all of them.

    Args:
        models: On the device of the settings.
        settings: What each does.
        on_progress: Called after each generation.

    Returns:
        Batch size -> what was measured of each model, without sizes that the GPU's memory does not
        hold.
    """
    found = {}
    for batch in settings.batches:
        prompts = settings.prompts(batch)
        samples = [Samples() for _ in models]
        try:
            for repeat in range(settings.repeats + 1):
                for model, each in zip(models, samples, strict=True):
                    seconds = _measured(model, prompts, settings, each)
                    if repeat:
                        each.prefill.append(batch * settings.prompt_tokens / seconds[0])
                        each.decode.append(batch * settings.new_tokens / seconds[1])
                    on_progress()
        except torch.OutOfMemoryError:
            continue
        found[batch] = samples
    return found


def _measured(
    model: nn.Module, prompts: Tensor, settings: SpeedSettings, samples: Samples
) -> tuple[float, float]:
    """Generate once; on a GPU also note the peak of what this model alone needs."""
    if settings.device == "cpu":
        return generate(model, prompts, settings.new_tokens)
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    others = torch.cuda.memory_allocated() - own
    torch.cuda.reset_peak_memory_stats()
    seconds = generate(model, prompts, settings.new_tokens)
    samples.memory = float(torch.cuda.max_memory_allocated() - others)
    return seconds


def generations(models: int, settings: SpeedSettings) -> int:
    """How many there are in `measure_in_turn`."""
    return models * len(settings.batches) * (settings.repeats + 1)


def batch_speeds(own: Mapping[int, Samples], source: Mapping[int, Samples]) -> list[BatchSpeed]:
    """What is recorded of a model: medians, spread, and ratios to the source, repeat by repeat.

    Args:
        own: Batch size -> samples of the model.
        source: The same of the source, measured in turn with it.
    """

    def ratios(ones: Sequence[float], others: Sequence[float]) -> Spread:
        return Spread.of([one / other for one, other in zip(ones, others, strict=True)])

    return [
        BatchSpeed(
            batch=batch,
            prefill=Spread.of(samples.prefill),
            decode=Spread.of(samples.decode),
            memory=samples.memory,
            prefill_times_source=ratios(samples.prefill, source[batch].prefill),
            decode_times_source=ratios(samples.decode, source[batch].decode),
            memory_times_source=samples.memory / (source[batch].memory or math.nan),
        )
        for batch, samples in own.items()
    ]


# Memory on a CPU: in a process of its own, where nothing else grows.


def resident_memory(path: str, name: str, settings: SpeedSettings) -> dict[int, float]:
    """Peak memory of a model on the CPU: growth of resident memory in a process of its own.

    Args:
        path: A folder, or a name on the Hub.
        name: What named it, for the message.
        settings: What it does.

    Returns:
        Batch size -> bytes, weights included; empty where the system does not tell (not Linux).

    Raises:
        BadInput: The process fails, as where it gets no memory.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    request = json.dumps({"path": path, "name": name, "settings": asdict(settings)})
    command = [sys.executable, "-m", "drpruning.evaluation.speed", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BadInput(
            f"{FIELD}: the process that measures the memory of {path} failed with status "
            f"{done.returncode} ({last}); free some memory, or measure on a larger machine"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {int(batch): size for batch, size in found.items()}


def _memory_process(request: str) -> None:
    """Print the growth of this process's resident memory for each batch size, as JSON."""
    values = json.loads(request)
    wanted = values["settings"]
    settings = SpeedSettings(**wanted | {"batches": tuple(wanted["batches"])})
    # Libraries are loaded with the first model that is built and computed; that is not its memory.
    check_loadable(values["path"], values["name"])
    torch.nn.Linear(8, 8)(torch.zeros(2, 8))
    before = _status("VmRSS")
    model = place(values["path"], values["name"], settings)
    found = {}
    for batch in settings.batches:  # ascending: freed memory may stay with the process
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        generate(model, settings.prompts(batch), settings.new_tokens)
        found[batch] = _status("VmHWM") - before
    print(json.dumps(found))  # noqa: T201 - the result of this process


def _status(entry: str) -> int:
    """Bytes that the system counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


if __name__ == "__main__":
    _memory_process(sys.argv[1])
