"""Read what a run folder holds, as far as it is there.

The files and their fields are described in ``docs/run-folder.md``. A run in progress has only some
of them, so whatever is absent is simply empty here; what is present and wrong raises
:class:`~drpruning.errors.BadInput` with the file and the line.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drpruning.errors import BadInput
from drpruning.json_text import parse_json
from drpruning.report.records import (
    DIMENSIONS,
    End,
    EvalPoint,
    Evaluation,
    Explanation,
    PhaseRecord,
    Plan,
    RunRecord,
    SimilarityPoint,
    Start,
    StepPoint,
    Warned,
    is_number,
)
from drpruning.yaml_text import parse_yaml

FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation/*.json",
    "prune/plan.json",
    "prune/similarity.json",
)
_MODEL_ORDER = ("source", "pruned", "model")


def load_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Files that are not there yet leave their part of the record empty. A last line of
    ``metrics.jsonl`` that was cut off in the middle is left out.

    Args:
        folder: A run folder, complete or in progress.

    Raises:
        BadInput: The folder does not exist, or a file in it is not what ``docs/run-folder.md`` says
            (the message names file, line and field).
    """
    run = load_phases(folder)
    run.evaluations = _read_evaluations(run.folder / "evaluation")
    run.similarity = _read_similarity(run.folder / "prune" / "similarity.json")
    run.plan = _read_plan(run.folder / "prune" / "plan.json")
    return run


def load_phases(folder: Path) -> RunRecord:
    """Read the recipe and the log of a run; no other file is opened, so none can be in the way.

    Args:
        folder: A run folder, complete or in progress.

    Returns:
        The record with its recipe and phases; the other parts are empty.

    Raises:
        BadInput: As `load_run`, for ``recipe.yaml`` and ``metrics.jsonl``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a run folder: there is no such directory.")
    text, recipe = _read_recipe(folder / "recipe.yaml")
    phases = _read_metrics(folder / "metrics.jsonl")
    return RunRecord(folder=folder, recipe=recipe, recipe_text=text, phases=phases)


def load_evaluation(file: Path) -> Evaluation | None:
    """Read one ``evaluation/NAME.json``; None where there is none.

    Raises:
        BadInput: It is not what ``docs/run-folder.md`` says.
    """
    fields = _read_json(file)
    return None if fields is None else _read_evaluation(fields)


class _Fields:
    """One JSON object and where it stands, so that every complaint can say both."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise BadInput(f"{where}: expected a JSON object, found {_show(raw)}.")
        self.raw: dict[str, Any] = raw
        self.where = where

    def complain(self, name: str, expected: str) -> BadInput:
        found = _show(self.raw[name]) if name in self.raw else "nothing"
        return BadInput(f"{self.where}: field {name!r} must be {expected}, found {found}.")

    def number(self, name: str) -> float:
        """The number at ``name``; NaN where it is absent or null."""
        value = self.raw.get(name)
        if not _is_number_or_null(value):
            raise self.complain(name, "a number or null")
        return _nan_for_null(value)

    def integer(self, name: str) -> int:
        value = self.raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.complain(name, "a whole number")
        return value

    def text(self, name: str) -> str:
        value = self.raw.get(name)
        if not isinstance(value, str):
            raise self.complain(name, "a string")
        return value

    def numbers(self, name: str) -> dict[str, float]:
        """The mapping of numbers at ``name``; empty where absent or null, NaN for null inside."""
        found = self.mapping(name, "an object of numbers", _is_number_or_null)
        return {key: _nan_for_null(item) for key, item in found.items()}

    def mapping(self, name: str, expected: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
        """The object at ``name``, all of whose values fit; empty where absent or null."""
        value = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(map(fits, value.values())):
            raise self.complain(name, expected)
        return value

    def intervals(self, name: str) -> dict[str, tuple[float, float]]:
        """The mapping of [low, high] at ``name``; NaN for null inside."""
        found = self.mapping(name, "an object of pairs [low, high]", _is_pair)
        return {
            key: (_nan_for_null(low), _nan_for_null(high)) for key, (low, high) in found.items()
        }

    def texts(self, name: str) -> dict[str, str]:
        return self.mapping(name, "an object of strings", lambda item: isinstance(item, str))

    def flags(self, name: str) -> dict[str, bool]:
        return self.mapping(name, "an object of true and false", lambda i: isinstance(i, bool))

    def flag(self, name: str) -> bool | None:
        """The answer at ``name``; None where it is absent or null."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.complain(name, "true, false or null")
        return value

    def rows(self, name: str, count: int) -> list[list[int]]:
        """The ``count`` lists of indices at ``name``."""
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.complain(name, f"{count} lists, one for each kept layer")
        return [self.indices(name, row) for row in value]

    def indices(self, name: str, value: object) -> list[int]:
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.complain(name, "lists of whole numbers")
        return value

    def bit_counts(self, name: str, count: int) -> list[int]:
        """How many bits are set in each of the ``count`` hexadecimal masks at ``name``."""
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.complain(name, f"{count} bit masks, one for each kept layer")
        try:
            return [int(mask, 16).bit_count() for mask in value]
        except (TypeError, ValueError) as error:
            raise self.complain(name, "hexadecimal bit masks") from error

    def inner(self, name: str) -> "_Fields":
        return _Fields(self.raw.get(name), f"{self.where}: field {name!r}")

    def optional(self, name: str) -> "_Fields":
        """The object at ``name``; without fields where it is absent or null."""
        return _Fields({}, self.where) if self.raw.get(name) is None else self.inner(name)


def _is_number_or_null(value: object) -> bool:
    return value is None or is_number(value)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number_or_null, value))


def _nan_for_null(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    recipe = parse_yaml(text, str(path))
    if not isinstance(recipe, dict):
        raise BadInput(f"{path}: expected a mapping with the recipe's fields at the top.")
    return text, recipe


def _read_json(path: Path) -> _Fields | None:
    if not path.is_file():
        return None
    try:
        return _Fields(parse_json(path.read_bytes()), str(path))
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is not JSON: {error}") from error


def _read_lines(path: Path) -> Iterator[_Fields]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = parse_json(line)
        except ValueError as error:
            if number == len(lines):  # no newline at its end: the writer was stopped in this line
                return
            raise BadInput(f"{where}: not a JSON object ({error}); remove this line") from error
        yield _Fields(raw, where)


def _read_metrics(path: Path) -> dict[str, PhaseRecord]:
    phases: dict[str, PhaseRecord] = {}
    if not path.is_file():
        return phases
    for fields in _read_lines(path):
        name = fields.text("phase")
        _add_record(phases.setdefault(name, PhaseRecord(name)), fields)
    return phases


def _add_record(phase: PhaseRecord, fields: _Fields) -> None:
    """Append one line of ``metrics.jsonl``; kinds that are not known here are passed over."""
    kind = fields.text("kind")
    step = fields.integer("step")
    if kind == "start":
        phase.start = _read_start(fields)
    elif kind == "step":
        phase.steps.append(
            StepPoint(
                step=step,
                time=fields.number("time"),
                loss=fields.number("loss"),
                sparsity=fields.numbers("sparsity"),
                target_sparsity=fields.numbers("target_sparsity"),
            )
        )
    elif kind == "eval":
        phase.evals.append(
            EvalPoint(
                step=step,
                time=fields.number("time"),
                loss=fields.numbers("loss"),
                reference_loss=fields.numbers("reference_loss"),
                forecast=fields.numbers("forecast"),
                reference_ratio=fields.numbers("reference_ratio"),
                ratio=fields.numbers("ratio"),
                excess=fields.numbers("excess"),
                explanation=_read_explanation(fields),
                realised_share=fields.numbers("realised_share"),
                parameters=fields.number("parameters"),
                evaluation_seconds=fields.number("evaluation_seconds"),
                update_seconds=fields.number("update_seconds"),
            )
        )
    elif kind == "skip":
        phase.skipped.append(step)
    elif kind == "warning":
        phase.warnings.append(Warned(step=step, message=fields.text("message")))
    elif kind == "end":
        stopped = "" if fields.raw.get("stopped") is None else fields.text("stopped")
        phase.end = End(total_seconds=fields.number("total_seconds"), stopped=stopped)


def _read_explanation(fields: _Fields) -> Explanation:
    said = fields.optional("explanation")
    return Explanation(
        ratio_updated=said.flag("ratio_updated"),
        unusable=said.texts("unusable"),
        reference_ratio_updated=said.flag("reference_ratio_updated"),
        loss=said.numbers("loss"),
        rho=said.number("rho"),
        divergence=said.number("divergence"),
        floor=said.numbers("floor"),
        at_floor=said.flags("at_floor"),
        forecast_interval=said.intervals("forecast_interval"),
        forecast_quality=said.numbers("forecast_quality"),
        forecast_since=said.numbers("forecast_since"),
        no_forecast=said.texts("no_forecast"),
        refused=said.texts("refused"),
    )


def _read_start(fields: _Fields) -> Start:
    versions = fields.optional("versions").raw
    return Start(
        time=fields.number("time"),
        total_steps=fields.integer("total_steps"),
        global_batch=fields.integer("global_batch"),
        sequence_length=fields.integer("sequence_length"),
        final_parameters=fields.number("final_parameters"),
        versions={str(name): str(version) for name, version in versions.items()},
        commit="" if fields.raw.get("commit") is None else fields.text("commit"),
    )


def _read_evaluations(folder: Path) -> dict[str, Evaluation]:
    read = {path.stem: load_evaluation(path) for path in sorted(folder.glob("*.json"))}
    found = {name: evaluation for name, evaluation in read.items() if evaluation is not None}
    known = [name for name in _MODEL_ORDER if name in found]
    return {name: found[name] for name in [*known, *(n for n in found if n not in known)]}


def _read_evaluation(fields: _Fields) -> Evaluation:
    parameters = fields.inner("parameters")
    perplexity = fields.numbers("perplexity")
    worst = None if fields.raw.get("worst_domain") is None else fields.text("worst_domain")
    if worst is not None and worst not in perplexity:
        raise fields.complain("worst_domain", "one of the domains in 'perplexity'")
    return Evaluation(
        name=fields.text("name"),
        label=fields.text("label"),
        parameters=parameters.integer("total"),
        embedding_parameters=parameters.integer("embedding"),
        other_parameters=parameters.integer("other"),
        perplexity=perplexity,
        average_perplexity=fields.number("average_perplexity"),
        worst_domain=worst,
        blocks=fields.numbers("blocks"),
        sequence_length=fields.integer("sequence_length"),
    )


def _read_similarity(path: Path) -> list[SimilarityPoint]:
    fields = _read_json(path)
    if fields is None:
        return []
    rows = fields.raw.get("rows")
    if not isinstance(rows, list):
        raise fields.complain("rows", "a list")
    points = []
    for number, row in enumerate(rows):
        inner = _Fields(row, f"{path}: rows[{number}]")
        points.append(
            SimilarityPoint(step=inner.integer("step"), similarity=inner.numbers("similarity"))
        )
    return points


def _read_plan(path: Path) -> Plan | None:
    fields = _read_json(path)
    if fields is None:
        return None
    source, target = fields.inner("source"), fields.inner("target")
    layers = fields.indices("layers", fields.raw.get("layers"))
    plan = Plan(
        source={name: source.integer(name) for name in DIMENSIONS},
        target={name: target.integer(name) for name in DIMENSIONS},
        layers=layers,
        kv_groups=fields.rows("kv_groups", len(layers)),
        heads=fields.rows("heads", len(layers)),
        intermediate=fields.bit_counts("intermediate", len(layers)),
    )
    if not set(plan.layers) <= set(range(plan.source["num_layers"])):
        raise fields.complain("layers", f"indices below {plan.source['num_layers']}")
    return plan
