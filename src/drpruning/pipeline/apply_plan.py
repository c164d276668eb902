"""`drprune apply-plan`: cut a model by a plan, from one model folder to another."""

import tempfile
from pathlib import Path

from drpruning.common.console import Reporter
from drpruning.common.errors import BadInput
from drpruning.common.files import check_folder
from drpruning.models.files import read_config
from drpruning.models.inspect import check_weights, shape_of
from drpruning.models.tokenizer import check_tokenizer
from drpruning.pruning import PruningPlan
from drpruning.pruning.clients import attention_by_index
from drpruning.runs.folder import PLAN_FILE
from drpruning.runs.plans import find_plan

_MODEL, _OUTPUT = "MODEL", "OUTPUT"


def cut_model(plan_file: Path, model: str, output: Path, reporter: Reporter | None = None) -> None:
    """Cut a model by a plan and write it with tokenizer, model card and the plan itself.

    Weights are cut, not rescaled, and keep the checkpoint's own type. Everything that can be
    checked is checked before weights are loaded; `output` appears complete or not at all.

    Args:
        plan_file: Where the plan is, see `drpruning.runs.plans.find_plan`.
        model: A folder, or a name on the Hub, with safetensors weights.
        output: The folder to write; absent or empty.
        reporter: Says what was done; default: on standard output.

    Raises:
        BadInput: No plan, a model that is not the plan's source or cannot be loaded, or an output
            that is not empty or cannot be written.
    """
    plan = find_plan(plan_file)
    _check_output(output)
    _check_source(plan, model)
    reporter = reporter or Reporter()
    if mixed := attention_by_index(plan.source, plan.layers):
        reporter.warn(f"{plan_file}: {mixed} (see docs/clients.md)")
    from safetensors import SafetensorError

    from drpruning.models.card import cut_model_card
    from drpruning.models.loading import load_model, quiet_libraries
    from drpruning.models.result import Origin, dtype_name, save_model
    from drpruning.pruning import apply_plan

    quiet_libraries()
    loaded = load_model(model, _MODEL, dtype="auto")
    origin = Origin.of(model, field=_MODEL)
    if origin.stored_dtype != loaded.dtype:  # config.json names another type than the files have
        loaded = load_model(model, _MODEL, dtype=origin.stored_dtype)
    cut = apply_plan(loaded, plan)
    place = output.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as staging:
            folder = Path(staging) / place.name
            save_model(cut, origin, folder, cut_model_card(model, plan, origin.card))
            plan.save(folder / PLAN_FILE)
            folder.rename(place)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise BadInput(f"{_OUTPUT}: {output} cannot be written: {reason}") from None
    before, after = plan.source.num_parameters(), plan.target.num_parameters()
    dtype = dtype_name(cut.dtype)
    reporter.line(f"{before:,} -> {after:,} parameters ({dtype}): {output}")


def _check_output(output: Path) -> None:
    try:
        taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    except OSError as error:
        raise BadInput(f"{_OUTPUT}: {output}: {error.strerror}; name another folder") from None
    if taken:
        raise BadInput(f"{_OUTPUT}: {output} is not empty; name a new folder")
    check_folder(output, _OUTPUT)


def _check_source(plan: PruningPlan, model: str) -> None:
    """Refuse a model that is not the plan's source, from its small files and headers."""
    config = read_config(model, _MODEL)
    shape = shape_of(config, f"{_MODEL}: {model}")
    if differences := shape.differences(plan.source):
        found = ", ".join(f"{name} {a}, not {b}" for name, (a, b) in differences.items())
        raise BadInput(
            f"{_MODEL}: the plan was made for another model than {model}, which has {found}"
        )
    check_tokenizer(model, shape, _MODEL)
    check_weights(model, shape, _MODEL, config)
