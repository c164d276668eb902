"""How long a run will take on this machine: its phases, run for a few steps on random tokens.

Nothing is simulated: `prune` and `pretrain` themselves run with the recipe's model, batches and
teachers, in a temporary folder on the file system of the output. The seconds are those that they
log, as in any run.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput, Interrupted
from drpruning.data import PreparedData, TokenBlocks
from drpruning.data.blocks import DomainBlocks, DomainCounts
from drpruning.pipeline.preflight import RunPlan
from drpruning.pipeline.run import Run
from drpruning.pipeline.targets import RecipePlan
from drpruning.recipe import Checkpoint, Phase, Prune, Recipe, Scheduling
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.lines import End, EvalPoint, Start, StepPoint, read_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

TRAINING_BLOCKS = 8
"""Random blocks of each domain; they are read again as often as needed."""
_NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Seconds of the parts of a phase, as they were measured.

    Attributes:
        load: From the start to the first step: reading the model, placing it on the device.
        step: One step; the first was not counted.
        evaluated_block: Evaluation, for each validation block.
        checkpoint: One checkpoint, or what else lies between steps and evaluations.
        result: Making and writing the model of the phase.
    """

    load: float
    step: float
    evaluated_block: float
    checkpoint: float
    result: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run and its estimated time.

    Attributes:
        stage: `prune`, `pretrain` or `evaluate`.
        what: The part, in words.
        count: How often.
        each: Seconds of one.
    """

    stage: str
    what: str
    count: int
    each: float

    @property
    def seconds(self) -> float:
        """The time of all of them."""
        return self.count * self.each


def time_recipe(planned: RecipePlan, steps: int) -> list[Part]:
    """Run each phase for a few steps, and estimate from that how long the recipe will take.

    Args:
        planned: A recipe without problems.
        steps: Steps that are timed in each phase, after one that is not.

    Raises:
        BadInput: There are no weights, or several targets or processes.
        KeyboardInterrupt: A signal asked to stop; nothing is left behind.
    """
    recipe = planned.recipe
    if recipe.model.targets is not None:
        raise BadInput(
            "--time: times one target; write it as model.target in place of model.targets"
        )
    if recipe.model.source is None:
        raise BadInput("--time: model.source is missing; a shape alone cannot be run")
    (plan,) = planned.plans.values()
    run = Run(recipe)
    if run.accelerator.num_processes > 1:
        raise BadInput("--time: times one process; start the command without a launcher")
    reporter = _Progress()
    with _quiet(), _temporary_folder(Path(recipe.output)) as folder:
        data = _random_data(recipe, plan, folder / "data")
        small = _shortened(recipe, steps, folder / "run")
        try:
            times = {
                phase: _time_phase(phase, small, data, run.accelerator, reporter)
                for phase in small.phases
            }
        except Interrupted:
            raise KeyboardInterrupt from None
    return _parts(recipe, plan, times)


class _Progress(Reporter):
    """Shows the bars of a phase, but no losses of random tokens."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show nothing."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings about training on random tokens."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, where checkpoints take as long to write as in the run."""
    place = next(folder for folder in output.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".drprune-timing-", dir=place) as folder:
        yield Path(folder)


def _random_data(recipe: Recipe, plan: RunPlan, folder: Path) -> PreparedData:
    """Random blocks for every domain, one micro-batch of them for validation."""
    assert plan.source is not None  # noqa: S101 - a plan without problems
    folder.mkdir()
    length, vocabulary = recipe.data.sequence_length, plan.source.vocab_size
    dtype = "uint16" if vocabulary <= 2**16 else "uint32"
    files = {"train": TRAINING_BLOCKS, "validation": recipe.training.micro_batch}
    rng = np.random.default_rng(recipe.training.seed)
    for name, count in files.items():
        rng.integers(vocabulary, size=(count, length)).astype(dtype).tofile(folder / f"{name}.bin")
    train, validation = (TokenBlocks(folder / f"{name}.bin", length, dtype) for name in files)
    counts = DomainCounts(
        documents=0,
        tokens=0,
        empty_documents=0,
        duplicates=0,
        in_other_validation=0,
        validation_documents=0,
        train_blocks=len(train),
        validation_blocks=len(validation),
        dropped_tokens=0,
        special_tokens={},
    )
    domains = {
        name: DomainBlocks(name=name, train=train, validation=validation, counts=counts)
        for name in recipe.data.domains
    }
    return PreparedData(
        folder=folder,
        fingerprint="random",
        tokenizer_digest="",
        sequence_length=length,
        domains=domains,
    )


def _shortened(recipe: Recipe, steps: int, output: Path) -> Recipe:
    """The recipe with phases of one step and those that are timed, evaluated at both ends.

    The policy is the one that needs no reference losses: its updates take milliseconds.
    """
    update: dict[str, Any] = {
        "output": str(output),
        "scheduling": Scheduling(policy="constant"),
        "training": recipe.training.model_copy(
            update={"log_every": 1, "checkpoint": Checkpoint(every_steps=_NEVER)}
        ),
        "data": recipe.data.model_copy(
            update={
                "domains": {
                    name: domain.model_copy(update={"on_exhausted": "repeat"})
                    for name, domain in recipe.data.domains.items()
                }
            }
        ),
    }
    for name, phase in recipe.phases.items():
        fields: dict[str, Any] = {"steps": 1 + steps, "evaluate_every": 1 + steps}
        if isinstance(phase, Prune):
            fields |= {"stop": None, "initial_masks": "noise"}
        update[name] = phase.model_copy(update=fields)
    return recipe.model_copy(update=update)


def _time_phase(
    phase: str, recipe: Recipe, data: PreparedData, accelerator: "Accelerator", reporter: Reporter
) -> PhaseTimes:
    from drpruning.training import phases

    folder = RunFolder(Path(recipe.output))
    folder.path.mkdir(exist_ok=True)
    begin = time.time()
    {"prune": phases.prune, "pretrain": phases.pretrain}[phase](recipe, data, accelerator, reporter)
    end = time.time()
    lines = [line for line in read_lines(folder.metrics) if line.phase == phase]
    started = next(line for line in lines if isinstance(line, Start))
    ended = next(line for line in lines if isinstance(line, End))
    evaluations = [line.evaluation_seconds for line in lines if isinstance(line, EvalPoint)]
    tokens = recipe.phases[phase].global_batch * data.sequence_length
    steps = [tokens / line.tokens_per_second for line in lines if isinstance(line, StepPoint)]
    blocks = sum(len(domain.validation) for domain in data.domains.values())
    between = ended.total_seconds - sum(steps) - sum(evaluations)
    return PhaseTimes(
        load=started.time - begin,
        step=sum(steps[1:]) / len(steps[1:]),
        evaluated_block=evaluations[-1] / blocks,
        checkpoint=max(between, 0.0),
        result=max(end - ended.time, 0.0),
    )


def _parts(recipe: Recipe, plan: RunPlan, times: dict[str, PhaseTimes]) -> list[Part]:
    """What a run consists of, from the times of a short one."""
    blocks = _validation_blocks(recipe, plan)
    parts = []
    for name, phase in recipe.phases.items():
        own = times[name]
        parts += [
            Part(stage=name, what="steps", count=_steps(phase), each=own.step),
            Part(
                stage=name,
                what="evaluations",
                count=plan.evaluations[name],
                each=own.evaluated_block * blocks,
            ),
            Part(
                stage=name,
                what="checkpoints",
                count=1 + phase.steps // recipe.training.checkpoint.every_steps,
                each=own.checkpoint,
            ),
            Part(stage=name, what="load and export", count=1, each=own.load + own.result),
        ]
    first, last = times[next(iter(times))], times[next(reversed(times))]
    models = {SOURCE: first, PRUNED: last, MODEL: last}
    if recipe.prune is None:
        del models[PRUNED]
    if recipe.pretrain is None:
        del models[MODEL]
    parts += [
        Part(stage="evaluate", what=name, count=1, each=own.load + own.evaluated_block * blocks)
        for name, own in models.items()
    ]
    return parts


def _steps(phase: Phase) -> int:
    """Steps of a phase, and the batches for the importance of the masks, which take as long."""
    if isinstance(phase, Prune) and phase.initial_masks == "taylor":
        return phase.steps + phase.calibration_batches
    return phase.steps


def _validation_blocks(recipe: Recipe, plan: RunPlan) -> int:
    """Validation blocks of all domains: those that are prepared, or the most that there will be."""
    if plan.prepared is not None:
        return sum(len(domain.validation) for domain in plan.prepared.domains.values())
    return recipe.data.validation_blocks * len(recipe.data.domains)
