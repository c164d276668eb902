"""`drprune evaluate`: the models of runs, and models from elsewhere on the data of a run."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_writable, dumps
from drpruning.common.hub import HUB_NAME, split_revision
from drpruning.common.unknown import record_fields
from drpruning.data import tokenizer_digest
from drpruning.models.files import refuse_other_formats
from drpruning.models.inspect import check_model
from drpruning.pipeline.measurement import ModelToMeasure, known_evaluation
from drpruning.pipeline.run import Run, open_prepared
from drpruning.pipeline.speed import check_speed, measure_speed
from drpruning.report import results_table
from drpruning.report.evaluation_table import evaluation_tables, evaluation_values
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import Evaluation, load_evaluation, load_run, write_evaluation

_FIELD = "MODEL"
_OWN = {SOURCE, PRUNED, MODEL}


@dataclass(frozen=True)
class _Model:
    """A model from elsewhere: its name for people, and its folder (absolute) or its Hub name."""

    label: str
    path: str


def evaluate_targets(
    targets: Sequence[Path],
    data: Path | None,
    *,
    again: bool = False,
    speed: bool = False,
    output: Path | None = None,
) -> None:
    """Measure every model of the runs, and single models on a run's validation blocks.

    Everything is looked at before the first model is measured, which may take hours. A model whose
    files, blocks and precision are those of an evaluation in the run folder is not measured again.

    Args:
        targets: Run folders, model folders, and names on the Hub.
        data: The run whose blocks the models are measured on.
        again: Measure those too that have been measured.
        speed: Also measure speed and memory, each model against the source of its run.
        output: A file for everything as JSON.

    Raises:
        BadInput: A target is none of these, a model is given without data, cannot be loaded, or has
            another tokenizer that does not say what text its tokens stand for.
    """
    if output is not None:
        check_writable(output, "--json")
    if speed:
        check_speed()
    runs, wanted = _find(targets, data)
    _measure(wanted, again=again)
    if _is_first_rank():
        for run in runs:
            run.complete_cards()
    table = results_table([load_run(run.folder) for run in runs])
    for part in evaluation_tables(table, runs[0].reporter.console.width):
        runs[0].reporter.console.print(part)
    values = evaluation_values(table)
    if speed:
        values["speed"] = _speeds(wanted)
    if output is not None and _is_first_rank():
        atomic_write(output, dumps(values, indent=1) + "\n")


def _speeds(wanted: Sequence[tuple[Run, ModelToMeasure]]) -> list[dict[str, Any]]:
    """Measure the speed of the models, those of one run folder together."""
    by_folder: dict[Path, tuple[Run, list[ModelToMeasure]]] = {}
    for run, model in wanted:
        by_folder.setdefault(run.folder.resolve(), (run, []))[1].append(model)
    return [
        {"run": str(run.folder)} | record_fields(measure_speed(run, models))
        for run, models in by_folder.values()
    ]


def _find(
    targets: Sequence[Path], data: Path | None
) -> tuple[list[Run], list[tuple[Run, ModelToMeasure]]]:
    """The runs of the table, and the models to measure, each on the blocks of a run."""
    folders = list(
        {path.resolve(): path for path in targets if RunFolder(path).has_recipe}.values()
    )
    models: dict[str, _Model] = {}
    for model in (_model(target) for target in targets if not RunFolder(target).has_recipe):
        models.setdefault(model.path, model)
    if models and data is None:
        model = next(iter(models.values()))
        no_folder = "neither a run folder nor a model folder; if it is a model on the Hub, "
        raise BadInput(
            f"{model.label}: {'' if Path(model.path).is_absolute() else no_folder}name the run "
            "whose data it is measured on with --data RUN"
        )
    runs = [open_prepared(folder) for folder in folders]
    wanted = [(run, model) for run in runs for model in run.models_to_measure()]
    if data is not None:
        home = open_prepared(data)
        others = {model.path: _check(model, home) for model in models.values()}
        names = _evaluation_names(home, list(models.values()))
        wanted += [
            (
                home,
                ModelToMeasure(
                    name=name,
                    label=model.label,
                    path=model.path,
                    field=_FIELD,
                    has_other_tokenizer=others[model.path],
                ),
            )
            for name, model in zip(names, models.values(), strict=True)
        ]
        if home.folder.resolve() not in {folder.resolve() for folder in folders}:
            runs.append(home)
    return runs, wanted


def _measure(wanted: Sequence[tuple[Run, ModelToMeasure]], *, again: bool) -> None:
    """Measure the models that are not known yet.

    Every rank has looked for all of them before the first writes a file. PyTorch, which takes
    seconds to load, is not, where nothing is measured.
    """
    known: list[Evaluation | None] = [None] * len(wanted)
    if not again:
        known = [
            known_evaluation(model, run.files, run.data, run.recipe.training.precision)
            for run, model in wanted
        ]
    if wanted and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wanted[0][0].accelerator.wait_for_everyone()
    for (run, model), record in zip(wanted, known, strict=True):
        if record is None:
            run.measure(model)
        elif _is_first_rank():
            named = replace(record, name=model.name, label=model.label, path=model.path)
            file = run.files.evaluation(model.name)
            if named != record or not file.is_file():
                write_evaluation(named, file)
            run.reporter.line(f"{model.label}: measured before ({file})")


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _model(target: Path) -> _Model:
    name = str(target)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r}: is not UTF-8 text; rename the folder") from None
    if (target / "config.json").is_file():
        place = str(target.resolve())
        return _Model(place if target.name in {"", ".."} else name, place)
    if HUB_NAME.fullmatch(split_revision(name)[0]) and not target.exists():
        return _Model(name, name)
    if target.is_dir() or target.suffix == ".gguf":
        refuse_other_formats(target, _FIELD, has_config=False)
    raise BadInput(f"{name}: neither a run folder nor a model folder, nor a name on the Hub")


def _check(model: _Model, home: Run) -> bool:
    """Refuse a model that could not be measured on a run's text, from its small files.

    Returns:
        Whether it has another tokenizer than the run.
    """
    check_model(model.path, _FIELD)
    if tokenizer_digest(model.path) == home.data.tokenizer_digest:
        return False
    from drpruning.training.other_tokenizer import OtherTokenizer

    OtherTokenizer.load(model.path, model.label, home.data, home.token_bytes)
    return True


def _evaluation_names(home: Run, models: Sequence[_Model]) -> list[str]:
    """The name of each model's evaluation: that which it has, or else PARENT-FOLDER.

    Numbers are added where another model's evaluation has that name, in capitals or not, as the run
    folder may lie on, or move to, a file system that does not tell them apart. Characters that are
    no ASCII letters or digits are replaced, and the length is bounded, for the same reason.
    """
    taken = {*_OWN, home.files.speed.stem}
    own: dict[str, str] = {}
    for file in home.files.evaluation_files():
        known = load_evaluation(file)
        if known is not None and known.path is not None and file.stem not in _OWN:
            own |= {known.path: file.stem, str(Path(known.path).resolve()): file.stem}
        taken.add(file.stem.lower())
    return [own.get(model.path) or _new_name(Path(model.path), taken) for model in models]


def _new_name(place: Path, taken: set[str]) -> str:
    """A name for a model's evaluation that no other has; it is then taken."""
    name = re.sub(r"[^\w.-]+", "-", f"{place.parent.name}-{place.name}", flags=re.ASCII)
    name = name.strip("-.")[:100] or "evaluation"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    found = next(name for name in names if name.lower() not in taken)
    taken.add(found.lower())
    return found
