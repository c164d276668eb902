"""The training loop against the Transformers Trainer: speed, memory, and what is around a step.

Both train the same model on blocks of the same text with the same batch, micro-batch, arithmetic,
optimizer and clipping. They take turns step by step in one process, so that a busy machine slows
both; what counts is all the time from one step's end to the next: reading the batch, the step, the
log line. On a machine that is too busy, `--clock cpu` takes the processor time of the two threads
instead. Memory is the peak of a process of its own for each. Evaluations, ratio updates and
checkpoints of the loop, which the Trainer has nothing like or is not asked for, are timed apart.
Prints one JSON object.

    python benchmarks/loop_speed.py MODEL_FOLDER TEXT_FOLDER

TEXT_FOLDER has one folder a domain, with train.jsonl and validation.jsonl.
"""

import argparse
import json
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from drpruning.data import Mixture, PreparedData
from drpruning.models.loading import load_model
from drpruning.pipeline.run import Run
from drpruning.recipe import Recipe, parse_recipe
from drpruning.runs.policy import phase_policy
from drpruning.training.context import TrainerContext
from drpruning.training.identity import run_identity
from drpruning.training.trainer import Trainer as PhaseTrainer

LOG_EVERY = 10
PRUNING_EVALUATES_EVERY = 50
"""Steps between two evaluations in pruning, by default."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--validation-blocks", type=int, default=48)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--alone", choices=["loop", "trainer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def recipe(args: argparse.Namespace, folder: Path, steps: int) -> Recipe:
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
                "prepared": str(folder / "data"),
                "sequence_length": args.sequence_length,
                "validation_blocks": args.validation_blocks,
                "domains": domains,
            },
            "scheduling": {"forecast_start": 0.0},
            "pretrain": {
                "steps": steps,
                "global_batch": args.global_batch,
                "evaluate_every": steps,
                "warmup": 0.0,
            },
            "training": {
                "micro_batch": args.micro_batch,
                "precision": args.precision,
                "log_every": LOG_EVERY,
                "checkpoint": {"every_steps": 10 * steps},
            },
            "output": tempfile.mkdtemp(prefix="run-", dir=folder),
        }
    )


class Turns:
    """Lets two threads go step by step in turn and keeps the time of each step."""

    def __init__(self, *names: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._start = dict.fromkeys(names, 0.0)
        self._over: set[str] = set()
        self._gates[names[0]].release()

    def begin(self, name: str) -> None:
        self._gates[name].acquire()
        self._start[name] = self._clock()

    def stepped(self, name: str) -> None:
        self.seconds[name].append(self._clock() - self._start[name])
        self._pass_on(name)
        self.begin(name)

    def finish(self, name: str) -> None:
        self._over.add(name)
        self._pass_on(name)

    def _pass_on(self, name: str) -> None:
        (other,) = self._gates.keys() - {name}
        self._gates[name if other in self._over else other].release()


class TimedLoop(PhaseTrainer):
    """The loop; its turn goes from the start of a step to that of the next one."""

    on_step: Callable[[], None] = staticmethod(lambda: None)

    def _train_step(self) -> None:
        if self.step:
            self.on_step()
        super()._train_step()

    def _evaluate(self, *arguments: Any) -> None:
        if self.step:
            self.on_step()
        super()._evaluate(*arguments)


def make_loop(args: argparse.Namespace, run: Run) -> TimedLoop:
    phase = run.recipe.pretrain
    assert phase is not None
    model = load_model(str(args.model))
    context = TrainerContext(
        settings=phase,
        training=run.recipe.training,
        data=run.data,
        folder=run.files,
        accelerator=run.accelerator,
        reporter=run.reporter,
        identity=run_identity(run.recipe, run.data, "pretrain"),
    )
    sizes = {name: len(domain.train) for name, domain in run.data.domains.items()}
    policy = phase_policy(run.recipe, phase, sum(p.numel() for p in model.parameters()))
    return TimedLoop(context, model, policy, Mixture(sizes, phase.global_batch, 0))


class TrainBlocks(Dataset):  # type: ignore[type-arg]
    """All training blocks of a prepared folder, one after the other."""

    def __init__(self, data: PreparedData) -> None:
        self.parts = [domain.train for domain in data.domains.values()]
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        start = int(self.ends[part]) - len(self.parts[part])
        block = torch.from_numpy(self.parts[part][np.array([index - start])][0])
        return {"input_ids": block, "labels": block}


class OnStep(TrainerCallback):
    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
        del args, control, settings
        if state.global_step:
            self.action()


def make_trainer(args: argparse.Namespace, data: PreparedData, folder: Path, steps: int) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.global_batch // args.micro_batch,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=args.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=LOG_EVERY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model = load_model(str(args.model))
    return Trainer(model, settings, train_dataset=TrainBlocks(data))


def in_turn(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds a step of both, and of what is around the loop's steps."""
    found: dict[str, Any] = {}
    with Run(recipe(args, folder, args.steps)).session("benchmark") as run:
        clock = time.thread_time if args.clock == "cpu" else time.perf_counter
        turns = Turns("loop", "trainer", clock=clock)
        loop = make_loop(args, run)
        loop.on_step = lambda: turns.stepped("loop")  # type: ignore[method-assign]
        trainer = make_trainer(args, run.data, folder, args.steps)
        trainer.add_callback(OnStep(lambda: turns.stepped("trainer")))
        trainer.log = lambda *_, **__: None  # type: ignore[method-assign] # no lines in between

        side_by_side(turns, {"loop": loop.run, "trainer": trainer.train})
        found["saving"] = [timed(lambda: save(loop)) for _ in range(5)]
        found["batches"] = [timed(lambda: fetch(loop)) for _ in range(5)]
        records = map(json.loads, (run.folder / "metrics.jsonl").open())
        found["evaluations"] = [r for r in records if r["kind"] == "eval"]
    return found | turns.seconds


def side_by_side(turns: Turns, actions: dict[str, Callable[[], Any]]) -> None:
    """Both in threads of their own: memory is handed out otherwise to the main thread."""
    ends: queue.Queue[BaseException | None] = queue.Queue()

    def act(name: str) -> None:
        turns.begin(name)
        try:
            actions[name]()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)
            turns.finish(name)

    for name in actions:
        threading.Thread(target=act, args=(name,), daemon=True).start()
    for _ in actions:
        if (error := ends.get()) is not None:
            raise error


def timed(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def save(loop: PhaseTrainer) -> None:
    loop.step += 1
    loop._save(last=True)


def fetch(loop: PhaseTrainer) -> None:
    """Plan a segment of pruning's default length and read all its batches."""
    segment = loop.mixture.plan_segment(loop.ratio, PRUNING_EVALUATES_EVERY)
    for index in range(segment.steps):
        loop.own_blocks(segment, index)


def alone(args: argparse.Namespace) -> None:
    """Print by how many bytes the process grows at most while one of the two trains."""
    steps = 4
    with Run(recipe(args, args.folder, steps)).session("benchmark") as run:
        if args.alone == "loop":
            train = make_loop(args, run).run
        else:
            train = make_trainer(args, run.data, args.folder, steps).train
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        train()
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def peak(which: str, folder: Path) -> int:
    command = [sys.executable, *sys.argv, "--alone", which, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found = in_turn(args, folder)
    tokens = args.global_batch * args.sequence_length
    loop, trainer = (found[name][2:] for name in ("loop", "trainer"))
    step = statistics.median(loop)
    segment = PRUNING_EVALUATES_EVERY * step
    evaluation = min(record["evaluation_seconds"] for record in found["evaluations"])
    peaks = {name: min(peak(name, folder) for _ in range(2)) for name in ("loop", "trainer")}
    return {
        "loop_tokens_per_second": round(tokens / step),
        "trainer_tokens_per_second": round(tokens / statistics.median(trainer)),
        "loop_against_trainer": round(
            statistics.median(t / own for own, t in zip(loop, trainer, strict=False)), 4
        ),
        "loop_peak_mib": round(peaks["loop"] / 2**20, 1),
        "trainer_peak_mib": round(peaks["trainer"] / 2**20, 1),
        "plan_and_fetch_share_of_step": round(min(found["batches"]) / segment, 5),
        "checkpoint_seconds": round(statistics.median(found["saving"]), 3),
        "checkpoint_share_of_segment": round(statistics.median(found["saving"]) / segment, 4),
        "evaluation_seconds": round(evaluation, 3),
        "settings": {name: str(value) for name, value in vars(args).items()},
    }


if __name__ == "__main__":
    arguments = parse()
    if arguments.alone:
        alone(arguments)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(measure(arguments, Path(temporary))))
