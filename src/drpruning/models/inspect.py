"""What the files of a model say of it: its shape and its weights. Nothing is loaded."""

from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import is_file
from drpruning.data.tokenizer_files import TOKENIZER_CONFIG, read_local
from drpruning.models.config_values import check_config_values
from drpruning.models.files import check_files, read_config, weight_files
from drpruning.models.tokenizer import check_tokenizer
from drpruning.models.weight_headers import BYTES, read_header, same_bytes
from drpruning.pruning import ModelShape, Proposal, propose_shapes
from drpruning.pruning.families import undoes_centring
from drpruning.pruning.shapes import PRUNABLE
from drpruning.recipe import Recipe, Target

SOURCE_FIELD = "model.source"
"""The field that names the source model."""
PROPOSALS = 5
"""Shapes that are shown for a parameter budget."""


def source_shape(recipe: Recipe, config: dict[str, Any]) -> ModelShape:
    """The shape of the source model.

    Args:
        recipe: Its `model.shape`, where given, must agree.
        config: What `source_config` found.

    Raises:
        BadInput: The model cannot be used, or is not of the shape that the recipe gives.
    """
    shape = recipe.model.shape
    origin = "model.shape" if config is shape else f"{SOURCE_FIELD}: {recipe.model.source}"
    found = shape_of(config, origin)
    if shape is not None and shape_of(shape, "model.shape") != found:
        raise BadInput(f"model.shape: is not the shape of {recipe.model.source}; leave it out")
    if recipe.prune is not None and (reason := undoes_centring(config)):
        targets = [recipe.model.target, *(recipe.model.targets or {}).values()]
        if any(_cuts_hidden(target, found) for target in targets if target is not None):
            raise BadInput(f"{origin}: the config's {reason}")
    return found


def _cuts_hidden(target: Target, source: ModelShape) -> bool:
    """Whether pruning to a target removes, or may remove, hidden dimensions."""
    if target.hidden_size is None:
        return target.like is not None or target.params is not None
    return target.hidden_size < source.hidden_size


def shape_of(config: dict[str, Any], origin: str) -> ModelShape:
    """The shape of the model that a config.json describes, which must be one that can be used.

    Args:
        config: Its content.
        origin: Where it is from, for the message.

    Raises:
        BadInput: The model is of no known family, or has values that it cannot compute with.
    """
    try:
        shape = ModelShape.of(config)
    except BadInput as error:
        raise BadInput(f"{origin}: {error}") from None
    check_config_values(config, shape, origin)
    return shape


def resolve_target(
    target: Target, source: ModelShape, chosen: Target | None, field: str
) -> tuple[Target, list[Proposal]]:
    """Write out every dimension of a target.

    Args:
        target: As the recipe has it.
        source: The model to be pruned.
        chosen: What it was resolved to when the run began. That stands, whatever a search for
            `params` would find today.
        field: The field of the recipe that it is, for the message.

    Returns:
        The target, which still says what it was made from, and the shapes that were proposed for
        its budget. The target has the first of them; where nothing was searched there are none.

    Raises:
        BadInput: The model that the target should be like cannot be used, or has a shape that the
            source cannot be pruned to; or no shape is near the budget.
    """
    if target.is_resolved:
        return target, []
    asked = target.model_dump(exclude_none=True)
    if chosen is not None and chosen.is_resolved and asked.items() <= chosen.model_dump().items():
        return chosen, []
    if target.like is not None:
        shape, proposals = _shape_like(target.like, target, source, field), []
    else:
        try:
            proposals = propose_shapes(source, target.params or 0, PROPOSALS, **target.dimensions())
        except BadInput as error:
            raise BadInput(f"{field}.params: {error}") from None
        shape = proposals[0].shape
    return target.model_copy(update={name: getattr(shape, name) for name in PRUNABLE}), proposals


def _shape_like(name: str, target: Target, source: ModelShape, field: str) -> ModelShape:
    """The source with the dimensions of another model, except for those that the target names."""
    path = Path(name)
    remedy = "give a folder, a config.json, or dimensions"
    config = None if path.is_file() else read_config(name, field, remedy)
    try:
        model = ModelShape.of(config or path)
    except BadInput as error:
        raise BadInput(f"{field}: {name}: {error}") from None
    wanted = {n: getattr(model, n) for n in PRUNABLE} | target.dimensions()
    heads = {"num_heads", "num_kv_heads"}
    if named := heads & target.dimensions().keys():
        wanted = {n: size for n, size in wanted.items() if n not in heads - named}
    elif model.head_dim != source.head_dim:
        count = min(source.num_heads, max(1, model.num_heads * model.head_dim // source.head_dim))
        raise BadInput(
            f"{field}: the heads of {name} have size {model.head_dim} and the source's "
            f"{source.head_dim}, which pruning leaves alone; name their number: "
            f"{{like: {name}, num_heads: {count}}}"
        )
    larger = {n: s for n, s in wanted.items() if s > getattr(source, n)}
    if larger:
        sizes = ", ".join(f"{n} {size} of {getattr(source, n)}" for n, size in larger.items())
        remedy = ", ".join(f"{n}: {getattr(source, n)}" for n in larger)
        raise BadInput(
            f"{field}: {name} is larger than the source ({sizes}); name at most the source's: "
            f"{{like: {name}, {remedy}}}"
        )
    try:
        return source.pruned_to(**wanted)
    except BadInput as error:
        raise BadInput(f"{field}: {name}: {error}") from None


def source_config(recipe: Recipe) -> dict[str, Any]:
    """Read the source's config.json, or take `model.shape` where the model is not on this machine.

    Raises:
        BadInput: There is neither, the config.json cannot be read, or a folder has a revision.
    """
    source, shape = str(recipe.model.source), recipe.model.shape
    if (revision := recipe.model.revision) is not None and Path(source).exists():
        raise BadInput(
            f"model.revision: {revision}, but {source} is on this machine, where a model has no "
            "revisions; leave it out, or give the model's name on the Hub"
        )
    if shape is not None and not is_file(Path(source) / "config.json", SOURCE_FIELD):
        return shape
    remedy = "give a folder, or model.shape to plan without it"
    return read_config(recipe.model.reference, SOURCE_FIELD, remedy)


def code_warnings(recipe: Recipe, config: dict[str, Any]) -> list[str]:
    """Warn of each file of the source that names code of its own, because that is not run.

    Args:
        recipe: Names the source and the tokenizer.
        config: What `source_config` found.
    """
    field = SOURCE_FIELD if recipe.model.tokenizer is None else "model.tokenizer"
    settings = read_local(recipe.model.tokenizer_source, TOKENIZER_CONFIG, field) or {}
    named = {(SOURCE_FIELD, "config.json"): config, (field, TOKENIZER_CONFIG): settings}
    return [
        f"{place}: {file} names code that comes with it (auto_map); it is not run, Transformers' "
        "own class is used: make sure that it computes the same"
        for (place, file), content in named.items()
        if content.get("auto_map")
    ]


def check_model(name: str, field: str) -> ModelShape:
    """Refuse a model that could not be used, from its small files and headers.

    Args:
        name: A folder, or a name on the Hub.
        field: What named it, for the message.

    Returns:
        Its shape.

    Raises:
        BadInput: Its config.json, tokenizer or weights are missing, damaged or do not fit together.
    """
    config = read_config(name, field)
    shape = shape_of(config, f"{field}: {name}")
    check_tokenizer(name, shape, field)
    check_weights(name, shape, field, config)
    return shape


def check_weights(
    name: str, shape: ModelShape, field: str, config: dict[str, Any] | None = None
) -> None:
    """Refuse weights that are not those of the config, from the headers of their files.

    Of a model on the Hub only the small files are looked at; the weights are fetched later.

    Args:
        name: A folder, or a name on the Hub.
        shape: Its shape.
        field: The field of the recipe that names it.
        config: The content of its config.json; None where a model on the Hub is planned without it.

    Raises:
        BadInput: There are no safetensors files, one cannot be read or is not complete, a parameter
            is missing, unknown or of another size, or files lead elsewhere (see
            `drpruning.models.files.check_files`).
    """
    folder = Path(name)
    if folder.is_dir() or config is not None:
        check_files(name, field, config)
    if not folder.is_dir():
        return
    found = {
        tensor.name: tensor
        for file in weight_files(folder, field)
        for tensor in read_header(file, field).tensors
    }
    for tensor in found.values():
        if tensor.dtype not in BYTES:
            raise BadInput(
                f"{field}: {tensor.name} in {tensor.file} is of type {tensor.dtype}; give the "
                f"model with its plain weights ({', '.join(BYTES)})"
            )
    family, sizes = shape.family, shape.axis_sizes()
    table = family.full_table(shape.num_layers, shape.switches, tied=shape.tied_embeddings)
    embedding, output = f"{family.embedding}.weight", f"{family.output}.weight"
    head = found.get(family.file_name(output))
    if head is not None:
        table[output] = family.global_parameters[output]
    for own_name, axes in table.items():
        parameter, expected = family.file_name(own_name), [sizes[axis] for axis in axes]
        if parameter not in found:
            raise BadInput(f"{field}: {folder} has no weights for {parameter}")
        if found[parameter].shape != expected:
            raise BadInput(
                f"{field}: {parameter} has shape {found[parameter].shape} in {folder}, where its "
                f"config.json says {expected}"
            )
    known = set(map(family.file_name, (*table, output)))
    odd = [n for n in found if n not in known and not n.endswith(family.ignored_weights)]
    if odd:
        raise BadInput(f"{field}: {folder} has weights that its config.json lacks: {odd[0]}")
    own_head = head if shape.tied_embeddings else None
    if own_head is not None and not same_bytes(own_head, found[family.file_name(embedding)], field):
        raise untied_output(name, shape, field)


def untied_output(model: str, shape: ModelShape, field: str) -> BadInput:
    """The error for tied embeddings with an output matrix that is not the input matrix.

    Args:
        model: A folder, or a name on the Hub.
        shape: Its shape.
        field: The field of the recipe that names the model.
    """
    parameter = shape.family.file_name(f"{shape.family.output}.weight")
    return BadInput(
        f"{field}: {model} has {parameter}, which is not its input embedding, though its "
        "config.json says tie_word_embeddings: true. Transformers 5 computes with that matrix, "
        "Transformers 4 with the embedding: set tie_word_embeddings to false in config.json to "
        f"keep the matrix, or take {parameter} out of the weights to use the embedding"
    )
