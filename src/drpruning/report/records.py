"""What the files of a run folder say, as plain objects (``docs/run-folder.md``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
