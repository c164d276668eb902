"""Peak memory and time of the loss of distillation against plain cross-entropy.

From the last hidden states through the output matrix to the gradients of both, each case in a
process of its own. Memory is what comes on top of the weights and hidden states, the teacher's
included: resident memory on the CPU, what the allocator gave out on a GPU. Prints a table, or one
JSON object.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from drpruning.distillation import distillation_loss, log_probabilities

WEIGHT = 0.9
LIMIT = 1.1
"""Most memory that distillation may take, plain cross-entropy being 1."""
Loss = Callable[["Inputs"], Tensor]


class Inputs:
    """Hidden states [N, D], output matrices [V, D] of student and teacher, and labels [N]."""

    def __init__(self, args: argparse.Namespace, tokens: int) -> None:
        torch.manual_seed(0)
        made: dict[str, Any] = {"device": args.device, "dtype": torch.bfloat16}
        self.states, self.taught = (
            torch.randn(tokens, width, **made) for width in (args.hidden, args.teacher_hidden)
        )
        self.head, self.teacher = (
            torch.randn(args.vocabulary, width, **made).mul_(width**-0.5)
            for width in (args.hidden, args.teacher_hidden)
        )
        self.labels = torch.randint(args.vocabulary, (tokens,), device=args.device)
        self.states.requires_grad_()
        self.head.requires_grad_()


def plain(given: Inputs) -> Tensor:
    """Cross-entropy as Transformers computes it."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = linear(given.states, given.head)
    return ForCausalLMLoss(logits, given.labels, len(given.head), shift_labels=given.labels)


def distilled(given: Inputs, top_k: int | None = None) -> Tensor:
    """Ours, the teacher's logits made a chunk at a time."""

    def teacher(rows: slice) -> Any:
        return log_probabilities(linear(given.taught[rows], given.teacher), 1.0, top_k)

    logits = linear(given.states, given.head)
    return distillation_loss(logits, given.labels, teacher, weight=WEIGHT).loss


def liger(given: Inputs) -> Tensor:
    """Liger's fused loss, which makes the student's logits in chunks too."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - WEIGHT,
        weight_soft_loss=WEIGHT,
        beta=0.0,  # KL(teacher || student)
        compiled=given.states.is_cuda,
    )
    found: Tensor = loss(given.states, given.head, given.taught, given.teacher, given.labels)
    return found


CASES: dict[str, Loss] = {
    "plain": plain,
    "distillation": distilled,
    "distillation, top 64": lambda given: distilled(given, 64),
    "Liger": liger,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="in a micro-batch; 4096 on a GPU")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=1024, help="of the student")
    parser.add_argument("--teacher-hidden", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="of which the fastest is shown")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Run one case in this process."""
    CASES[args.case](Inputs(args, 8)).backward()  # what is loaded and set up once
    given = Inputs(args, args.tokens)
    seconds = []
    before = reset_peak(args.device)
    for _ in range(args.repeats):
        given.states.grad = given.head.grad = None
        begun = time.perf_counter()
        loss = CASES[args.case](given)
        loss.backward()
        value = loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
        del loss
    return {"bytes": peak(args.device) - before, "seconds": min(seconds), "loss": value}


def reset_peak(device: str) -> int:
    """Forget the peak so far; returns what is in use."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident("VmHWM")


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    args = parse()
    if args.case:
        print(json.dumps(measure(args)))
        return
    found = {}
    for case in CASES:
        if case == "Liger" and find_spec("liger_kernel") is None:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[case] = json.loads(done.stdout)
        found[case]["memory"] = round(found[case]["bytes"] / found["plain"]["bytes"], 3)
    versions = {"torch": torch.__version__}
    for package in ("transformers", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    settings = {k: v for k, v in vars(args).items() if k not in ("case", "json")}
    if args.json:
        print(json.dumps({"settings": settings, "versions": versions, "wanted": LIMIT} | found))
        return
    print(f"{settings}; {versions}; memory wanted: at most {LIMIT} of plain")
    print("| loss | memory, MiB | of plain | seconds |\n|---|---:|---:|---:|")
    for case, row in found.items():
        mib = row["bytes"] / 2**20
        print(f"| {case} | {mib:,.0f} | {row['memory']:.3f} | {row['seconds']:.2f} |")


if __name__ == "__main__":
    main()
