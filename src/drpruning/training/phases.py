"""The two phases from model folder to model folder."""

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from drpruning.console import Reporter
from drpruning.data import Mixture, PreparedData
from drpruning.errors import BadInput
from drpruning.json_text import parse_json
from drpruning.model_files import check_files
from drpruning.pruning import MaskedModel, ModelShape, attach_masks
from drpruning.recipe import Phase, Recipe, Training
from drpruning.scheduling import Policy
from drpruning.training.checkpoint import list_checkpoints, remove_checkpoints, whole_folder
from drpruning.training.identity import check_identity, data_identity, run_identity
from drpruning.training.kernels import use_default_attention, use_kernels
from drpruning.training.loop import Loop, Setting
from drpruning.training.manifest import with_checksum, without_checksum
from drpruning.training.model_card import model_card
from drpruning.training.policy import phase_policy
from drpruning.training.pruning_loop import PruningLoop
from drpruning.training.tensors import storage_errors
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
        BadInput: It cannot be loaded, its weights are not all there or not all finite, or it does
            not take the kernels.
    """
    from transformers import AutoModelForCausalLM

    check_files(source, field)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
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
    if lost := [n for n, p in model.named_parameters() if not p.detach().isfinite().all()]:
        raise BadInput(
            f"{field}: the weights in {source} hold numbers that are not finite ({len(lost)} "
            f"tensors, the first: {lost[0]}); fetch it again, or take another model"
        )
    if training is not None:
        use_kernels(model, training)
    loaded: PreTrainedModel = model
    return loaded


def check_loadable(source: str, field: str) -> None:
    """Refuse a model of whose config.json Transformers makes nothing; no weights are loaded.

    Args:
        source: A folder, or a name on the Hub.
        field: What named it, for the message.

    Raises:
        BadInput: So.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a value in it leads to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"{field}: the config.json of {source} does not make a model: {reason}; correct it"
        ) from None


def save_model(model: nn.Module, tokenizer_source: str, folder: Path, card: str) -> None:
    """Write a Hugging Face folder (weights, tokenizer, model card) that appears whole or not."""
    from transformers import AutoTokenizer

    with whole_folder(folder) as temporary, storage_errors():
        model.save_pretrained(temporary)  # type: ignore[operator]
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, trust_remote_code=False)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def _mixture(data: PreparedData, recipe: Recipe, phase: Phase) -> Mixture:
    sizes = {name: len(domain.train) for name, domain in data.domains.items()}
    rules = {name: domain.on_exhausted for name, domain in recipe.data.domains.items()}
    return Mixture(sizes, phase.global_batch, recipe.training.seed, rules)


def _write_schedule(path: Path, loop: Loop) -> None:
    """What the next phase may go on from: the policy's state and the place in the data."""
    state = {
        "version": SCHEDULE_VERSION,
        "data": data_identity(loop.data),
        "policy": loop.policy.state_dict(),
        "mixture": loop.mixture.state_dict(),
    }
    write_whole(path, json.dumps(with_checksum(state)))


def _read_schedule(path: Path) -> dict[str, Any]:
    """What `_write_schedule` wrote.

    Raises:
        BadInput: It is missing or damaged.
    """
    remedy = f"put it back, or remove {path.parents[1] / 'pruned'} to prune again"
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


def prune(recipe: Recipe, data: PreparedData, accelerator: Accelerator, reporter: Reporter) -> None:
    """Train masks, cut, and write `pruned/` and `prune/` of the run folder.

    Raises:
        ExportError: The cut model does not compute what the masked one does; the plan and the masks
            are written, the model is not.
        Interrupted: A signal asked to stop; the state is saved.
    """
    assert recipe.prune is not None and recipe.model.target is not None  # noqa: S101, PT018
    folder = Path(recipe.output)
    model = load_model(str(recipe.model.source), training=recipe.training)
    target = ModelShape.of(model).pruned_to(**recipe.model.target.dimensions())
    penalty = recipe.prune.initial_penalty
    masked = attach_masks(model, target, recipe.training.seed, penalty)
    policy = phase_policy(recipe, recipe.prune, target.num_parameters())
    identity = run_identity(recipe, data, "prune")
    setting = Setting(recipe.prune, recipe.training, data, folder, accelerator, reporter, identity)
    loop = PruningLoop(setting, masked, policy, _mixture(data, recipe, recipe.prune))
    loop.run()
    whole = loop.distributed.whole()
    if accelerator.is_main_process:
        plan = loop.write_outcome()
        assert isinstance(whole, MaskedModel)  # noqa: S101 - for the type checker
        use_default_attention(whole.model)
        if recipe.training.liger:  # its kernels do not run on a CPU
            whole.to(accelerator.device)
        exported = whole.export()
        _write_schedule(folder / "prune" / "schedule.json", loop)
        card = model_card(recipe, ModelShape.of(exported), stage="pruned")
        save_model(exported, recipe.model.tokenizer_source, folder / "pruned", card)
        remove_checkpoints(folder / "checkpoints", "prune", recipe.training.checkpoint)
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
    identity = run_identity(recipe, data, "pretrain")
    if recipe.prune is not None:
        _take_over(recipe, identity, policy, mixture, reporter)
    setting = Setting(
        recipe.pretrain, recipe.training, data, folder, accelerator, reporter, identity
    )
    loop = Loop(setting, model, policy, mixture)
    loop.run()
    trained = loop.distributed.whole()
    if accelerator.is_main_process:
        card = model_card(recipe, ModelShape.of(trained), stage="model")
        tokenizer = source if recipe.prune is not None else recipe.model.tokenizer_source
        save_model(trained, tokenizer, folder / "model", card)
        remove_checkpoints(folder / "checkpoints", "pretrain", recipe.training.checkpoint)
        reporter.line(f"trained model: {folder / 'model'}")
    accelerator.wait_for_everyone()


def _take_over(
    recipe: Recipe, identity: dict[str, Any], policy: Policy, mixture: Mixture, reporter: Reporter
) -> None:
    """Go on in the data where pruning stopped; in the schedule too where the recipe says so.

    Other data, where that is accepted, are read from their start. Where there are checkpoints of
    this phase, all of it is in them.
    """
    folder, accept = Path(recipe.output), recipe.training.checkpoint.accept_changes
    if list_checkpoints(folder / "checkpoints", "pretrain"):
        return
    path = folder / "prune" / "schedule.json"
    schedule = _read_schedule(path)
    there = {"data": schedule["data"]}
    check_identity(path, there, identity, accept=accept, reporter=reporter)
    try:
        with suppress(ValueError) if accept else nullcontext():
            mixture.continue_from(schedule["mixture"])
        if recipe.scheduling.handover == "continue":
            policy.continue_from(schedule["policy"])
    except ValueError as error:
        raise BadInput(f"{path} does not fit: {error}") from None
