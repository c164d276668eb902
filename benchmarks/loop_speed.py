"""What the training loop costs around the bare step: batches, evaluation, ratio updates.

A real continued-pretraining run of a real model, in a temporary folder; after each of its steps the
bare step (forward, backward, clip, AdamW on a fixed batch already in memory) is timed on a copy of
the model. Prints one JSON object.

    python benchmarks/loop_speed.py MODEL_FOLDER TEXT_FOLDER

TEXT_FOLDER has one folder a domain, with train.jsonl and validation.jsonl.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.data import Mixture
from drpruning.recipe import Recipe, parse_recipe
from drpruning.run import Run
from drpruning.training import load_model, phase_policy
from drpruning.training.loop import Loop, Setting


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--evaluate-every", type=int, default=6)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--validation-blocks", type=int, default=48)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    return parser.parse_args()


def recipe(args: argparse.Namespace, folder: Path) -> Recipe:
    names = sorted(path.parent.name for path in args.text.glob("*/train.jsonl"))
    domains = {
        name: {
            "source": f"{name}/train.jsonl",
            "validation": f"{name}/validation.jsonl",
            "share": 1 / len(names),
        }
        for name in names
    }
    return parse_recipe(
        {
            "model": {"source": str(args.model)},
            "data": {
                "root": str(args.text),
                "sequence_length": args.sequence_length,
                "validation_blocks": args.validation_blocks,
                "domains": domains,
            },
            "scheduling": {"forecast_start": 0.0},
            "pretrain": {
                "steps": args.steps,
                "global_batch": args.global_batch,
                "evaluate_every": args.evaluate_every,
            },
            "training": {"micro_batch": args.micro_batch, "precision": args.precision},
            "output": str(folder / "run"),
        }
    )


class BareStep:
    """The step without a loop around it, on one fixed batch."""

    def __init__(self, model: nn.Module, args: argparse.Namespace):
        self.model, self.args = model, args
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        shape = (args.global_batch // args.micro_batch, args.micro_batch, args.sequence_length)
        device = next(model.parameters()).device
        self.blocks = torch.randint(model.config.vocab_size, shape, device=device)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        device = self.blocks.device.type
        for rows in self.blocks:
            with torch.autocast(device, torch.bfloat16, enabled=self.args.precision == "bf16"):
                loss = self.model(input_ids=rows, labels=rows, use_cache=False).loss
            (loss / len(self.blocks)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class TimedLoop(Loop):
    """The loop with a clock; the bare step takes its turn after each of its steps."""

    def __init__(self, bare: BareStep, *arguments: Any):
        self.bare = bare
        self.times: dict[str, list[float]] = {"step": [], "bare": [], "fetch": [], "plan": []}
        super().__init__(*arguments)
        plan = self.mixture.plan_segment
        self.mixture.plan_segment = lambda *a: self._timed("plan", plan, *a)  # type: ignore[method-assign]

    def _timed(self, name: str, function: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times[name].append(time.perf_counter() - start)
        return result

    def _batch(self) -> Tensor:
        return self._timed("fetch", super()._batch)

    def _train_step(self) -> None:
        self._timed("step", super()._train_step)
        self._timed("bare", self.bare)


def measure(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    phase = run.recipe.pretrain
    assert phase is not None
    model = load_model(str(args.model))
    bare = BareStep(copy.deepcopy(model).to(run.accelerator.device).train(), args)
    setting = Setting(
        phase, run.recipe.training, run.data, run.folder, run.accelerator, run.reporter
    )
    sizes = {name: len(domain.train) for name, domain in run.data.domains.items()}
    policy = phase_policy(run.recipe, phase, sum(p.numel() for p in model.parameters()))
    loop = TimedLoop(bare, setting, model, policy, Mixture(sizes, phase.global_batch, 0))
    loop.run()
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    evaluations = [record for record in records if record["kind"] == "eval"]
    times = {name: values[2:] or values for name, values in loop.times.items()}
    step = statistics.median(times["step"])
    ratios = [b / s for b, s in zip(times["bare"], times["step"], strict=True)]
    plan_a_step = sum(loop.times["plan"]) / args.steps
    tokens = args.global_batch * args.sequence_length
    blocks = sum(len(domain.validation) for domain in run.data.domains.values())
    evaluation = statistics.median(r["evaluation_seconds"] for r in evaluations)
    return {
        "loop_tokens_per_second": round(tokens / step),
        "loop_against_bare_step": round(statistics.median(ratios), 4),
        "plan_and_fetch_share_of_step": round(
            (statistics.median(times["fetch"]) + plan_a_step) / step, 5
        ),
        "evaluation_tokens_per_second": round(blocks * args.sequence_length / evaluation),
        "evaluation_seconds": round(evaluation, 3),
        "update_milliseconds": round(
            1000 * statistics.median(r["update_seconds"] for r in evaluations[1:]), 2
        ),
        "settings": {name: str(value) for name, value in vars(args).items()},
    }


if __name__ == "__main__":
    arguments = parse()
    with (
        tempfile.TemporaryDirectory() as temporary,
        Run(recipe(arguments, Path(temporary))).session("benchmark") as session,
    ):
        print(json.dumps(measure(arguments, session)))
