"""The two phases from model folder to model folder."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from drpruning.console import Reporter
from drpruning.data import Mixture, PreparedData
from drpruning.errors import BadInput
from drpruning.pruning import MaskedModel, ModelShape, attach_masks
from drpruning.recipe import Phase, Recipe, Training
from drpruning.scheduling import Policy
from drpruning.training.checkpoint import publish, remove_checkpoints
from drpruning.training.kernels import use_default_attention, use_kernels
from drpruning.training.loop import Loop, Setting
from drpruning.training.model_card import model_card
from drpruning.training.policy import phase_policy
from drpruning.training.pruning_loop import PruningLoop
from drpruning.training.stopping import LARGEST_DEVIATION
from drpruning.whole_file import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEDULE_VERSION = 1


def load_model(
    source: str,
    field: str = "model.source",
    training: Training | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> "PreTrainedModel":
    """A causal language model, from safetensors only, without remote code.

    Args:
        source: A folder, or a name on the Hub.
        field: What named it, for the message.
        training: Names its kernels; absent: Transformers' own choice.
        dtype: Of the weights; `auto`: that of the model's files.

    Raises:
        BadInput: It cannot be loaded, its weights are not all there, or it does not take the
            kernels.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{field}: {source} cannot be loaded as a causal language model with safetensors "
            f"weights: {reason}"
        ) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[kind])):
            raise BadInput(
                f"{field}: the weights in {source} are not those of its config.json "
                f"({kind.replace('_', ' ')}: {', '.join(keys[:3])}); fetch it again"
            )
    if training is not None:
        use_kernels(model, training)
    loaded: PreTrainedModel = model
    return loaded


def save_model(model: nn.Module, tokenizer_source: str, folder: Path, card: str) -> None:
    """Write a Hugging Face folder (weights, tokenizer, model card) that appears whole or not."""
    from transformers import AutoTokenizer

    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(tokenizer_source).save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    publish(temporary, folder)


def _mixture(data: PreparedData, recipe: Recipe, phase: Phase) -> Mixture:
    sizes = {name: len(domain.train) for name, domain in data.domains.items()}
    return Mixture(sizes, phase.global_batch, recipe.training.seed)


def _write_schedule(path: Path, loop: Loop) -> None:
    """What the next phase may go on from: the policy's state and the place in the data."""
    state = {
        "version": SCHEDULE_VERSION,
        "policy": loop.policy.state_dict(),
        "mixture": loop.mixture.state_dict(),
    }
    write_whole(path, json.dumps(state))


def prune(recipe: Recipe, data: PreparedData, accelerator: Accelerator, reporter: Reporter) -> None:
    """Train masks, cut, and write `pruned/` and `prune/` of the run folder.

    Raises:
        ExportError: The cut model does not compute what the masked one does; nothing is written.
        Interrupted: A signal asked to stop; the state is saved.
    """
    assert recipe.prune is not None and recipe.model.target is not None  # noqa: S101, PT018
    folder = Path(recipe.output)
    model = load_model(str(recipe.model.source), training=recipe.training)
    target = ModelShape.of(model).pruned_to(**recipe.model.target.dimensions())
    penalty = recipe.prune.initial_penalty
    masked = attach_masks(model, target, recipe.training.seed, penalty)
    policy = phase_policy(recipe, recipe.prune, target.num_parameters())
    setting = Setting(recipe.prune, recipe.training, data, folder, accelerator, reporter)
    loop = PruningLoop(setting, masked, policy, _mixture(data, recipe, recipe.prune))
    loop.run()
    if accelerator.is_main_process:
        masked.model = accelerator.unwrap_model(masked.model)
        use_default_attention(masked.model)
        _warn_of_deviation(masked, reporter)
        plan = loop.write_outcome()
        exported = masked.export()
        _write_schedule(folder / "prune" / "schedule.json", loop)
        card = model_card(recipe, ModelShape.of(exported), stage="pruned")
        save_model(exported, recipe.model.tokenizer_source, folder / "pruned", card)
        remove_checkpoints(folder / "checkpoints", "prune")
        reporter.line(str(plan))
        reporter.line(f"pruned model: {folder / 'pruned'}")
    accelerator.wait_for_everyone()


def pretrain(
    recipe: Recipe, data: PreparedData, accelerator: Accelerator, reporter: Reporter
) -> None:
    """Continue pretraining of `pruned/`, or of the source where nothing is pruned, to `model/`.

    Raises:
        Interrupted: A signal asked to stop; the state is saved.
    """
    assert recipe.pretrain is not None  # noqa: S101
    folder = Path(recipe.output)
    source = str(folder / "pruned") if recipe.prune is not None else str(recipe.model.source)
    model = load_model(source, training=recipe.training)
    count = sum(p.numel() for p in model.parameters())
    policy = phase_policy(recipe, recipe.pretrain, count)
    mixture = _mixture(data, recipe, recipe.pretrain)
    if recipe.prune is not None:
        _take_over(folder / "prune" / "schedule.json", recipe, policy, mixture)
    setting = Setting(recipe.pretrain, recipe.training, data, folder, accelerator, reporter)
    loop = Loop(setting, model, policy, mixture)
    loop.run()
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(loop.model)
        card = model_card(recipe, ModelShape.of(trained), stage="model")
        tokenizer = source if recipe.prune is not None else recipe.model.tokenizer_source
        save_model(trained, tokenizer, folder / "model", card)
        remove_checkpoints(folder / "checkpoints", "pretrain")
        reporter.line(f"trained model: {folder / 'model'}")
    accelerator.wait_for_everyone()


def _warn_of_deviation(masked: MaskedModel, reporter: Reporter) -> None:
    for name, deviation in masked.sparsity_deviation().items():
        if deviation > LARGEST_DEVIATION:
            reporter.warn(
                f"prune: the sparsity of {name} is {deviation:.2f} off its target in a layer; the "
                "cut is exact all the same, but abrupt; more prune.steps would help"
            )


def _take_over(path: Path, recipe: Recipe, policy: Policy, mixture: Mixture) -> None:
    """Go on in the data where pruning stopped; in the schedule too where the recipe says so."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; put it back, or remove {path.parents[1] / 'pruned'}")
    schedule = json.loads(path.read_text())
    try:
        if schedule["version"] != SCHEDULE_VERSION:
            raise ValueError(f"version {schedule['version']}, not {SCHEDULE_VERSION}")
        mixture.continue_from(schedule["mixture"])
        if recipe.scheduling.handover == "continue":
            policy.continue_from(schedule["policy"])
    except ValueError as error:
        raise BadInput(f"{path} does not fit: {error}") from None
