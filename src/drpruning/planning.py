"""What a recipe will do and whether it can: shapes, tokens, epochs, memory. No weights are loaded.

Everything here comes from configs, file sizes and arithmetic, so it runs on a machine without
GPUs, without torch, and for local files without a network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.data import DomainSource, PreparedData, check_sources, estimate_tokens
from drpruning.errors import BadInput
from drpruning.pruning import ModelShape
from drpruning.recipe import Domain, Phase, Recipe, ReferenceModels, parse_recipe, read_values
from drpruning.reference_losses import check_reference_models
from drpruning.scheduling import FORECAST_START, MIN_POINTS
from drpruning.source_model import (
    SOURCE,
    check_tokenizer,
    check_weights,
    source_config,
    source_shape,
)
from drpruning.training import REFERENCE_LOSS_FILE, ReferenceLosses, phase_policy

BYTES_PER_PARAMETER = 16
"""float32 weights, gradients and two AdamW moments."""
LARGEST_SPARSITY = 0.95
"""Expected sparsity of masks at the lower end of their range."""
LITTLE_FREEDOM = 0.1
"""Share of the data that must be free to move between domains for steering to mean something."""
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class DomainPlan:
    """What one domain gives and what is asked of it under the initial ratio.

    Attributes:
        share: Initial share.
        planned: Tokens trained on, both phases.
        available: Training tokens there are; None where that is not known yet.
        exact: Whether `available` was counted, not guessed from file sizes.
        repeats_at: (phase, step) at which its text comes again; None where it does not.
    """

    share: float
    planned: int
    available: int | None
    exact: bool
    repeats_at: tuple[str, int] | None

    @property
    def epochs(self) -> float | None:
        """Passes over the domain."""
        return None if not self.available else self.planned / self.available


@dataclass
class RunPlan:
    """The outcome of looking at a recipe; `problems` is empty where it can run."""

    source: ModelShape | None = None
    target: ModelShape | None = None
    domains: dict[str, DomainPlan] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    """Phase -> estimated bytes a GPU."""
    evaluations: dict[str, int] = field(default_factory=dict)
    """Phase -> evaluations, each with one ratio update."""
    reference_models: dict[str, int] = field(default_factory=dict)
    """Models that the reference losses are from -> their number of parameters."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def domain_sources(recipe: Recipe) -> list[DomainSource]:
    """The recipe's domains as the data package takes them, relative paths joined to data.root."""

    def place(text: str) -> str:
        root = recipe.data.root
        return text if root is None or Path(text).is_absolute() else str(Path(root) / text)

    def source(name: str, domain: Domain) -> DomainSource:
        return DomainSource(
            name=name,
            source=place(domain.source),
            text_field=domain.text_field,
            where=domain.where,
            validation=None if domain.validation is None else place(domain.validation),
            split=domain.split,
            config=domain.config,
        )

    return [source(name, domain) for name, domain in recipe.data.domains.items()]


def estimate_memory(shape: ModelShape, recipe: Recipe, *, masked: bool) -> int:
    """Bytes a GPU needs for a training step; weights and optimizer are whole on each.

    16 bytes a parameter for weights, gradients and AdamW; activations in bfloat16 or float32:
    about 10 hidden-sized, 2 query-, 2 key/value- and 4 intermediate-sized tensors a layer and token
    are kept for the backward pass (one hidden-sized with gradient checkpointing, and one layer in
    full), and three copies of the logits. An estimate, good to about a quarter.
    """
    width = 2 if recipe.training.precision == "bf16" else 4
    tokens = recipe.training.micro_batch * recipe.data.sequence_length
    queries = shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim
    layer = 10 * shape.hidden_size + 2 * queries + 2 * keys + 4 * shape.intermediate_size
    kept = shape.num_layers * layer
    if recipe.training.gradient_checkpointing:
        kept = shape.num_layers * shape.hidden_size + layer
    activations = tokens * kept * width
    logits = tokens * shape.vocab_size * (width + 8)
    folded = 0
    if masked:
        gated = shape.hidden_size * (queries + shape.intermediate_size)
        layers = 1 if recipe.training.gradient_checkpointing else shape.num_layers
        folded = gated * layers * 4
    return BYTES_PER_PARAMETER * shape.num_parameters() + activations + logits + folded


def first_repeat(phases: dict[str, Phase], share: float, blocks: int) -> tuple[str, int] | None:
    """Phase and step at which a domain of this many blocks starts again under a constant share."""
    left = float(blocks)
    for name, phase in phases.items():
        a_step = share * phase.global_batch
        if a_step * phase.steps > left + 1e-9:
            return name, int(left / a_step) + 1
        left -= a_step * phase.steps
    return None


def plan_domains(recipe: Recipe, prepared: PreparedData | None = None) -> dict[str, DomainPlan]:
    """What each domain gives and what is asked of it."""
    length = recipe.data.sequence_length
    total = sum(p.steps * p.global_batch * length for p in recipe.phases.values())
    plans = {}
    for source in domain_sources(recipe):
        share = recipe.initial_ratio[source.name]
        if prepared is not None:
            blocks: int | None = len(prepared.domains[source.name].train)
        else:
            tokens = estimate_tokens(source)
            blocks = None if tokens is None else max(1, tokens // length)
        plans[source.name] = DomainPlan(
            share=share,
            planned=round(total * share),
            available=None if blocks is None else blocks * length,
            exact=prepared is not None,
            repeats_at=None if blocks is None else first_repeat(recipe.phases, share, blocks),
        )
    return plans


def repetition_warnings(domains: dict[str, DomainPlan]) -> list[str]:
    """One line for each domain that will be used more than once."""
    lines = []
    for name, plan in domains.items():
        if plan.repeats_at is not None and plan.epochs is not None:
            phase, step = plan.repeats_at
            about = "" if plan.exact else "about "
            lines.append(
                f"data.domains.{name}: {about}{plan.available:,} tokens will be used "
                f"{plan.epochs:.1f} times; they run out at {phase} step {about}{step}"
            )
    return lines


def check_output(recipe: Recipe) -> None:
    """Refuse an output folder that belongs to something else.

    Settings that do not change what a run computes may differ from those it was begun with.

    Raises:
        BadInput: It holds the run of another recipe, or files that are no run.
    """
    folder = Path(recipe.output)
    try:
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"output: {folder} is a file; name a folder")
        existing = folder / RECIPE_FILE
        begun = existing.is_file()
        foreign = not begun and folder.is_dir() and any(map(_is_foreign, folder.iterdir()))
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"output: {recipe.output!r} cannot be a folder: {error}") from None
    if foreign:
        raise BadInput(f"output: {folder} is not empty and holds no run; name another folder")
    if begun:
        there = parse_recipe(read_values(existing), origin=str(existing))
        differing = _differences(_decisive(recipe), _decisive(there))
        if differing:
            raise BadInput(
                f"output: {folder} holds the run of another recipe ({'; '.join(differing[:5])}); "
                f"name another folder, remove this one, or go on with `drprune run {existing}`"
            )


def _is_foreign(path: Path) -> bool:
    return path.name != "data" and not path.name.startswith(".")


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what may change between two starts of one run."""
    free = {"micro_batch", "compile", "gradient_checkpointing", "checkpoint"}
    return recipe.model_dump(
        mode="json",
        exclude={"output": True, "data": {"workers", "prepared"}, "training": free},
    )


def _differences(here: Any, there: Any, place: str = "") -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        keys = dict.fromkeys([*here, *there])
        return [
            line
            for key in keys
            for line in _differences(
                here.get(key), there.get(key), f"{place}.{key}" if place else str(key)
            )
        ]
    return [] if here == there else [f"{place} is {here!r} here and {there!r} there"]


def plan_run(recipe: Recipe) -> RunPlan:
    """Look at everything that can be known before anything is computed.

    Args:
        recipe: The run.

    Returns:
        Numbers, warnings, and every problem found (not only the first).
    """
    plan = RunPlan()

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            plan.problems.append(str(error))

    checks: list[Callable[[], None]] = [
        lambda: check_sources(domain_sources(recipe)),
        lambda: check_output(recipe),
    ]
    with collected():
        config = source_config(recipe)
        plan.source = source_shape(recipe, config)
        plan.warnings += _length_warning(recipe, config)
    if plan.source is not None:
        shape = plan.source
        checks.append(lambda: check_tokenizer(str(recipe.model.source), shape, SOURCE))
        checks.append(lambda: check_weights(str(recipe.model.source), shape, SOURCE))
        _plan_model(recipe, plan, collected)
    checks.append(lambda: _check_policy(recipe))
    if (models := recipe.scheduling.reference_models) is not None:
        with collected():
            plan.reference_models = _reference_models(recipe, models)
    for check in checks:
        with collected():
            check()
    plan.evaluations = {
        name: -(-phase.steps // phase.evaluate_every) + 1 for name, phase in recipe.phases.items()
    }
    with collected():
        plan.domains = plan_domains(recipe, _already_prepared(recipe))
    plan.warnings += repetition_warnings(plan.domains)
    plan.warnings += _floor_warning(recipe) + _update_warnings(recipe)
    return plan


def _reference_models(recipe: Recipe, models: ReferenceModels) -> dict[str, int]:
    """Model -> parameters, from what the run has measured, or else from the models' files."""
    folder = Path(recipe.output)
    if not (folder / REFERENCE_LOSS_FILE).is_file():
        return check_reference_models(models, str(recipe.model.source))
    measured = ReferenceLosses.read(folder, models, recipe.data.domains)
    measured.usable()
    return {model.path: model.parameters for model in measured.models}


def _update_warnings(recipe: Recipe) -> list[str]:
    """Phases in which no forecast can be made in time, so that the ratio would never move."""
    scheduling = recipe.scheduling
    if scheduling.policy != "drpruning" or scheduling.has_reference_loss:
        return []
    begin = FORECAST_START if scheduling.forecast_start is None else scheduling.forecast_start
    lines = []
    for name, phase in recipe.phases.items():
        # Neither step 0 nor the last step counts.
        steps = range(phase.evaluate_every, phase.steps, phase.evaluate_every)
        if any(step >= begin * phase.steps for step in steps[MIN_POINTS - 1 :]):
            if scheduling.handover == "continue":
                break  # the next phase begins with these forecasts
            continue
        lines.append(
            f"{name}.evaluate_every: the ratio would never move: without scheduling.reference_loss "
            f"it takes a forecast, that takes {MIN_POINTS} evaluations and scheduling."
            f"forecast_start ({begin:g}) of the steps, and no evaluation before the last step "
            f"({len(steps)} after step 0) has both behind it"
        )
    return lines


def _floor_warning(recipe: Recipe) -> list[str]:
    """Whether the floor leaves the ratio no room: by default it is the smallest reference share."""
    scheduling = recipe.scheduling
    shares = recipe.initial_ratio.values()
    if scheduling.policy not in {"drpruning", "naive_dro"} or len(shares) == 1:
        return []
    floor = min(shares) if scheduling.floor is None else scheduling.floor
    free = 1 - len(shares) * floor
    if free > LITTLE_FREEDOM or free < -1e-9:  # more than there is: no policy takes such a floor
        return []
    line = (
        f"scheduling.floor: every domain keeps at least {floor:.3g}, so only "
        f"{100 * max(free, 0):.0f}% of the data can be steered; write a smaller floor, such as "
        f"{floor / 2:.2g}"
    )
    return [line]


def _plan_model(recipe: Recipe, plan: RunPlan, collected: Callable[[], Any]) -> None:
    assert plan.source is not None  # noqa: S101 - the caller saw to it
    if recipe.model.target is not None:
        with collected():
            target = plan.source.pruned_to(**recipe.model.target.dimensions())
            if target == plan.source:
                raise BadInput("model.target: is the source's own shape; nothing would be pruned")
            plan.target = target
            plan.warnings += _sparsity_warnings(plan.source, target)
    if recipe.prune is not None:
        plan.memory["prune"] = estimate_memory(plan.source, recipe, masked=True)
    if recipe.pretrain is not None:
        shape = plan.target or plan.source
        plan.memory["pretrain"] = estimate_memory(shape, recipe, masked=False)


def _length_warning(recipe: Recipe, config: dict[str, Any]) -> list[str]:
    positions, length = config.get("max_position_embeddings"), recipe.data.sequence_length
    if not isinstance(positions, int) or length <= positions:
        return []
    line = f"{length} is beyond the {positions} positions that the model was made for"
    return [f"data.sequence_length: {line}"]


def _sparsity_warnings(source: ModelShape, target: ModelShape) -> list[str]:
    """Axes of which more is cut than hard-concrete masks can express in expectation."""
    return [
        f"model.target.{name}: {here} -> {there} removes more than "
        f"{100 * LARGEST_SPARSITY:.0f}%, which masks cannot reach; the cut will be abrupt"
        for name, (here, there) in source.differences(target).items()
        if isinstance(here, int) and isinstance(there, int) and 1 - there / here > LARGEST_SPARSITY
    ]


def _check_policy(recipe: Recipe) -> None:
    unknown = dict.fromkeys(recipe.data.domains, 1.0)  # reference losses are measured later
    for phase in recipe.phases.values():
        phase_policy(recipe, phase, final_params=1.0, reference_loss=unknown)


def _already_prepared(recipe: Recipe) -> PreparedData | None:
    folder = recipe.prepared_folder
    try:
        prepared = PreparedData.open(folder)
    except (BadInput, OSError):  # none, unfinished, or not ours: preparing says what is wrong
        return None
    same = prepared.sequence_length == recipe.data.sequence_length
    return prepared if same and set(prepared.domains) == set(recipe.data.domains) else None
