"""What every policy has in common: the protocol, the decision, domains and state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat, TypeVar

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.common.unknown import Unknown
from drpruning.scheduling.worst_case import FloatArray

Ratio = dict[str, float]
_Value = TypeVar("_Value")

NO_REFERENCE = "it has no reference loss yet"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a policy decided as it did; mappings go from domain name to its value.

    A policy says what it knows: where it says nothing, a mapping is `Unknown`, a number NaN and an
    answer None, and `common.unknown.record_fields` leaves the field out.

    Attributes:
        ratio_updated: Whether the ratio was computed anew.
        unusable: If it was not: what each of these domains lacks.
        loss: The losses that were used, in nats; moving averages where the policy averages.
        forecast_interval: 90% interval (low, high) of the loss at the end of training.
        forecast_quality: How good each forecast is, from 0 (says nothing) to 1.
        forecast_since: First step used, where earlier losses do not lie on one curve with the rest.
        no_forecast: Why there is no forecast.
        refused: Why a forecast was not used.
        reference_ratio_updated: Whether the reference ratio moved after the decision.
        rho: How far the ratio may be from the reference ratio (chi-square divergence).
        divergence: How far it is.
        floor: Smallest share allowed.
        at_floor: Whether the share is no larger than that.
    """

    ratio_updated: bool | None = None
    unusable: Mapping[str, str] = field(default_factory=Unknown)
    loss: Mapping[str, float] = field(default_factory=Unknown)
    forecast_interval: Mapping[str, tuple[float, float]] = field(default_factory=Unknown)
    forecast_quality: Mapping[str, float] = field(default_factory=Unknown)
    forecast_since: Mapping[str, float] = field(default_factory=Unknown)
    no_forecast: Mapping[str, str] = field(default_factory=Unknown)
    refused: Mapping[str, str] = field(default_factory=Unknown)
    reference_ratio_updated: bool | None = None
    rho: float = math.nan
    divergence: float = math.nan
    floor: Mapping[str, float] = field(default_factory=Unknown)
    at_floor: Mapping[str, bool] = field(default_factory=Unknown)

    @property
    def has_limit(self) -> bool:
        """Whether the distance of the ratio from a reference ratio was limited."""
        return math.isfinite(self.rho) and math.isfinite(self.divergence)

    @property
    def limit_reached(self) -> bool:
        """Whether the ratio is as far from the reference ratio as it may be, up to rounding."""
        return self.has_limit and self.divergence >= self.rho * (1 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy decided at one evaluation; mappings go from domain name to number.

    Attributes:
        ratio: Share of each domain in the training that follows; sums to 1.
        reference_ratio: Reference ratio after this update; the initial ratio where a policy has
            no other.
        reference_loss: Reference losses used, in nats, for the domains that have one; None if
            none has.
        forecast: Losses at the end of training as forecast at this evaluation, for the domains
            that have a forecast; None if none was made.
        excess: Loss less reference loss; None if the ratio was not computed from it.
        explanation: Why the ratio is what it is.
    """

    ratio: Ratio
    reference_ratio: Ratio
    reference_loss: Ratio | None
    forecast: Ratio | None
    excess: Ratio | None
    explanation: Explanation


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as a policy sees it: losses [n], NaN where `unusable` (domain -> why)."""

    step: int
    losses: FloatArray
    params: float | None
    unusable: dict[str, str]


class Policy(Protocol):
    """What every policy can do."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the initial ratio."""

    @property
    def ratio(self) -> Ratio:
        """The current share of each domain."""

    def update(
        self, step: int, losses: Mapping[str, float | None], params: float | None = None
    ) -> Decision:
        """Take in one evaluation and set the ratio for the training that follows.

        Args:
            step: Optimizer steps done, never less than at the update before.
            losses: Validation loss of each domain, in nats. One that is absent, None or not
                finite was not measured; the ratio then stays where it is.
            params: Number of parameters of the model as evaluated.

        Raises:
            ValueError: If `losses` names an unknown domain, or `step` goes back.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON values; a policy that loads it decides the same, to the bit."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of this policy with the same domains.

        Raises:
            ValueError: If the state is of another policy, version or set of domains.
        """

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """Start from where another phase ended, given its `state_dict`, of whatever policy.

        Ratio and reference ratio are taken over, and the reference loss, if there is one, becomes
        the initial reference loss. Everything else starts from scratch.

        Raises:
            ValueError: If the state is of another version or set of domains.
        """


class PolicyBase(ABC):
    """Domains, ratio and state of a policy that knows nothing but the losses.

    A subclass gives `name` and `_ratio_from`.
    """

    name = ""
    version = 1

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None = None,
        final_params: float | None = None,
    ) -> None:
        self._domains = tuple(initial_ratio)
        if not self._domains:
            raise BadInput("initial_ratio is empty; give at least one domain")
        if total_steps is not None and not total_steps > 0:
            raise BadInput(f"total_steps must be positive, not {total_steps}")
        if final_params is not None and not (math.isfinite(final_params) and final_params > 0):
            raise BadInput(f"final_params must be positive, not {final_params}")
        ratio = self._array(initial_ratio, "initial_ratio")
        if bad := [d for d, share in zip(self._domains, ratio, strict=True) if not share > 0]:
            raise BadInput(
                f"initial_ratio of {', '.join(bad)} must be positive; leave out a domain that is "
                "only evaluated"
            )
        if not abs(ratio.sum() - 1) <= 1e-6:
            raise BadInput(f"initial_ratio must sum to 1, not {ratio.sum():.9g}")
        self.total_steps = total_steps
        self.final_params = final_params
        self._initial_ratio: FloatArray = ratio / ratio.sum()
        self._ratio: FloatArray = self._initial_ratio
        self._last_step: int | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the initial ratio."""
        return self._domains

    @property
    def ratio(self) -> Ratio:
        """The current share of each domain; sums to 1."""
        return self._named(self._ratio)

    def update(
        self, step: int, losses: Mapping[str, float | None], params: float | None = None
    ) -> Decision:
        """See `Policy.update`."""
        if unknown := [name for name in losses if name not in self._domains]:
            raise BadInput(
                f"losses has unknown domains: {', '.join(unknown)}; "
                f"the domains are {', '.join(self._domains)}; change_domains adds one"
            )
        if step < 0 or (self._last_step is not None and step < self._last_step):
            raise BadInput(f"an update at step {step} cannot follow one at step {self._last_step}")
        self._last_step = int(step)
        values = [losses.get(name) for name in self._domains]
        if wrong := [v for v in values if v is not None and not isinstance(v, SupportsFloat)]:
            raise BadInput(f"losses must be numbers, not {wrong[0]!r}")
        unusable = {
            name: "its loss is missing" if value is None else f"its loss is {value}"
            for name, value in zip(self._domains, values, strict=True)
            if value is None or not math.isfinite(value)
        }
        finite = [v if v is not None and math.isfinite(v) else math.nan for v in values]
        return self._decide(Evaluation(self._last_step, np.array(finite), params, unusable))

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        return {
            "policy": self.name,
            "version": self.version,
            "step": self._last_step,
            "ratio": self.ratio,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        if state.get("policy") != self.name:
            raise BadInput(
                f"the state is of the policy {state.get('policy')!r}, not {self.name!r}; "
                "use continue_from to start from the ratio of another policy"
            )
        self._ratio = self._checked_ratio(state)
        self._last_step = state["step"]

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        self._ratio = self._checked_ratio(state)
        self._last_step = None

    def _decide(self, evaluation: Evaluation) -> Decision:
        if not evaluation.unusable:
            self._ratio = self._ratio_from(evaluation.losses)
        return self._decision(unusable=evaluation.unusable)

    @abstractmethod
    def _ratio_from(self, losses: FloatArray) -> FloatArray:
        """The next ratio [n], from finite losses [n]."""

    def _decision(
        self,
        *,
        unusable: dict[str, str],
        reference_ratio: FloatArray | None = None,
        reference_loss: FloatArray | None = None,
        forecast: FloatArray | None = None,
        excess: FloatArray | None = None,
        **explanation: Any,
    ) -> Decision:
        known = self._initial_ratio if reference_ratio is None else reference_ratio
        return Decision(
            ratio=self.ratio,
            reference_ratio=self._named(known),
            reference_loss=self._known(reference_loss),
            forecast=self._known(forecast),
            excess=self._known(excess),
            explanation=Explanation(ratio_updated=not unusable, unusable=unusable, **explanation),
        )

    def _checked_ratio(self, state: Mapping[str, Any]) -> FloatArray:
        """The ratio [n] of a state, if it is one of a policy with these domains."""
        if state.get("version") != self.version:
            raise BadInput(
                f"the state has version {state.get('version')!r}, this policy {self.version}"
            )
        if lacking := [name for name in ("step", "ratio") if name not in state]:
            raise BadInput(f"the state lacks {', '.join(lacking)}")
        if set(state["ratio"]) != set(self._domains):
            raise BadInput(
                f"the state is of the domains {', '.join(sorted(state['ratio']))}; "
                f"those of this policy are {', '.join(sorted(self._domains))}"
            )
        ratio = self._array(state["ratio"], "ratio")
        if ratio.min() < 0 or not abs(ratio.sum() - 1) <= 1e-6:
            raise BadInput("the state's ratio must be at least 0 everywhere and sum to 1")
        return ratio

    def _array(self, values: Mapping[str, float], name: str) -> FloatArray:
        """Finite values, one for every domain [n]."""
        missing = [d for d in self._domains if d not in values]
        unknown = [d for d in values if d not in self._domains]
        if missing or unknown:
            problem = "lacks the domains" if missing else "has unknown domains"
            raise BadInput(
                f"{name} {problem} {', '.join(missing or unknown)}; "
                f"the domains are {', '.join(self._domains)}"
            )
        array = np.array([values[d] for d in self._domains], dtype=np.float64)
        if not np.all(np.isfinite(array)):
            raise BadInput(f"{name} must be finite for every domain")
        return array

    def _by_domain(self, values: Iterable[_Value]) -> dict[str, _Value]:
        return dict(zip(self._domains, values, strict=True))

    def _named(self, values: FloatArray) -> Ratio:
        return self._by_domain(values.tolist())

    def _known(self, values: FloatArray | None) -> Ratio | None:
        """The values that are not NaN; None if there are none."""
        if values is None:
            return None
        return {d: v for d, v in self._named(values).items() if not math.isnan(v)} or None


class ReferencedPolicy(PolicyBase):
    """Adds a reference loss, NaN where not known, and a reference ratio."""

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None,
        final_params: float | None,
        reference_loss: Mapping[str, float] | None,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        self._reference_ratio = self._initial_ratio
        self._reference_loss: FloatArray = np.full(len(self._domains), np.nan)
        if reference_loss is not None:
            self._reference_loss = self._array(reference_loss, "reference_loss")

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        return super().state_dict() | {
            "reference_ratio": self._named(self._reference_ratio),
            "reference_loss": self._known(self._reference_loss),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        super().load_state_dict(state)
        self._take_reference(state)

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        super().continue_from(state)
        self._take_reference(state)

    def _take_reference(self, state: Mapping[str, Any]) -> None:
        if (ratio := state.get("reference_ratio")) is not None:
            self._reference_ratio = self._array(ratio, "reference_ratio")
        taken = state.get("reference_loss") or {}
        own = self._named(self._reference_loss)
        self._reference_loss = np.array([float(taken.get(d, own[d])) for d in self._domains])

    def _decide(self, evaluation: Evaluation) -> Decision:
        excess = self._follow(evaluation.losses, evaluation.unusable)
        return self._decision(
            unusable=evaluation.unusable,
            reference_ratio=self._reference_ratio,
            reference_loss=self._reference_loss,
            excess=excess,
            **self._explain(),
        )

    def _follow(self, losses: FloatArray, unusable: dict[str, str]) -> FloatArray:
        """Set the ratio from the excess losses [n], which are returned, if all are known.

        Domains without a reference loss are added to `unusable`.
        """
        excess: FloatArray = losses - self._reference_loss
        for name, reference in self._named(self._reference_loss).items():
            if math.isnan(reference):
                unusable.setdefault(name, NO_REFERENCE)
        if not unusable:
            self._ratio = self._ratio_from(excess)
        return excess

    def _explain(self) -> dict[str, Any]:
        """Fields of `Explanation` that this policy adds."""
        return {}
