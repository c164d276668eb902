"""Applying a plan: cut a model's parameters and build the smaller model around them."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from drpruning.common.errors import BadInput
from drpruning.pruning.plan import PruningPlan
from drpruning.pruning.shapes import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def apply_plan(model: "PreTrainedModel", plan: PruningPlan) -> "PreTrainedModel":
    """Cut a model to a plan. The model itself is left as it is.

    Args:
        model: a plain Transformers model of the plan's source shape.
        plan: what stays.

    Returns:
        A new model of the same class, type and device with the plan's target shape, in evaluation
        mode. Weights are cut, not rescaled, with one exception: where a family multiplies its
        embedding by the square root of the hidden size, the change of that root is made up for.

    Raises:
        BadInput: the model is not the plan's source, or has masks attached.
    """
    shape = check_model(model)
    if differences := shape.differences(plan.source):
        found = ", ".join(f"{name} {a}, not {b}" for name, (a, b) in differences.items())
        raise BadInput(f"the plan was made for another model; this one has {found}")
    return build_model(model, plan, slice_parameters(dict(model.named_parameters()), plan))


def check_model(model: nn.Module) -> ModelShape:
    """The shape of a model, which must have exactly the parameters of its family.

    Raises:
        BadInput: the family is unknown, masks are attached already, or a parameter is missing, of
            another size, or unknown (an adapter's, quantized weights).
    """
    shape = ModelShape.of(model)
    family = shape.family
    table = family.full_table(shape.num_layers, shape.switches, tied=shape.tied_embeddings)
    sizes = shape.axis_sizes()
    parameters = dict(model.named_parameters())
    if any(".parametrizations." in name for name in parameters):
        raise BadInput("the model has masks (or other parametrizations) attached already")
    for name, axes in table.items():
        expected = tuple(sizes[axis] for axis in axes)
        found = parameters.pop(name, None)
        if found is None:
            raise BadInput(f"the model is not a {family.architecture}: it has no parameter {name}")
        if tuple(found.shape) != expected:
            raise BadInput(
                f"{name} has shape {tuple(found.shape)} where the config says {expected}"
            )
    if parameters:
        raise BadInput(f"the model has a parameter that its family lacks: {next(iter(parameters))}")
    return shape


@torch.no_grad()
def slice_parameters(parameters: Mapping[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """The kept part of every parameter, copied, under its name in the cut model.

    Args:
        parameters: every parameter of the source by its plain name, a tied one once.
        plan: what stays.
    """
    family, shape = plan.source.family, plan.source
    cut = {
        name: _slice(parameters[name], [plan.indices(axis) for axis in axes])
        for name, axes in family.global_table(tied=shape.tied_embeddings).items()
    }
    table = family.layer_table(shape.switches)
    for position, layer in enumerate(plan.layers):
        kept = {axis: plan.indices(axis, position) for axes in table.values() for axis in axes}
        for name, axes in table.items():
            source = parameters[f"{family.layers}.{layer}.{name}"]
            cut[f"{family.layers}.{position}.{name}"] = _slice(source, [kept[a] for a in axes])
    if family.scaled_embedding:
        _keep_embedding_scale(cut, plan)
    return cut


def _keep_embedding_scale(cut: dict[str, Tensor], plan: PruningPlan) -> None:
    """Make up for the change of the factor that a model puts on its embedding (Gemma)."""
    # The cut model multiplies by sqrt(target size), the source by sqrt(source size). Where the
    # output is the same matrix, the logits would change too: the final norm, which reads next to
    # it, takes the factor back.
    family = plan.source.family
    change = (plan.source.hidden_size / plan.target.hidden_size) ** 0.5
    cut[f"{family.embedding}.weight"] *= change
    if plan.source.tied_embeddings:
        norm = f"{family.final_norm}.weight"
        cut[norm] = (cut[norm] + family.norm_offset) / change - family.norm_offset


def _slice(tensor: Tensor, kept: list[tuple[int, ...] | None]) -> Tensor:
    result = tensor.detach()
    for dimension, indices in enumerate(kept):
        if indices is not None:
            result = result.index_select(dimension, torch.tensor(indices, device=tensor.device))
    return result.clone() if result.data_ptr() == tensor.data_ptr() else result


def build_model(
    source: "PreTrainedModel", plan: PruningPlan, parameters: dict[str, Tensor]
) -> "PreTrainedModel":
    """Build a model of the plan's target shape from its parameters.

    Args:
        source: gives the class, the configuration, the device and how to generate.
        plan: gives the target shape.
        parameters: every parameter of the target by name, all of one type.
    """
    example = next(iter(parameters.values()))
    with _no_progress_bar():
        model = type(source).from_pretrained(
            None, config=_target_config(source, plan), state_dict=parameters, dtype=example.dtype
        )
    # A row that torch would leave out of training (pad_token_id's, often EOS); see `load_model`.
    model.get_input_embeddings().padding_idx = None
    model.config._name_or_path = ""  # from_pretrained has written what it was given, None
    if source.generation_config is not None:
        model.generation_config = copy.deepcopy(source.generation_config)
    return model.to(example.device)


def _target_config(source: "PreTrainedModel", plan: PruningPlan) -> Any:
    """The source's configuration with the target's sizes, and what is set by layer renumbered."""
    config = copy.deepcopy(source.config)
    for name, value in plan.target.config_fields().items():
        setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in plan.layers]
    if (full := getattr(config, "max_window_layers", None)) is not None:
        config.max_window_layers = sum(layer < full for layer in plan.layers)
    return config


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
