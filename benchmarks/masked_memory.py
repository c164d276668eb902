"""Peak memory of a training step with masks against the plain step of the same model.

On the CPU every live storage is counted, exactly, as torch's MemTracker sees it; on a GPU it is
the most that the allocator gave out. What is measured is the second micro-batch after the first
update, when gradients and moments are there. Prints one JSON object.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.pruning import ModelShape, attach_masks

SIZES = {
    "base-8m": {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    },
    "large": {
        "vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
    },
}  # fmt: skip
LIMIT = 1.02
"""Most that masks may cost with gradient checkpointing."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base-8m")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def build(args: argparse.Namespace, *, masked: bool, checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(args.device):
        model = LlamaForCausalLM(LlamaConfig(**SIZES[args.size], max_position_embeddings=4096))
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.train()
    if not masked:
        return model
    shape = ModelShape.of(model)
    half = {
        name: getattr(shape, name) // 2
        for name in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    }
    return attach_masks(model, shape.pruned_to(**half)).train()


def measure(args: argparse.Namespace, *, masked: bool, checkpointing: bool) -> int:
    """Bytes at the peak."""
    model = build(args, masked=masked, checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    size = (args.micro_batch, args.sequence_length)
    blocks = torch.randint(SIZES[args.size]["vocab_size"], size, device=args.device)
    half = args.dtype == "bfloat16"

    def accumulate() -> None:
        with torch.autocast(args.device, torch.bfloat16) if half else nullcontext():
            loss = model(input_ids=blocks, labels=blocks, use_cache=False).loss
        loss.backward()
        if masked:
            model.lagrangian().backward()

    accumulate()
    optimizer.step()
    peak = cuda_peak if args.device.startswith("cuda") else tracked_peak
    return peak(accumulate, model, optimizer, blocks)


def tracked_peak(work: Callable[[], None], *known: object) -> int:
    tracker = MemTracker()
    tracker.track_external(*known)
    with tracker:
        work()
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


def cuda_peak(work: Callable[[], None], *known: object) -> int:
    del known
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    args = parse()
    result: dict[str, object] = {"settings": vars(args), "wanted": LIMIT}
    for name, checkpointing in (("plain", False), ("gradient_checkpointing", True)):
        plain, masked = (
            measure(args, masked=m, checkpointing=checkpointing) for m in (False, True)
        )
        result[name] = {
            "ratio": round(masked / plain, 4),
            "plain_mib": round(plain / 2**20, 1),
            "masked_mib": round(masked / 2**20, 1),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
