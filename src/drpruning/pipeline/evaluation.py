"""`drprune evaluate`: the models of runs, and models from elsewhere on the data of a run."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drpruning.common.errors import BadInput
from drpruning.common.hub import HUB_NAME, split_revision
from drpruning.data import tokenizer_digest
from drpruning.models.files import refuse_other_formats
from drpruning.models.inspect import check_model
from drpruning.pipeline.run import Run, open_prepared, show_table
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import load_evaluation

_FIELD = "MODEL"
_OWN = {SOURCE, PRUNED, MODEL}


@dataclass(frozen=True)
class _Model:
    """A model from elsewhere: its name for people, and its folder (absolute) or its Hub name."""

    label: str
    path: str


def evaluate_targets(targets: Sequence[Path], data: Path | None) -> None:
    """Measure every model of the runs, and single models on a run's validation blocks.

    Everything is looked at before the first model is measured, which may take hours.

    Args:
        targets: Run folders, model folders, and names on the Hub.
        data: The run whose blocks the models are measured on.

    Raises:
        BadInput: A target is none of these, a model is given without data, cannot be loaded, or has
            another tokenizer.
    """
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
    home = None if data is None else open_prepared(data)
    if home is not None:
        for model in models.values():
            _check(model, home)
        if home.folder.resolve() not in {folder.resolve() for folder in folders}:
            runs.append(home)
    for run in runs:
        if run is not home:
            run.evaluate(again=True)
    for model in models.values():
        assert home is not None  # noqa: S101 - checked above
        home.measure(_evaluation_name(home, model), model.label, model.path, _FIELD)
    if runs[0].accelerator.is_main_process:
        show_table([run.folder for run in runs], runs[0].reporter)


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


def _check(model: _Model, home: Run) -> None:
    """Refuse a model that could not be measured on a run's blocks, from its small files."""
    check_model(model.path, _FIELD)
    if tokenizer_digest(model.path) != home.data.tokenizer_digest:
        raise BadInput(
            f"{model.label}: its tokenizer is not the one that {home.folder} was made with"
        )


def _evaluation_name(home: Run, model: _Model) -> str:
    """The name of a model's evaluation: that which it has, or else PARENT-FOLDER.

    Numbers are added where another model's evaluation has that name, in capitals or not, as the run
    folder may lie on, or move to, a file system that does not tell them apart. Characters that are
    no ASCII letters or digits are replaced, and the length is bounded, for the same reason.
    """
    taken = set(_OWN)
    for file in home.files.evaluations.glob("*.json"):
        known = load_evaluation(file)
        path = known.path if known is not None and file.stem not in _OWN else None
        if path is not None and model.path in {path, str(Path(path).resolve())}:
            return file.stem
        taken.add(file.stem.lower())
    place = Path(model.path)
    name = re.sub(r"[^\w.-]+", "-", f"{place.parent.name}-{place.name}", flags=re.ASCII)
    name = name.strip("-.")[:100] or "evaluation"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name.lower() not in taken)
