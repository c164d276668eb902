"""What the files of a run folder say, as plain objects (``docs/run-folder.md``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, dumps, parse_json
from drpruning.common.unknown import Unknown, record_fields
from drpruning.data.blocks import MANIFEST_FILE
from drpruning.pruning import PruningPlan
from drpruning.recipe.paths import expand_path
from drpruning.recipe.yaml_io import parse_yaml
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.lines import (
    End,
    EvalPoint,
    Line,
    SkippedPoint,
    Start,
    StepPoint,
    Warned,
    read_lines,
)
from drpruning.runs.task_results import TaskResult, read_task_results
from drpruning.runs.typed_json import (
    Interval,
    Intervals,
    Number,
    NumberLists,
    Numbers,
    Step,
    Texts,
    file_bytes,
    read_file,
)


@dataclass
class PhaseRecord:
    """What ``metrics.jsonl`` says of one phase, in the order of steps."""

    name: str
    start: Start | None = None
    steps: list[StepPoint] = field(default_factory=list)
    evals: list[EvalPoint] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    skipped: list[SkippedPoint] = field(default_factory=list)
    end: End | None = None

    def add(self, line: Line) -> None:
        """Append a line; one of a kind that is not known here is passed over."""
        match line:
            case Start():
                self.start = line
            case StepPoint():
                self.steps.append(line)
            case EvalPoint():
                self.evals.append(line)
            case Warned():
                self.warnings.append(line)
            case SkippedPoint():
                self.skipped.append(line)
            case End():
                self.end = line

    @property
    def last_step(self) -> int:
        """The last step of which there is a record."""
        return max([*(p.step for p in self.steps), *(p.step for p in self.evals)], default=0)

    @property
    def first_loss(self) -> Mapping[str, float]:
        """Domain -> loss before the first step; empty where it was not evaluated then.

        Of pruning it is that of the source: all masks are within 1% of one.
        """
        return self.evals[0].loss if self.evals and self.evals[0].step == 0 else {}

    @property
    def mean_ratio(self) -> dict[str, float]:
        """Domain -> its mean share of the training data so far; empty where not known."""
        data = self.evals[-1].data if self.evals else {}
        total = sum(data.values())
        return {name: steps / total for name, steps in data.items()} if 0 < total < math.inf else {}

    @property
    def total_steps(self) -> int | None:
        """The steps that the phase was to have, or None where its start was not recorded."""
        return self.start.total_steps if self.start else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the phase as logged at its end, else from first to last record."""
        if self.end is not None and not math.isnan(self.end.total_seconds):
            return self.end.total_seconds
        points: list[Line] = [*self.steps, *self.evals, *([self.start] if self.start else [])]
        times = [point.time for point in points if not math.isnan(point.time)]
        return max(times) - min(times) if times else 0.0


# The other files.


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters of a model: in all, in the input and output matrices, and the rest."""

    total: int
    embedding: int
    other: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The perplexity of one model on the domains (``evaluation/NAME.json``).

    Attributes:
        name: `source`, `pruned` or `model`; another for a model from elsewhere.
        label: Name for people.
        path: The model.
        parameters: How large it is.
        loss: Domain -> nats per token.
        perplexity: Domain -> exp of the loss.
        average_perplexity: exp of the mean of the losses.
        worst_domain: Where the loss is largest; None where one is not finite.
        blocks: Domain -> validation blocks.
        sequence_length: Tokens of a block.
        validation: Domain -> digest of its validation blocks; empty where not known.
        block_loss: Domain -> nats per token of each validation block, in their order; empty where
            not known, as in all that follows.
        interval: Domain -> 95% bootstrap interval of its loss, in nats per token.
        average_interval: That of the mean of the losses over domains; None where not known.
        bytes: Domain -> bytes of UTF-8 text that the scored tokens stand for.
        bits_per_byte: Domain -> bits per byte of that text.
        bits_per_byte_interval: Domain -> its 95% bootstrap interval.
        precision: `fp32` or `bf16`; empty where not known.
        fingerprint: Digest of the model's files; empty where not known.
        note: What a reader must know of these numbers; may be empty.
    """

    name: str
    label: str
    path: str | None
    parameters: ParameterCounts
    loss: Numbers
    perplexity: Numbers
    average_perplexity: Number
    worst_domain: str | None
    blocks: Numbers
    sequence_length: int
    validation: Texts = field(default_factory=Unknown)
    block_loss: NumberLists = field(default_factory=Unknown)
    interval: Intervals = field(default_factory=Unknown)
    average_interval: Interval | None = None
    bytes: Numbers = field(default_factory=Unknown)
    bits_per_byte: Numbers = field(default_factory=Unknown)
    bits_per_byte_interval: Intervals = field(default_factory=Unknown)
    precision: str = ""
    fingerprint: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SimilarityPoint:
    """Agreement of the plan at a step with the final plan, per granularity (Appendix B.1)."""

    step: Step
    similarity: Numbers


@dataclass(frozen=True, kw_only=True)
class _Similarity:
    """``prune/similarity.json``."""

    rows: list[SimilarityPoint]


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
        tasks: Scores on tasks, the latest last.
        tokenizer: Digest of the tokenizer that the data were prepared with; empty if not known.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    similarity: list[SimilarityPoint] = field(default_factory=list)
    plan: PruningPlan | None = None
    tasks: list[TaskResult] = field(default_factory=list)
    tokenizer: str = ""

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
        parts = (self.evaluations, self.tasks, self.similarity, self.plan)
        return not has_points and not any(parts)

    @property
    def initial_ratio(self) -> dict[str, float]:
        """The recipe's share per domain that is trained on; empty unless every domain has one."""
        domains = section(self.recipe, "data", "domains")
        shares = {str(k): v.get("share") for k, v in domains.items() if isinstance(v, Mapping)}
        if len(shares) < len(domains) or not all(map(is_number, shares.values())):
            return {}
        return {name: float(share) for name, share in shares.items() if share}

    @property
    def untrained(self) -> list[str]:
        """The recipe's domains of share 0, which are evaluated and never trained on."""
        domains = section(self.recipe, "data", "domains")
        return [str(name) for name, d in domains.items() if section(d).get("share") == 0]

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
    run.evaluations = _read_evaluations(files)
    run.tasks = read_task_results(files.task_results)
    similarity = read_file(_Similarity, files.similarity)
    run.similarity = similarity.rows if similarity else []
    run.plan = PruningPlan.load(files.plan) if files.plan.is_file() else None
    prepared = section(run.recipe, "data").get("prepared")
    run.tokenizer = _tokenizer(_read_path(prepared) if prepared else files.data)
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
    text, recipe = read_recipe(RunFolder(folder).recipe)
    phases = _read_metrics(RunFolder(folder).metrics)
    return RunRecord(folder=folder, recipe=recipe, recipe_text=text, phases=phases)


def load_evaluation(file: Path) -> Evaluation | None:
    """Read one ``evaluation/NAME.json``; None where there is none.

    Raises:
        BadInput: It is not what ``docs/run-folder.md`` says.
    """
    found = read_file(Evaluation, file)
    if found is not None and found.worst_domain not in {None, *found.perplexity}:
        raise BadInput(
            f"{file}: field 'worst_domain' must be one of the domains in 'perplexity', found "
            f"{found.worst_domain!r}"
        )
    return found


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation to a file; an earlier one is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, dumps(record_fields(evaluation), indent=1))


def read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a recipe.yaml as it is written, and as plain values; both empty where there is none.

    Raises:
        BadInput: It is not YAML, or not a mapping.
    """
    if not path.is_file():
        return "", {}
    text = file_bytes(path).decode(encoding="utf-8", errors="replace")
    recipe = parse_yaml(text, str(path))
    if not isinstance(recipe, dict):
        raise BadInput(f"{path}: expected a mapping with the recipe's fields at the top.")
    return text, recipe


def _read_metrics(path: Path) -> dict[str, PhaseRecord]:
    phases: dict[str, PhaseRecord] = {}
    for line in read_lines(path) if path.is_file() else ():
        phases.setdefault(line.phase, PhaseRecord(line.phase)).add(line)
    return phases


def _read_path(written: object) -> Path:
    """A path of a recipe file; as it is written where it is of another place's variables."""
    try:
        return Path(expand_path(str(written)))
    except ValueError:
        return Path(str(written))


def _tokenizer(data: Path) -> str:
    """From the manifest of prepared data, which may have been removed since."""
    try:
        manifest = parse_json((data / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return ""
    found = section(manifest, "identity").get("tokenizer")
    return found if isinstance(found, str) else ""


def _read_evaluations(files: RunFolder) -> dict[str, Evaluation]:
    read = {file.stem: load_evaluation(file) for file in files.evaluation_files()}
    found = {name: evaluation for name, evaluation in read.items() if evaluation is not None}
    known = [name for name in _MODEL_ORDER if name in found]
    return {name: found[name] for name in [*known, *(n for n in found if n not in known)]}
