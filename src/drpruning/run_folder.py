"""What a run folder holds already, and whether a recipe may go on in it."""

from pathlib import Path
from typing import Any

from drpruning.errors import BadInput
from drpruning.recipe import Recipe, parse_recipe, read_values

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe in a run folder."""


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
        begun = (folder / RECIPE_FILE).is_file()
        foreign = not begun and folder.is_dir() and any(map(_is_foreign, folder.iterdir()))
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"output: {recipe.output!r} cannot be a folder: {error}") from None
    if foreign:
        raise BadInput(f"output: {folder} is not empty and holds no run; name another folder")
    if there := begun_recipe(folder):
        differing = _differences(_decisive(recipe), _decisive(_moved(there, recipe)))
        if differing:
            raise BadInput(
                f"output: {folder} holds the run of another recipe ({'; '.join(differing[:5])}); "
                f"name another folder, remove this one, or go on with "
                f"`drprune run {folder / RECIPE_FILE}`"
            )


def begun_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run in a folder, its targets resolved; None where none was begun.

    Raises:
        BadInput: It cannot be read.
    """
    file = folder / RECIPE_FILE
    try:
        begun = file.is_file()
    except (OSError, ValueError):  # no possible folder, as `check_output` says
        return None
    return parse_recipe(read_values(file), origin=str(file)) if begun else None


def _moved(there: Recipe, here: Recipe) -> Recipe:
    """The recipe of a run; its source as named here if it lay beside the run and moved with it."""
    source, home = Path(str(there.model.source)), Path(there.output).parent
    if source.is_relative_to(home):
        now = str(Path(here.output).parent / source.relative_to(home))
        if now == here.model.source:
            model = there.model.model_copy(update={"source": now})
            return there.model_copy(update={"model": model})
    return there


def _is_foreign(path: Path) -> bool:
    return path.name != "data" and not path.name.startswith(".")


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what may change between two starts of one run."""
    free = {
        "micro_batch", "compile", "gradient_checkpointing", "checkpoint", "attention", "liger",
    }  # fmt: skip
    origin = {"like", "params"}
    return recipe.model_dump(
        mode="json",
        exclude={
            "output": True,
            "model": {"target": origin, "targets": {"__all__": origin}},
            "data": {"workers", "prepared"},
            "training": free,
        },
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
