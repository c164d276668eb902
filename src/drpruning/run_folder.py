"""What a run folder holds already, and whether a recipe may go on in it."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drpruning.data import DomainSource
from drpruning.errors import BadInput
from drpruning.recipe import Recipe, parse_recipe, read_values
from drpruning.recipe_changes import decisive, differences
from drpruning.whole_file import LOCK_FILE, check_folder, missing_folders, remove_empty

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe in a run folder."""
_BEGINNING = {RECIPE_FILE, "sessions.jsonl", LOCK_FILE}
_APPENDED = ("sessions.jsonl", "metrics.jsonl", LOCK_FILE)


def check_output(recipe: Recipe) -> None:
    """Refuse an output folder that belongs to something else.

    Settings that do not change what a run computes may differ from those it was begun with; with
    `training.checkpoint.accept_changes` everything but the model may.

    Raises:
        BadInput: It holds the run of another recipe, or files that are no run.
    """
    folder = Path(recipe.output)
    check_folder(folder, "output")
    begun = (folder / RECIPE_FILE).is_file()
    if begun and not any((folder / name).exists() for name in _APPENDED):
        raise BadInput(
            f"output: the {RECIPE_FILE} in {folder} was not written by a run, which would replace "
            "it; name another folder"
        )
    for file in (folder / name for name in _APPENDED):
        if file.is_symlink():
            raise BadInput(f"output: {file} is a link to another place; remove it")
    if not begun and folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise BadInput(f"output: {folder} is not empty and holds no run; name another folder")
    if there := begun_recipe(folder):
        changes = differences(decisive(recipe), decisive(_moved(there, recipe)))
        if recipe.training.checkpoint.accept_changes:
            changes = [change for change in changes if change.startswith("model.")]
        if changes:
            raise BadInput(
                f"output: {folder} holds the run of another recipe ({'; '.join(changes[:5])}); "
                f"name another folder, remove this one, or go on with "
                f"`drprune run {folder / RECIPE_FILE}`"
            )


def check_apart(recipe: Recipe, domains: Iterable[DomainSource]) -> None:
    """Refuse to write into a folder that is read, and blocks among the other files of a run.

    Args:
        recipe: Names models, output and prepared data.
        domains: Its text, relative paths joined to data.root.

    Raises:
        BadInput: So.
    """
    read = {"model.source": recipe.model.source, "model.tokenizer": recipe.model.tokenizer}
    for domain in domains:
        read[f"data.domains.{domain.name}.source"] = domain.source
        read[f"data.domains.{domain.name}.validation"] = domain.validation
    output, prepared = recipe.output, recipe.data.prepared
    for option, place in {"output": output, "data.prepared": prepared}.items():
        for field, folder in read.items():
            if place and folder and Path(folder).is_dir() and _lies_in(place, folder):
                raise BadInput(
                    f"{option}: {place} lies in {folder}, which {field} names; choose a folder "
                    "outside of it"
                )
    own = Path(output) / "data"
    if prepared and _lies_in(prepared, output) and not _lies_in(prepared, str(own)):
        raise BadInput(
            f"data.prepared: {prepared} lies among the files of the run; leave it out (for {own}), "
            f"or choose a folder outside of {output}"
        )


def _lies_in(place: str, folder: str) -> bool:
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


@contextmanager
def undone_if_refused(folder: Path) -> Iterator[None]:
    """Take back what a block has written to begin a run, where it fails before it has a result.

    So what was wrong can be put right, in the recipe too, and the same folder be used. The data
    that were prepared stay.
    """
    missing = missing_folders(folder)
    before = set() if missing else {path.name for path in folder.iterdir()}
    try:
        yield
    except (BadInput, OSError):
        now = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if RECIPE_FILE not in before and now <= _BEGINNING | {"data"}:
            for name in (now - before) & _BEGINNING:
                (folder / name).unlink()
            remove_empty(missing)
        raise


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
