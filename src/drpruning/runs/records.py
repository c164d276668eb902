"""What the files of a run folder say, as plain objects (``docs/run-folder.md``)."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.recipe.yaml_io import parse_yaml
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """A phase begins (``kind: start``)."""

    time: float
    total_steps: int
    global_batch: int
    sequence_length: int
    final_parameters: float
    versions: dict[str, str]
    commit: str


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """One logged training step (``kind: step``); numbers that are not known are NaN."""

    step: int
    time: float
    loss: float
    sparsity: dict[str, float]
    target_sparsity: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What the policy says of its decision; a policy says only what it knows.

    Mappings go from domain to what is said of it. Numbers that are not known are NaN, answers None.

    Attributes:
        ratio_updated: Whether there is a new ratio.
        unusable: Why there is not.
        reference_ratio_updated: Whether the reference ratio moved after the decision.
        loss: The losses gone by in nats, averaged where the policy averages.
        rho: Radius of the ball.
        divergence: How much of it the ratio uses.
        floor: Smallest share allowed.
        at_floor: Whether the ratio is no larger.
        forecast_interval: 90% interval of the loss at the end of training, in nats.
        forecast_quality: From 0 to 1.
        forecast_since: First step used, where earlier points were left out.
        no_forecast: Why there is none.
        refused: Why the forecast was not used.
    """

    ratio_updated: bool | None
    unusable: dict[str, str]
    reference_ratio_updated: bool | None
    loss: dict[str, float]
    rho: float
    divergence: float
    floor: dict[str, float]
    at_floor: dict[str, bool]
    forecast_interval: dict[str, tuple[float, float]]
    forecast_quality: dict[str, float]
    forecast_since: dict[str, float]
    no_forecast: dict[str, str]
    refused: dict[str, str]

    @property
    def has_ball(self) -> bool:
        """Whether the ratio was chosen within a ball around a reference ratio."""
        return math.isfinite(self.rho) and math.isfinite(self.divergence)

    @property
    def ball_binds(self) -> bool:
        """Whether the ratio uses all of the ball, up to rounding."""
        return self.has_ball and self.divergence >= self.rho * (1 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class EvalPoint:
    """One evaluation and the ratio update it led to (``kind: eval``).

    Mappings go from domain to nats a token or to a share; they are empty where nothing is known.
    """

    step: int
    time: float
    loss: dict[str, float]
    reference_loss: dict[str, float]
    forecast: dict[str, float]
    reference_ratio: dict[str, float]
    ratio: dict[str, float]
    excess: dict[str, float]
    explanation: Explanation
    realised_share: dict[str, float]
    parameters: float
    evaluation_seconds: float
    update_seconds: float


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something that people should know of (``kind: warning``)."""

    step: int
    message: str


@dataclass(frozen=True, kw_only=True)
class End:
    """A phase is complete (``kind: end``); `stopped` says why before its last step, or nothing."""

    total_seconds: float
    stopped: str


@dataclass
class PhaseRecord:
    """What ``metrics.jsonl`` says of one phase, in the order of steps."""

    name: str
    start: Start | None = None
    steps: list[StepPoint] = field(default_factory=list)
    evals: list[EvalPoint] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    """Steps that changed nothing, their loss or gradient not being finite (``kind: skip``)."""
    end: End | None = None

    @property
    def last_step(self) -> int:
        """The last step of which there is a record."""
        return max([*(p.step for p in self.steps), *(p.step for p in self.evals)], default=0)

    @property
    def total_steps(self) -> int | None:
        """The steps that the phase was to have, or None where its start was not recorded."""
        return self.start.total_steps if self.start else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the phase as logged at its end, else from first to last record."""
        if self.end is not None and not math.isnan(self.end.total_seconds):
            return self.end.total_seconds
        points: list[Start | StepPoint | EvalPoint] = [*self.steps, *self.evals]
        points += [self.start] if self.start else []
        times = [point.time for point in points if not math.isnan(point.time)]
        return max(times) - min(times) if times else 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The perplexity of one model on the domains (``evaluation/NAME.json``)."""

    name: str
    label: str
    parameters: int
    embedding_parameters: int
    other_parameters: int
    perplexity: dict[str, float]
    average_perplexity: float
    worst_domain: str | None
    blocks: dict[str, float]
    sequence_length: int

    @property
    def worst_perplexity(self) -> float:
        """The perplexity on the worst domain, NaN where none is known to be."""
        return math.nan if self.worst_domain is None else self.perplexity[self.worst_domain]


@dataclass(frozen=True, kw_only=True)
class SimilarityPoint:
    """Agreement of the plan at a step with the final plan, per granularity (Appendix B.1)."""

    step: int
    similarity: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which parts stay (``prune/plan.json``); indices are the source's.

    Attributes:
        source: Sizes of the source model, by the names of a recipe's ``model.target``.
        target: The same for what is left.
        layers: Layers that stay.
        kv_groups: Key-value heads that stay, one list for each layer that stays.
        heads: Query heads that stay, likewise.
        intermediate: How many feed-forward dimensions stay, one number for each layer that stays.
    """

    source: dict[str, int]
    target: dict[str, int]
    layers: list[int]
    kv_groups: list[list[int]]
    heads: list[list[int]]
    intermediate: list[int]

    @property
    def removed_layers(self) -> list[int]:
        """Layers that go."""
        return sorted(set(range(self.source["num_layers"])) - set(self.layers))


@dataclass(kw_only=True)
class RunRecord:
    """All that the files of one run folder say.

    Attributes:
        folder: Where the run lies.
        recipe: ``recipe.yaml``; empty where it is absent.
        recipe_text: The same as it is written.
        phases: Phase name (``prune``, ``pretrain``) to its records, in the order of time.
        evaluations: Model name to its evaluation, in the order source, pruned, model, others.
        similarity: Rows of ``prune/similarity.json``.
        plan: ``prune/plan.json``, or None.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    similarity: list[SimilarityPoint] = field(default_factory=list)
    plan: Plan | None = None

    @property
    def label(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def evaluated(self) -> dict[str, PhaseRecord]:
        """The phases with an evaluation, in the order of time."""
        return {name: phase for name, phase in self.phases.items() if phase.evals}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a report could show."""
        has_points = any(phase.steps or phase.evals for phase in self.phases.values())
        return not (has_points or self.evaluations or self.similarity or self.plan)

    @property
    def initial_ratio(self) -> dict[str, float]:
        """The recipe's share per domain; empty unless every domain has one."""
        domains = section(self.recipe, "data", "domains")
        shares = {str(k): v.get("share") for k, v in domains.items() if isinstance(v, Mapping)}
        if len(shares) < len(domains) or not all(map(is_number, shares.values())):
            return {}
        return {name: float(share) for name, share in shares.items() if share is not None}

    @property
    def domains(self) -> list[str]:
        """Domain names: the recipe's first, then what else the records name."""
        evals = [point for phase in self.phases.values() for point in phase.evals]
        names: dict[str, None] = dict.fromkeys(
            str(name) for name in section(self.recipe, "data", "domains")
        )
        for point in evals:
            names.update(dict.fromkeys((*point.loss, *point.ratio)))
        for evaluation in self.evaluations.values():
            names.update(dict.fromkeys(evaluation.perplexity))
        return list(names)


DIMENSIONS = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "num_heads": "heads",
    "num_kv_heads": "KV heads",
}
"""The sizes that a target may name, and what to call them for people."""


def section(mapping: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """Return the mapping that lies at ``path``, or an empty one."""
    value: Any = mapping
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def is_number(value: object) -> bool:
    """Whether a JSON or YAML value is a number (booleans are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_NAMES = RunFolder(Path())
FILES = tuple(
    map(
        str, (_NAMES.recipe, _NAMES.metrics, _NAMES.evaluation("*"), _NAMES.plan, _NAMES.similarity)
    )
)
"""What a report is made from, as patterns in a run folder."""
_MODEL_ORDER = (SOURCE, PRUNED, MODEL)


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
    files = RunFolder(run.folder)
    run.evaluations = _read_evaluations(files.evaluations)
    run.similarity = _read_similarity(files.similarity)
    run.plan = _read_plan(files.plan)
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
    text, recipe = _read_recipe(RunFolder(folder).recipe)
    phases = _read_metrics(RunFolder(folder).metrics)
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
