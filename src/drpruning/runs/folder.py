"""A run folder: where everything lies in it, and whether a recipe may use it."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.common.files import LOCK_FILE, check_folder, missing_folders, remove_empty
from drpruning.data import DomainSource
from drpruning.recipe import Recipe, parse_recipe, read_values
from drpruning.recipe.changes import differences, fixed_settings

PLAN_FILE = "plan.json"
SOURCE, PRUNED, MODEL = "source", "pruned", "model"
"""The models of a run by name, in order: as given, as cut, after continued pretraining."""


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder (docs/run-folder.md); whether they exist is not asked.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def sessions(self) -> Path:
        """One JSON object for each start of a command."""
        return self.path / "sessions.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON object for each logged step, evaluation and event; see `runs.records`."""
        return self.path / "metrics.jsonl"

    @property
    def lock(self) -> Path:
        """Locked while a process works in the folder."""
        return self.path / LOCK_FILE

    @property
    def data(self) -> Path:
        """The tokenized blocks, unless the recipe keeps them elsewhere."""
        return self.path / "data"

    @property
    def reference_loss(self) -> Path:
        """Reference losses measured from models."""
        return self.path / "reference_loss.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of all phases."""
        return self.path / "checkpoints"

    @property
    def prune(self) -> Path:
        """The folder of what the pruning phase has decided."""
        return self.path / "prune"

    @property
    def plan(self) -> Path:
        """The final pruning plan."""
        return self.prune / PLAN_FILE

    @property
    def plan_history(self) -> Path:
        """The plan at every evaluation of the pruning phase."""
        return self.prune / "plans.jsonl"

    @property
    def masks(self) -> Path:
        """The final masks and multipliers."""
        return self.prune / "masks.safetensors"

    @property
    def similarity(self) -> Path:
        """How far the plan at every evaluation agreed with the final one."""
        return self.prune / "similarity.json"

    @property
    def schedule(self) -> Path:
        """State of policy and data at the end of pruning, from which recovery may continue."""
        return self.prune / "schedule.json"

    @property
    def pruned(self) -> Path:
        """The model as cut."""
        return self.path / PRUNED

    @property
    def model(self) -> Path:
        """The model after continued pretraining."""
        return self.path / MODEL

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def start(self) -> Path:
        """What the run has found, for `scheduling.start` of another recipe."""
        return self.path / "start.yaml"

    def evaluation(self, name: str) -> Path:
        """The evaluation of one model, by its short name (`source`, `pruned`, `model`)."""
        return self.evaluations / f"{name}.json"

    def result(self, phase: str) -> Path:
        """The model that a phase makes."""
        return {"prune": self.pruned, "pretrain": self.model}[phase]


_NAMES = RunFolder(Path())
_BEGINNING = {_NAMES.recipe.name, _NAMES.sessions.name, LOCK_FILE}
"""What the start of a run writes."""
_APPENDED = (_NAMES.sessions.name, _NAMES.metrics.name, LOCK_FILE)


def check_output(recipe: Recipe) -> None:
    """Refuse an output folder that belongs to something else.

    Settings that do not change what a run computes may differ from those it was begun with; with
    `training.checkpoint.accept_changes` everything but the model may.

    Raises:
        BadInput: It holds the run of another recipe, or files that are no run.
    """
    folder = Path(recipe.output)
    file = RunFolder(folder).recipe
    check_folder(folder, "output")
    begun = file.is_file()
    if begun and not any((folder / name).exists() for name in _APPENDED):
        raise BadInput(
            f"output: the {file.name} in {folder} was not written by a run, which would replace "
            "it; name another folder"
        )
    for appended in (folder / name for name in _APPENDED):
        if appended.is_symlink():
            raise BadInput(f"output: {appended} is a link to another place; remove it")
    if not begun and folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise BadInput(f"output: {folder} is not empty and holds no run; name another folder")
    if there := saved_recipe(folder):
        changes = differences(fixed_settings(recipe), fixed_settings(_relocated(there, recipe)))
        if recipe.training.checkpoint.accept_changes:
            changes = [change for change in changes if change.startswith("model.")]
        if changes:
            raise BadInput(
                f"output: {folder} holds the run of another recipe ({'; '.join(changes[:5])}); "
                f"name another folder, remove this one, or go on with "
                f"`drprune run {file}`"
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
    own = RunFolder(Path(output)).data
    if prepared and _lies_in(prepared, output) and not _lies_in(prepared, str(own)):
        raise BadInput(
            f"data.prepared: {prepared} lies among the files of the run; leave it out (for {own}), "
            f"or choose a folder outside of {output}"
        )


def _lies_in(place: str, folder: str) -> bool:
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


@contextmanager
def rollback_on_error(folder: Path) -> Iterator[None]:
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
        if _NAMES.recipe.name not in before and now <= _BEGINNING | {_NAMES.data.name}:
            for name in (now - before) & _BEGINNING:
                (folder / name).unlink()
            remove_empty(missing)
        raise


def saved_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run in a folder, its targets resolved; None where none was begun.

    Raises:
        BadInput: It cannot be read.
    """
    file = RunFolder(folder).recipe
    try:
        begun = file.is_file()
    except (OSError, ValueError):  # no possible folder, as `check_output` says
        return None
    return parse_recipe(read_values(file), origin=str(file)) if begun else None


def _relocated(there: Recipe, here: Recipe) -> Recipe:
    """The recipe of a run; its source as named here if it lay beside the run and moved with it."""
    source, home = Path(str(there.model.source)), Path(there.output).parent
    if source.is_relative_to(home):
        now = str(Path(here.output).parent / source.relative_to(home))
        if now == here.model.source:
            model = there.model.model_copy(update={"source": now})
            return there.model_copy(update={"model": model})
    return there


def _is_foreign(path: Path) -> bool:
    return path.name != _NAMES.data.name and not path.name.startswith(".")
