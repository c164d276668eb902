"""The two phases, each from a model folder to a model folder."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import nn

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput, TrainingError
from drpruning.common.files import atomic_write, parse_json
from drpruning.data import Mixture, PreparedData, tokenizer_digest
from drpruning.models.card import TrainedPhase, model_card
from drpruning.models.kernels import use_default_attention
from drpruning.models.loading import load_model
from drpruning.models.result import Origin, dtype_name, save_model
from drpruning.pruning import MaskedModel, ModelShape, PruningPlan, attach_masks
from drpruning.recipe import Phase, Recipe
from drpruning.runs.folder import RunFolder
from drpruning.runs.policy import (
    hand_over,
    phase_policy,
    reference_text,
    teacher_loss,
    untrained_reference_loss,
)
from drpruning.runs.records import load_phases
from drpruning.scheduling import Policy
from drpruning.training.checkpoint import list_checkpoints, remove_checkpoints
from drpruning.training.context import TrainerContext
from drpruning.training.identity import check_identity, data_identity, run_identity
from drpruning.training.manifest import with_checksum, without_checksum
from drpruning.training.messages import distillation_text, unwritten_model_text
from drpruning.training.objective import Distillation, LanguageModelling
from drpruning.training.pruning_trainer import PruningTrainer
from drpruning.training.teacher import load_teachers
from drpruning.training.trainer import Trainer

SCHEDULE_VERSION = 1


def _mixture(data: PreparedData, recipe: Recipe, phase: Phase) -> Mixture:
    sizes = {name: len(data.domains[name].train) for name in recipe.initial_ratio}
    rules = {name: recipe.data.domains[name].on_exhausted for name in sizes}
    return Mixture(sizes, phase.global_batch, recipe.training.seed, rules)


def _context(
    recipe: Recipe,
    phase: str,
    data: PreparedData,
    accelerator: Accelerator,
    reporter: Reporter,
    masked: MaskedModel | None = None,
) -> TrainerContext:
    objective = LanguageModelling()
    if (distill := recipe.distillation(phase)) is not None:
        teachers = load_teachers(recipe, phase, data, accelerator, reporter, masked)
        objective = Distillation(
            teachers, distill.weight, distill.final_weight, distill.temperature
        )
        reporter.line(f"{phase}: {distillation_text(distill, teachers.parameters)}")
    return TrainerContext(
        settings=recipe.phases[phase],
        training=recipe.training,
        data=data,
        folder=RunFolder(Path(recipe.output)),
        accelerator=accelerator,
        reporter=reporter,
        identity=run_identity(recipe, data, phase),
        untrained_reference_loss=untrained_reference_loss(recipe),
        teacher_loss=teacher_loss(recipe, phase),
        objective=objective,
    )


def _report_reference(recipe: Recipe, phase: str, reporter: Reporter) -> None:
    """Say which reference losses a phase goes by, if its policy compares with any."""
    if text := reference_text(recipe, phase):
        reporter.line(f"{phase}: reference losses: {text}")


def _trained(recipe: Recipe, trainer: Trainer) -> dict[str, TrainedPhase]:
    """What was done in each phase as logged; the recipe's steps where a log cannot be read."""
    steps = {name: phase.steps for name, phase in recipe.phases.items()}
    ratios: dict[str, dict[str, float]] = {}
    with suppress(BadInput, OSError):  # a damaged log must not cost a trained model
        logged = load_phases(trainer.folder.path).phases
        steps |= {name: phase.last_step for name, phase in logged.items() if phase.end is not None}
        ratios = {name: phase.mean_ratio for name, phase in logged.items()}
    steps |= {trainer.phase: trainer.step}
    return {
        name: TrainedPhase(steps=count, mean_ratio=ratios.get(name, {}))
        for name, count in steps.items()
    }


def _plan(folder: RunFolder) -> PruningPlan | None:
    """The plan that the model was cut by, where there is one that can be read."""
    with suppress(BadInput, OSError):
        return PruningPlan.load(folder.plan) if folder.plan.is_file() else None
    return None


def _write_schedule(path: Path, trainer: Trainer) -> None:
    """Save what the next phase may continue from: the policy's state and the place in the data."""
    state = {
        "version": SCHEDULE_VERSION,
        "data": data_identity(trainer.data),
        "policy": trainer.policy.state_dict(),
        "mixture": trainer.mixture.state_dict(),
    }
    atomic_write(path, json.dumps(with_checksum(state)))


def _read_schedule(path: Path) -> dict[str, Any]:
    """Read what `_write_schedule` wrote.

    Raises:
        BadInput: It is missing or damaged.
    """
    remedy = f"put it back, or remove {RunFolder(path.parents[1]).pruned} to prune again"
    try:
        schedule = without_checksum(parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {remedy}") from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); {remedy}") from None
    if schedule["version"] != SCHEDULE_VERSION:
        raise BadInput(
            f"{path} has version {schedule['version']}, not {SCHEDULE_VERSION}; {remedy}"
        )
    return schedule


@contextmanager
def _written(trainer: Trainer, model: Path) -> Iterator[None]:
    """Write the results of a phase in the block.

    Raises:
        TrainingError: The file system refuses; the latest checkpoint stands.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, not of the file system
            raise
        raise TrainingError(
            unwritten_model_text(
                trainer.phase, trainer.step, error, trainer.saved, model, trainer.folder.path
            )
        ) from error


def prune(recipe: Recipe, data: PreparedData, accelerator: Accelerator, reporter: Reporter) -> None:
    """Train masks, cut, and write `pruned/` and `prune/` of the run folder.

    Raises:
        ExportError: The cut model does not compute what the masked one does; the plan and the masks
            are written, the model is not.
        Interrupted: A signal asked to stop; the state is saved.
        TrainingError: Training has diverged, or its result cannot be written.
    """
    assert recipe.prune is not None and recipe.model.target is not None  # noqa: S101, PT018
    folder = RunFolder(Path(recipe.output))
    with reporter.status(f"loading {recipe.model.reference}"):
        model = load_model(recipe.model.reference, training=recipe.training)
        origin = _origin(recipe, recipe.model.reference)
        _warn_of_another_tokenizer(origin, recipe, data, reporter)
    target = ModelShape.of(model).pruned_to(**recipe.model.target.dimensions())
    penalty = recipe.prune.initial_penalty
    masked = attach_masks(model, target, recipe.training.seed, penalty)
    policy = phase_policy(recipe, recipe.prune, target.num_parameters())
    context = _context(recipe, "prune", data, accelerator, reporter, masked)
    trainer = PruningTrainer(context, masked, policy, _mixture(data, recipe, recipe.prune))
    _report_reference(recipe, "prune", reporter)
    trainer.run()
    full = trainer.distributed.gather()
    if accelerator.is_main_process:
        assert isinstance(full, MaskedModel)  # noqa: S101 - for the type checker
        # The model comes last, for it is what shows the phase to be done.
        with _written(trainer, folder.pruned), reporter.status("cutting and writing the model"):
            plan = trainer.write_outcome()
            use_default_attention(full.model)
            if recipe.training.liger:  # its kernels do not run on a CPU
                full.to(accelerator.device)
            exported = full.export()
            _write_schedule(folder.schedule, trainer)
            shape, trained = ModelShape.of(exported), _trained(recipe, trainer)
            card = model_card(recipe, shape, "prune", origin.card, trained, plan)
            _save(recipe, exported, origin, folder.pruned, card, last=recipe.pretrain is None)
        remove_checkpoints(folder.checkpoints, "prune", recipe.training.checkpoint)
        reporter.line(str(plan))
        reporter.line(f"pruned model: {folder.pruned}")
    accelerator.wait_for_everyone()


def pretrain(
    recipe: Recipe, data: PreparedData, accelerator: Accelerator, reporter: Reporter
) -> None:
    """Continue pretraining of `pruned/`, or of the source where nothing is pruned, to `model/`.

    Raises:
        Interrupted: A signal asked to stop; the state is saved.
        TrainingError: Training has diverged, or its result cannot be written.
    """
    assert recipe.pretrain is not None  # noqa: S101
    folder = RunFolder(Path(recipe.output))
    source = str(folder.pruned) if recipe.prune is not None else recipe.model.reference
    with reporter.status(f"loading {source}"):
        model = load_model(source, training=recipe.training)
        origin = _origin(recipe, source)
        _warn_of_another_tokenizer(origin, recipe, data, reporter)
    if recipe.prune is not None and (rounded := origin.stored_dtype) != torch.float32:
        reporter.warn(
            f"{source}: its weights are rounded to {dtype_name(rounded)}, for the recipe had no "
            "pretrain phase when it was written; model.dtype: float32 prevents that"
        )
    count = sum(p.numel() for p in model.parameters())
    policy = phase_policy(recipe, recipe.pretrain, count)
    mixture = _mixture(data, recipe, recipe.pretrain)
    context = _context(recipe, "pretrain", data, accelerator, reporter)
    if recipe.prune is not None:
        _hand_over(recipe, context.identity, policy, mixture)
    trainer = Trainer(context, model, policy, mixture)
    _report_reference(recipe, "pretrain", reporter)
    trainer.run()
    trained = trainer.distributed.gather()
    if accelerator.is_main_process:
        plan = _plan(folder) if recipe.prune is not None else None
        shape, done = ModelShape.of(trained), _trained(recipe, trainer)
        card = model_card(recipe, shape, "pretrain", origin.card, done, plan)
        with _written(trainer, folder.model), reporter.status("writing the model"):
            _save(recipe, trained, origin, folder.model, card, last=True)
        remove_checkpoints(folder.checkpoints, "pretrain", recipe.training.checkpoint)
        reporter.line(f"trained model: {folder.model}")
    accelerator.wait_for_everyone()


def _origin(recipe: Recipe, source: str) -> Origin:
    """What the model of a phase takes over from the one that it starts from."""
    # pruned/ has the tokenizer of the recipe already.
    return Origin.of(source, recipe.model.tokenizer if source == recipe.model.reference else None)


def _warn_of_another_tokenizer(
    origin: Origin, recipe: Recipe, data: PreparedData, reporter: Reporter
) -> None:
    """Warn where Transformers will not read the result's tokenizer as the data were tokenized.

    For some families Transformers 5 has one tokenizer class, whatever the files say. Where the
    tokenizer is not the source's, its files and the config.json meet in the result for the first
    time, so they are put side by side before training.
    """
    if origin.tokenizer == origin.folder:
        return
    with tempfile.TemporaryDirectory() as folder:
        origin.write_small_files(Path(folder))
        digest = ""
        with suppress(BadInput):  # read as another tokenizer it may have no EOS
            digest = tokenizer_digest(folder)
    if digest != data.tokenizer_digest:
        reporter.warn(
            f"model.tokenizer: beside the config.json of {recipe.model.reference}, AutoTokenizer "
            f"of Transformers {transformers.__version__} reads {recipe.model.tokenizer} as another "
            "tokenizer; load that of the result with PreTrainedTokenizerFast"
        )


def _save(
    recipe: Recipe, model: nn.Module, origin: Origin, folder: Path, card: str, *, last: bool
) -> None:
    """Write the model of a phase: the run's last one in the type that the recipe asks for."""
    # pruned/ stays as it was trained where pretraining continues from it: in bfloat16 a weight
    # keeps no change below 1/256 of itself.
    dtype = origin.result_dtype(recipe.model.dtype) if last else None
    size = recipe.model.max_shard_size
    save_model(model, origin, folder, card, dtype=dtype, max_shard_size=size)


def _hand_over(
    recipe: Recipe, identity: Mapping[str, Any], policy: Policy, mixture: Mixture
) -> None:
    """Continue in the data where pruning ended, and in the schedule if the recipe says so.

    Other data, if accepted, are read from their start. If this phase has a checkpoint, that holds
    all of it.
    """
    folder, accept = RunFolder(Path(recipe.output)), recipe.training.checkpoint.accept_changes
    if list_checkpoints(folder.checkpoints, "pretrain"):
        return
    path = folder.schedule
    schedule = _read_schedule(path)
    check_identity(path, {"data": schedule["data"]}, identity, accept=accept)
    try:
        with suppress(ValueError) if accept else nullcontext():
            mixture.continue_from(schedule["mixture"])
        if recipe.scheduling.handover == "continue":
            hand_over(policy, schedule["policy"])
    except ValueError as error:
        raise BadInput(f"{path} is of another run: {error}") from None
