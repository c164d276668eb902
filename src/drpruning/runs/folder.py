"""A run folder: the paths in it, and whether a recipe may use it."""

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput, FolderLocked
from drpruning.common.files import (
    LOCK_FILE,
    atomic_write,
    check_folder,
    missing_folders,
    remove_empty,
)
from drpruning.data import DomainSource
from drpruning.recipe import Recipe, load_recipe, parse_recipe, read_values
from drpruning.recipe.changes import differences, fixed_settings, written_as
from drpruning.recipe.paths import escape_path

PLAN_FILE = "plan.json"
SOURCE, PRUNED, MODEL = "source", "pruned", "model"
"""The models of a run by name, in order: as given, as cut, after continued pretraining."""


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder (docs/run-folder.md), whether they exist or not.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def has_recipe(self) -> bool:
        """Whether there is a recipe of a run; other programs write one beside a model."""
        return self.recipe.is_file() and not (self.path / "config.json").is_file()

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
        """The folder of the tokenized blocks, unless the recipe keeps them elsewhere."""
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
"""The files that the start of a run writes."""
_APPENDED = (_NAMES.sessions.name, _NAMES.metrics.name, LOCK_FILE)


def open_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe; the recipe.yaml of a run folder stands for the run in that folder.

    So a run that was moved is resumed where it is now, not begun again where it was.

    Args:
        path: A recipe.
        overrides: See `load_recipe`; an `output` among them is taken as it is.

    Raises:
        BadInput: See `load_recipe`.
    """
    path, overrides = Path(path), list(overrides)
    recipe = load_recipe(path, overrides)
    is_run = path.name == _NAMES.recipe.name and _is_run(path.parent)
    if not is_run or any(change.startswith("output=") for change in overrides):
        return recipe
    return relocated(recipe, path.parent if path.parent.name else Path.cwd())


def relocated(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run whose folder is now another place.

    Models, text and prepared data that lay in the folder or beside it are found there again, where
    they are no more at their old places.

    Args:
        recipe: Its output is the folder's old place.
        folder: Its place now.
    """

    def found(place: str | None) -> str | None:
        if place is None or Path(place).exists():
            return place
        moved = _moved(place, Path(recipe.output), folder)
        return next((new for new in moved if Path(new).exists()), place)

    model, data = recipe.model, recipe.data
    places = {"source": found(model.source), "tokenizer": found(model.tokenizer)}
    folders = {"root": found(data.root), "prepared": found(data.prepared)}
    return recipe.model_copy(
        update={
            "model": model.model_copy(update=places),
            "data": data.model_copy(update=folders),
            "output": str(folder),
        }
    )


def _moved(place: str, old: Path, new: Path) -> list[str]:
    """Where a file or folder can be now, if it lay in a run folder, or beside it, and moved too."""
    pairs = ((old, new), (old.parent, new.absolute().parent))
    return [
        str(now / Path(place).relative_to(before))
        for before, now in pairs
        if Path(place).is_relative_to(before)
    ]


def _is_run(folder: Path) -> bool:
    """Whether a command has begun a run here; a lock or a log alone may be anybody's."""
    return RunFolder(folder).sessions.is_file()


def check_output(recipe: Recipe, saved: Recipe | None) -> None:
    """Refuse an output folder that belongs to something else.

    Settings that do not change what a run computes may differ from those it was begun with, and so
    may all settings of a phase that has not begun. Before the first phase has begun, only the
    prepared data are fixed (preparing compares them), and the model once it is measured. With
    `training.checkpoint.accept_changes` everything may differ but the model, the phases that are
    finished, what the state of the policy in a checkpoint is of, and all settings once every phase
    is finished.

    Args:
        recipe: The run to be.
        saved: What `saved_recipe` finds in the folder.

    Raises:
        BadInput: It holds the run of another recipe, or files that are no run.
    """
    folder = Path(recipe.output)
    file = RunFolder(folder).recipe
    check_folder(folder, "output")
    begun = file.is_file()
    if begun and not _is_run(folder):
        raise BadInput(
            f"output: the {file.name} in {folder} was not written by a run, which would replace "
            "it; name another folder"
        )
    for appended in (folder / name for name in _APPENDED):
        if appended.is_symlink():
            raise BadInput(f"output: {appended} is a link to another place; remove it")
    if not begun and folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise BadInput(f"output: {folder} is not empty and holds no run; name another folder")
    if saved is not None and (changes := _changes(recipe, saved, folder)):
        raise BadInput(_refusal(recipe, saved, changes))


def _refusal(recipe: Recipe, saved: Recipe, changes: list[str]) -> str:
    """The message for a folder that holds the run of other settings, with what can be done."""
    files = RunFolder(Path(recipe.output))
    prepared, model, start = (
        escape_path(str(path)) for path in (recipe.prepared_folder, files.model, files.start)
    )
    done = finished_phases(saved, files.path)
    if done.keys() >= saved.phases.keys():
        state, action = "holds a finished run with other settings", "show"
    elif done and recipe.training.checkpoint.accept_changes:
        state, action = f"has finished {', '.join(done)} with other settings", "resume"
    else:
        state, action = "holds the run of another recipe", "resume"
    text = (
        f"output: {files.path} {state} ({'; '.join(changes[:5])}); {action} that one with "
        f"`drprune run {shlex.quote(str(files.recipe))}`, or write another output"
    )
    if not any(change.startswith(("data.", "model.tokenizer")) for change in changes):
        text += f" (with data.prepared: {prepared} nothing is prepared again)"
    if "pretrain" in done and any(change.startswith("pretrain.") for change in changes):
        text += (
            f"; to train its model further, write there model.source: {model}, no "
            f"model.target and no prune, and scheduling.start: {start}, which `drprune "
            f"export-schedule {shlex.quote(str(files.path))}` makes"
        )
    return text


def finished_phases(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """The phases of a run that are finished, each with the model that shows it to be.

    Once continued pretraining is finished, the model as cut may have been removed.

    Args:
        recipe: The run's; with several targets none is finished here, but in their own folders.
        folder: Where the run lies.
    """
    files = RunFolder(folder)
    found = {phase: files.result(phase) for phase in recipe.phases}
    if "prune" in found and "pretrain" in found and not found["prune"].is_dir():
        found["prune"] = found["pretrain"]
    return {phase: model for phase, model in found.items() if model.is_dir()}


def _changes(recipe: Recipe, saved: Recipe, folder: Path) -> list[str]:
    """How a recipe differs from that of a run in what has been computed already."""
    begun = _begun_phases(folder, saved)
    settings = {"now": fixed_settings(recipe), "saved": fixed_settings(saved)}
    for part, field in (("model", "source"), ("model", "tokenizer"), ("data", "root")):
        now, before = settings["now"][part][field], settings["saved"][part][field]
        moved = _moved(before, Path(saved.output), folder) if before else []
        if now and any(Path(now).absolute() == Path(place).absolute() for place in moved):
            settings["saved"][part][field] = now
    for phase in {"prune", "pretrain"} - begun:
        for values in settings.values():
            values[phase] = None
    changes = differences(settings["now"], settings["saved"])
    if not begun:
        fixed = _measured_settings(RunFolder(folder))
        return [change for change in changes if change.startswith(fixed)]
    done = finished_phases(saved, folder).keys()
    if recipe.phases.keys() <= done:  # no model is left that could be written otherwise
        return changes + differences(written_as(recipe), written_as(saved))
    if recipe.training.checkpoint.accept_changes:
        fixed_parts = {"model", *done}
        changes = [line for line in changes if line.split(" ")[0].split(".")[0] in fixed_parts]
        if any(any(RunFolder(folder).checkpoints.glob(f"{phase}-*")) for phase in begun - done):
            changes += differences(_state_settings(recipe), _state_settings(saved))
    return changes


def _state_settings(recipe: Recipe) -> dict[str, Any]:
    """What the state of a policy, and so a checkpoint, is of."""
    trained = sorted(recipe.initial_ratio)
    policy = recipe.scheduling.policy
    return {"scheduling": {"policy": policy}, "data": {"domains above share 0": trained}}


def _measured_settings(files: RunFolder) -> tuple[str, ...]:
    """What was measured before the first phase, which is not measured again, depends on these."""
    fixed: tuple[str, ...] = ()
    if any(files.evaluations.glob("*.json")):
        fixed += ("model.source", "model.revision", "model.tokenizer")
    if files.reference_loss.is_file():  # a law over sizes is read off at the target's
        fixed += ("model.target",)
    return fixed


def _begun_phases(folder: Path, recipe: Recipe) -> set[str]:
    """The phases of which there is a log, a checkpoint or a result, and all before them.

    A folder of several targets has what its runs have, one for each target.
    """
    runs = [RunFolder(folder / name) for name in recipe.model.targets or {}] or [RunFolder(folder)]
    begun: set[str] = set()
    for run in runs:
        log = run.metrics.read_bytes() if run.metrics.is_file() else b""
        for phases in (("prune",), ("prune", "pretrain")):
            saved = run.result(phases[-1]).is_dir() or any(run.checkpoints.glob(f"{phases[-1]}-*"))
            if saved or f'"phase": "{phases[-1]}"'.encode() in log:
                begun |= set(phases)
    return begun


def check_apart(recipe: Recipe, domains: Iterable[DomainSource]) -> None:
    """Refuse to write into a folder that is read, or prepared data among a run's other files.

    Args:
        recipe: Names models, output and prepared data.
        domains: Its text, relative paths joined to data.root.

    Raises:
        BadInput: The output or the prepared data would lie in a model or in text, or the data
            among the results of the run.
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
    """Take back what a block has written to begin or resume a run, if it fails before it does so.

    Then what was wrong can be corrected, in the recipe too, and the same folder be used; the
    recipe.yaml of a run that was not resumed says what was run before. Prepared data stay.
    """
    missing = missing_folders(folder)
    before = set() if missing else {path.name for path in folder.iterdir()}
    file = RunFolder(folder).recipe
    recipe = file.read_text(encoding="utf-8") if file.is_file() else None
    computed = _computed(folder)
    try:
        yield
    except FolderLocked:
        raise
    except (BadInput, OSError):
        now = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if recipe is not None and _computed(folder) == computed:
            with suppress(OSError):  # the first error is the one to tell
                atomic_write(file, recipe)
        if recipe is None and now <= _BEGINNING | {_NAMES.data.name}:
            for name in (now - before) & _BEGINNING:
                (folder / name).unlink()
            remove_empty(missing)
        raise


def _computed(folder: Path) -> dict[Path, int]:
    """What a run, or those of several targets, have computed: file -> time of its last change."""
    places = folder.iterdir() if folder.is_dir() else ()
    return {
        path: path.stat().st_mtime_ns
        for place in places
        if place.name != _NAMES.data.name
        for path in (place, *place.rglob("*"))
        if path.name not in _BEGINNING and path.is_file()
    }


def saved_recipe(folder: Path) -> Recipe | None:
    """Read the recipe of the run in a folder, its targets resolved; None if there is no run.

    Raises:
        BadInput: Its recipe cannot be read.
    """
    file = RunFolder(folder).recipe
    try:
        begun = file.is_file()
    except (OSError, ValueError):  # no possible folder, as `check_output` says
        return None
    return parse_recipe(read_values(file), origin=str(file)) if begun else None


def _is_foreign(path: Path) -> bool:
    return path.name not in {_NAMES.data.name, _NAMES.sessions.name} and not path.name.startswith(
        "."
    )
