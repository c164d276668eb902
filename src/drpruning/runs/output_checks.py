"""Whether a recipe may use its output folder: what is in it, and where it lies."""

import os
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import LOCK_FILE, check_folder
from drpruning.data import DomainSource
from drpruning.recipe import Recipe
from drpruning.recipe.changes import differences, fixed_settings, written_as
from drpruning.recipe.paths import escape_path
from drpruning.recipe.phases import PHASES
from drpruning.runs.folder import RunFolder, finished_phases, is_run, moved_places

_NAMES = RunFolder(Path())
_APPENDED = (_NAMES.sessions.name, _NAMES.metrics.name, LOCK_FILE)


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
    if begun and not is_run(folder):
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
    untaught = [
        f"write {phase}.distill: none, as it was begun, "
        for phase in recipe.phases
        if recipe.distillation(phase) is not None and saved.distillation(phase) is None
        if any(change.startswith(f"{phase}.distill ") for change in changes)
    ]
    text = (
        f"output: {files.path} {state} ({'; '.join(changes[:5])}); {action} that one with "
        f"`drprune run {shlex.quote(str(files.recipe))}`, {''.join(untaught)}or write another "
        "output"
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


def _changes(recipe: Recipe, saved: Recipe, folder: Path) -> list[str]:
    """How a recipe differs from that of a run in what has been computed already."""
    begun = _begun_phases(folder, saved)
    settings = {"now": fixed_settings(recipe), "saved": fixed_settings(saved)}

    def moved(before: str, now: Iterable[str]) -> str:
        """The name among those of now of what has moved with the run, else the name before."""
        places = {Path(p).absolute() for p in moved_places(before, Path(saved.output), folder)}
        return next((name for name in now if Path(name).absolute() in places), before)

    for part, field in (("model", "source"), ("model", "tokenizer"), ("data", "root")):
        now, before = settings["now"][part][field], settings["saved"][part][field]
        if now and before:
            settings["saved"][part][field] = moved(before, [now])
    for phase in recipe.phases:
        now, before = recipe.distillation(phase), saved.distillation(phase)
        if now is not None and before is not None:
            placed = before.with_places(partial(moved, now=now.named))
            names = {"teacher": placed.teacher, "teachers": placed.teachers}
            settings["saved"][phase]["distill"] |= names
    for phase in set(PHASES) - begun:
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
    read = [("model.source", recipe.model.source), ("model.tokenizer", recipe.model.tokenizer)]
    for phase in recipe.phases:
        if (distill := recipe.distillation(phase)) is not None:
            read += [(f"{phase}.distill", name) for name in distill.named]
    for domain in domains:
        read.append((f"data.domains.{domain.name}.source", domain.source))
        read.append((f"data.domains.{domain.name}.validation", domain.validation))
    output, prepared = recipe.output, recipe.data.prepared
    for option, place in {"output": output, "data.prepared": prepared}.items():
        for field, folder in read:
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


def _is_foreign(path: Path) -> bool:
    return path.name not in {_NAMES.data.name, _NAMES.sessions.name} and not path.name.startswith(
        "."
    )
