"""Cut a model to the target of a recipe in one shot, without training masks: three baselines.

A part (layer, hidden dimension, head, feed-forward dimension) gets a score on the source model, and
the highest of each constraint stay, as at the end of mask learning: every layer keeps the target's
number of heads and feed-forward dimensions. `magnitude` needs no text; the other two read the first
training blocks of each domain, in the order of training.seed. The model is written to pruned/ in
the recipe's output, with tokenizer and plan.json; another recipe takes it as model.source.

    python benchmarks/experiments/one_shot.py taylor benchmarks/experiments/en7-prune.yaml \\
        --set model.source=MODELS/base-8m --set data.root=TEXT/en7 --set output=runs/taylor
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from drpruning.common.console import warnings_shown
from drpruning.common.errors import BadInput
from drpruning.data import keyed_permutation
from drpruning.models.loading import load_model, quiet_libraries
from drpruning.pipeline.apply_plan import cut_model
from drpruning.pipeline.run import Run
from drpruning.pruning import (
    MaskedModel,
    ModelShape,
    PruningPlan,
    attach_masks,
    initialise_masks,
    taylor_importance,
)
from drpruning.pruning.families import STACKED, Axis
from drpruning.recipe import Recipe, load_recipe
from drpruning.runs.folder import PLAN_FILE

BLOCKS = 32
"""Calibration blocks of each domain."""

Batch = Mapping[str, Any]
Scores = dict[str, Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Cut the model that the arguments name; bad input ends with one message and status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=__doc__[__doc__.index("    python") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=METHODS, help="what the score of a part is")
    parser.add_argument("recipe", type=Path, help="a recipe with model.target and a prune phase")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the recipe, as in drprune run",
    )  # fmt: skip
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="calibration blocks per domain")
    args = parser.parse_args(arguments)
    if args.blocks < 1:
        parser.error(f"--blocks: must be at least 1, not {args.blocks}")
    try:
        with warnings_shown():
            prune(load_recipe(args.recipe, args.changes), args.method, args.blocks)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def prune(recipe: Recipe, method: str, blocks: int = BLOCKS) -> Path:
    """Cut the recipe's source to its target and write OUTPUT/pruned; returns that folder.

    Args:
        recipe: Names source, target, text and output; its schedule and optimizer are not used.
        method: One of `METHODS`.
        blocks: Calibration blocks of each domain; all of a domain that has fewer.

    Raises:
        BadInput: The recipe cannot be used, names no single target, or OUTPUT/pruned exists.
    """
    if recipe.prune is None:
        raise BadInput("prune: missing; give a recipe with model.target and a prune phase")
    run = Run(recipe)
    if run.files.pruned.exists():
        raise BadInput(f"output: {run.files.pruned} exists; name another output, or remove it")
    quiet_libraries()
    with run.session(None), tempfile.TemporaryDirectory() as folder:
        plan = one_shot_plan(run, method, blocks)
        plan.save(Path(folder, PLAN_FILE))
        source = run.recipe.model.reference
        cut_model(Path(folder, PLAN_FILE), source, run.files.pruned, run.reporter)
    return run.files.pruned


def one_shot_plan(run: Run, method: str, blocks: int) -> PruningPlan:
    """Score the parts of a run's source model and choose those that stay."""
    model = load_model(run.recipe.model.reference).eval().to(run.accelerator.device)
    target = run.recipe.model.target
    assert target is not None
    masked = attach_masks(model, ModelShape.of(model).pruned_to(**target.dimensions()))
    try:
        scores = METHODS[method](masked, calibration(run, method, blocks))
    except FloatingPointError as error:
        raise BadInput(f"model.source: {error}") from None
    # Their order is all that the masks keep of the scores, and all that the plan needs.
    initialise_masks(masked, scores)
    return masked.plan()


def calibration(run: Run, method: str, blocks: int) -> Iterator[Batch]:
    """The first training blocks of each domain, one at a time, in the order of training.seed."""
    seed, names = run.recipe.training.seed, list(run.recipe.initial_ratio)
    order = {
        name: keyed_permutation(len(train), (seed, name))(np.arange(min(blocks, len(train))))
        for name in names
        if len(train := run.data.domains[name].train)
    }
    rows = [(name, index) for name, indices in order.items() for index in indices]
    with run.reporter.task(method, len(rows)) as task:
        for done, (name, index) in enumerate(rows):
            ids = np.array([index])
            block = run.data.train_blocks([name], np.zeros_like(ids), ids)
            tokens = torch.from_numpy(block).to(run.accelerator.device)
            yield {"input_ids": tokens, "labels": tokens, "use_cache": False}
            task.update(done + 1, name)


@torch.no_grad()
def magnitude(masked: MaskedModel, _batches: Iterable[Batch] = ()) -> Scores:
    """Sum the squares of all matrix entries that read or write a part.

    Norms and biases are left out: they are vectors near one and near zero, and the many ones would
    outweigh the matrices.
    """
    shape = masked.source
    family, weights = shape.family, masked.plain_state_dict()
    totals = _zeros(masked)
    for name, axes in family.global_table(tied=shape.tied_embeddings).items():
        if len(axes) == 2:
            totals["hidden"][0] += weights[name].double().square().sum(1 - axes.index("hidden"))
    for layer in range(shape.num_layers):
        for name, axes in family.layer_table(shape.switches).items():
            if len(axes) == 2:
                squares = weights[f"{family.layers}.{layer}.{name}"].double().square()
                totals["layer"][layer] += squares.sum()
                for dimension, axis in enumerate(axes):
                    for part, sums in _parts(shape, axis, squares.sum(1 - dimension)):
                        totals[part][0 if part == "hidden" else layer] += sums
    return _by_granularity(masked, totals)


@torch.no_grad()
def activations(masked: MaskedModel, batches: Iterable[Batch]) -> Scores:
    """Measure how large the activations of a part are (Minitron, arXiv 2407.14679, section 2.2).

    The absolute activation is averaged over the positions of a sequence, and the squares of these
    means are added up over sequences, which the paper found best. A head's are those of what the
    output projection reads, a feed-forward dimension's what the down projection reads, a hidden
    dimension's what the norms give, summed over the norms. A layer scores by how far it turns the
    residual stream: 1 - cosine of its input and output (Block Importance).
    """
    shape = masked.source
    family, table = shape.family, shape.family.layer_table(shape.switches)
    totals = _zeros(masked)

    def add(part: str, layer: int, activation_BTN: Tensor) -> None:
        totals[part][layer] += activation_BTN.double().abs().mean(1).square().sum(0)

    def read(part: str, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: add(part, layer, inputs[0])

    def written(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        add("hidden", 0, output)

    def turned(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            cosine = cosine_similarity(inputs[0].double(), stream.double(), dim=-1)
            totals["layer"][layer] += (1 - cosine).mean(1).sum()

        return hook

    norms = [
        name.removesuffix(".weight")
        for name, axes in table.items()
        if axes == ("hidden",) and name.endswith(".weight")
    ]
    with ExitStack() as hooks:
        for index in range(shape.num_layers):
            layer = masked.model.get_submodule(f"{family.layers}.{index}")
            hooks.enter_context(layer.register_forward_hook(turned(index)))
            for writer in family.writers:
                part = table[f"{writer}.weight"][1]
                module = layer.get_submodule(writer)
                hooks.enter_context(module.register_forward_pre_hook(read(part, index)))
            for norm in norms:
                hooks.enter_context(layer.get_submodule(norm).register_forward_hook(written))
        final = masked.model.get_submodule(family.final_norm)
        hooks.enter_context(final.register_forward_hook(written))
        for batch in batches:
            masked.run_with({}, **batch)
    return _by_granularity(masked, totals)


METHODS: dict[str, Callable[[MaskedModel, Iterable[Batch]], Scores]] = {
    "magnitude": magnitude,
    "activations": activations,
    "taylor": taylor_importance,
}


def _zeros(masked: MaskedModel) -> Scores:
    """Sums by kind of unit, [layers, units]; [1, units] for hidden dimensions."""
    shape = masked.source
    sizes: dict[str, int] = {**shape.axis_sizes(), "layer": 1}
    return {
        unit: torch.zeros(
            1 if unit == "hidden" else shape.num_layers,
            sizes[unit],
            dtype=torch.float64,
            device=_device(masked),
        )
        for unit in ("layer", "hidden", "query", "key", "intermediate")
    }


def _device(masked: MaskedModel) -> torch.device:
    return next(masked.masks.parameters()).device


def _parts(shape: ModelShape, axis: Axis, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the values along an axis belong to: kind of unit, and the values of its units."""
    if axis == "head_triples":  # query, key and value of one head after the other
        values = values.view(shape.num_heads, 3, shape.head_dim).transpose(0, 1).flatten()
    sizes = shape.axis_sizes()
    parts = STACKED.get(axis, (axis,))
    yield from zip(parts, torch.split(values, [sizes[part] for part in parts]), strict=True)


def _by_granularity(masked: MaskedModel, totals: Mapping[str, Tensor]) -> Scores:
    """Add up the sums of units to scores shaped like the masks.

    With grouped-query attention a group has its own keys and values and all of its query heads;
    without, a head has its own keys and values.
    """
    shape = masked.source
    queries = totals["query"].view(shape.num_layers, shape.num_heads, shape.head_dim).sum(-1)
    keys = totals["key"].view(shape.num_layers, shape.num_kv_heads, shape.head_dim).sum(-1)
    in_groups = queries.view(shape.num_layers, shape.num_kv_heads, shape.queries_per_group)
    scores = {
        "layer": totals["layer"].view(-1, shape.layer_period).sum(1),
        "hidden": totals["hidden"][0],
        "group": keys + in_groups.sum(-1),
        "head": in_groups if shape.grouped else queries + keys,
        "intermediate": totals["intermediate"],
    }
    found = {name: scores[name] for name in masked.masks.granularities}
    if not all(score.isfinite().all() for score in found.values()):
        raise FloatingPointError("the scores of the parts are not finite; check model and data")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
