"""Time of a training step with masks against the plain step of the same model.

Both train in one process on the same random tokens, step by step in turn, so that whatever else the
machine does falls on both. Prints one JSON object.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from drpruning.pruning import ModelShape, attach_masks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="model folder; without it a random Llama of 8.5M parameters"
    )
    parser.add_argument(
        "--target", default="num_layers=6,hidden_size=160,intermediate_size=440,num_heads=5"
    )
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each kind")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each kind before those")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="autocast where not float32",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile every layer")
    return parser.parse_args()


def load(folder: str | None) -> PreTrainedModel:
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=8,
        num_attention_heads=8, max_position_embeddings=512,
    ))  # fmt: skip


def plain_step(args: argparse.Namespace, model: PreTrainedModel) -> Callable[[torch.Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def step(blocks: torch.Tensor) -> None:
        for micro_batch in blocks:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = model(input_ids=micro_batch, labels=micro_batch, use_cache=False).loss
            (loss / len(blocks)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def masked_step(args: argparse.Namespace, model: PreTrainedModel) -> Callable[[torch.Tensor], None]:
    target = {k: int(v) for k, v in (pair.split("=") for pair in args.target.split(","))}
    masked = attach_masks(model, ModelShape.of(model).pruned_to(**target))
    groups = masked.parameter_groups(learning_rate=1e-4, mask_learning_rate=1.0)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    done = 0

    def step(blocks: torch.Tensor) -> None:
        nonlocal done
        masked.set_step(done, progress=min(1.0, done / 80))
        masked.lagrangian().backward()
        for part, micro_batch in enumerate(blocks):
            masked.set_part(part)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = masked(input_ids=micro_batch, labels=micro_batch, use_cache=False).loss
            (loss / len(blocks)).backward()
        torch.nn.utils.clip_grad_norm_(masked.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += 1

    return step


def measure(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plain = load(args.model).to(args.device).train()
    other = copy.deepcopy(plain)
    steps = {"plain": plain_step(args, plain), "masked": masked_step(args, other)}
    if args.compile:
        for layer in [*plain.model.layers, *other.model.layers]:
            layer.compile()
    shape = (args.micro_batches, args.micro_batch, args.sequence_length)
    blocks = torch.randint(plain.config.vocab_size, shape, device=args.device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.warmup + args.steps):
        for name, step in steps.items():
            start = time.perf_counter()
            step(blocks)
            if args.device != "cpu":
                torch.accelerator.synchronize()
            seconds[name].append(time.perf_counter() - start)
    timed = {name: values[args.warmup :] for name, values in seconds.items()}
    ratios = [m / p for m, p in zip(timed["masked"], timed["plain"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "plain_seconds": round(statistics.median(timed["plain"]), 4),
        "masked_seconds": round(statistics.median(timed["masked"]), 4),
        "tokens": blocks.numel(),
        "settings": vars(args),
    }


if __name__ == "__main__":
    print(json.dumps(measure(parse())))
