"""A run folder: the paths in it, and whether a recipe may use it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from drpruning.common.errors import BadInput, FolderLocked
from drpruning.common.files import (
    LOCK_FILE,
    atomic_write,
    missing_folders,
    remove_empty,
)
from drpruning.recipe import Recipe, load_recipe, parse_recipe, read_values

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
    def task_results(self) -> Path:
        """The folder of the scores on tasks, a file for each; see `runs.task_results`."""
        return self.evaluations / "tasks"

    @property
    def speed(self) -> Path:
        """Speed and memory of the models."""
        return self.evaluations / "speed.json"

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

    def evaluation_files(self) -> list[Path]:
        """The evaluations that are there, by name."""
        return [file for file in sorted(self.evaluations.glob("*.json")) if file != self.speed]

    def result(self, phase: str) -> Path:
        """The model that a phase makes."""
        return {"prune": self.pruned, "pretrain": self.model}[phase]


_NAMES = RunFolder(Path())
_BEGINNING = {_NAMES.recipe.name, _NAMES.sessions.name, LOCK_FILE}
"""The files that the start of a run writes."""


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
    of_a_run = path.name == _NAMES.recipe.name and is_run(path.parent)
    if not of_a_run or any(change.startswith("output=") for change in overrides):
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

    def found(place: str) -> str:
        if Path(place).exists():
            return place
        moved = moved_places(place, Path(recipe.output), folder)
        return next((new for new in moved if Path(new).exists()), place)

    def all_found(**places: str | None) -> dict[str, str | None]:
        return {field: place and found(place) for field, place in places.items()}

    model, data = recipe.model, recipe.data
    places = all_found(source=model.source, tokenizer=model.tokenizer)
    folders = all_found(root=data.root, prepared=data.prepared)
    phases = {
        name: phase.model_copy(update={"distill": distill.with_places(found)})
        for name, phase in recipe.phases.items()
        if (distill := recipe.distillation(name)) is not None
    }
    return recipe.model_copy(
        update=phases
        | {
            "model": model.model_copy(update=places),
            "data": data.model_copy(update=folders),
            "output": str(folder),
        }
    )


def is_chained(recipe: Recipe) -> bool:
    """Whether a run prunes the cut model of a larger target of the same recipe (`model.nested`)."""
    if recipe.model.source is None or recipe.model.shape is None:
        return False
    source = Path(recipe.model.source).absolute()
    return source.name == PRUNED and source.parents[1] == Path(recipe.output).absolute().parent


def moved_places(place: str, old: Path, new: Path) -> list[str]:
    """Where a file or folder can be now, if it lay in a run folder, or beside it, and moved too."""
    pairs = ((old, new), (old.parent, new.absolute().parent))
    return [
        str(now / Path(place).relative_to(before))
        for before, now in pairs
        if Path(place).is_relative_to(before)
    ]


def may_have_moved(before: str, now: str, folder: Path) -> bool:
    """Whether a place that is gone can be this one in or beside a run folder, which has moved.

    Args:
        before: The place as it was noted.
        now: A place that is named today.
        folder: Where the run folder is today.
    """
    home, place = folder.absolute().parent, Path(now).absolute()
    if Path(before).exists() or not place.is_relative_to(home):
        return False
    parts = place.relative_to(home).parts
    return Path(before).parts[-len(parts) :] == parts


def rebased(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run that lies in this folder, whether or not it was made there.

    A source that lies beside the run, as the larger target's model does in a chain of targets, is
    named at its place beside the folder, also where it has been removed.
    """
    source = recipe.model.source
    places = [] if source is None else moved_places(source, Path(recipe.output), folder)
    model = recipe.model.model_copy(update={"source": places[0] if places else source})
    return recipe.model_copy(update={"model": model, "output": str(folder)})


def is_run(folder: Path) -> bool:
    """Whether a command has begun a run here; a lock or a log alone may be anybody's."""
    return RunFolder(folder).sessions.is_file()


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
