"""What every policy has in common: the protocol, domains, data and state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat, TypeVar

import numpy as np

from drpruning.common.errors import BadInput
from drpruning.scheduling.decision import Decision, Explanation, Ratio
from drpruning.scheduling.reference import GivenLosses, References
from drpruning.scheduling.worst_case import FloatArray

_Value = TypeVar("_Value")

NO_REFERENCE = "it has no reference loss; give it one"
NO_SOURCE_LOSS = "it has no reference loss: the source model's was not measured"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as a policy sees it.

    Attributes:
        step: Optimizer steps done.
        losses: In nats [n]; NaN where unusable.
        params: Number of parameters; None where not known.
        unusable: Domain -> why its loss cannot be used.
        is_first: Whether it is the first of the phase.
    """

    step: int
    losses: FloatArray
    params: float | None
    unusable: dict[str, str]
    is_first: bool


class Policy(Protocol):
    """What every policy can do."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the initial ratio."""

    @property
    def ratio(self) -> Ratio:
        """The current share of each domain."""

    def update(
        self,
        step: int,
        losses: Mapping[str, float | None],
        params: float | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> Decision:
        """Take in one evaluation and set the ratio for the training that follows.

        Args:
            step: Optimizer steps done, never less than at the update before.
            losses: Validation loss of each domain, in nats. One that is absent, None or not
                finite was not measured; the ratio then stays where it is.
            params: Number of parameters of the model as evaluated.
            shares: Share of each domain in the training since the update before, as it really was;
                sums to 1. By default the ratio that was in force.

        Raises:
            ValueError: If `losses` names an unknown domain, `step` goes back, `shares` are not a
                ratio of the policy's domains, or the policy takes the source model's losses as
                reference and the first update is not at step 0. The policy is then unchanged.
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

        Ratio and reference ratio are taken over, and the reference losses, if there are any, become
        the initial ones, with their origin. Everything else starts from scratch, and so does the
        data of each domain.

        Raises:
            ValueError: If the state is of another version or set of domains.
        """


class PolicyBase(ABC):
    """Domains, ratio, data and state of a policy that knows nothing but the losses.

    A subclass gives `name` and `_ratio_from`.
    """

    name = ""
    version = 2  # since 2 a state has the data of each domain

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
        self._ratio_before: FloatArray = self._ratio
        self._data: FloatArray = np.zeros_like(ratio)  # steps' worth of training of each domain
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
        self,
        step: int,
        losses: Mapping[str, float | None],
        params: float | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> Decision:
        """See `Policy.update`."""
        if unknown := [name for name in losses if name not in self._domains]:
            raise BadInput(
                f"losses has unknown domains: {', '.join(unknown)}; "
                f"the domains are {', '.join(self._domains)}; change_domains adds one"
            )
        if step < 0 or (self._last_step is not None and step < self._last_step):
            raise BadInput(f"an update at step {step} cannot follow one at step {self._last_step}")
        values = [losses.get(name) for name in self._domains]
        if wrong := [v for v in values if v is not None and not isinstance(v, SupportsFloat)]:
            raise BadInput(f"losses must be numbers, not {wrong[0]!r}")
        unusable = {
            name: "its loss is missing" if value is None else f"its loss is {value}"
            for name, value in zip(self._domains, values, strict=True)
            if value is None or not math.isfinite(value)
        }
        finite = [v if v is not None and math.isfinite(v) else math.nan for v in values]
        evaluation = Evaluation(
            int(step), np.array(finite), params, unusable, self._last_step is None
        )
        trained = self._ratio if shares is None else self._checked_shares(shares, "shares")
        self._check(evaluation)
        self._data = self._data + trained * (evaluation.step - (self._last_step or 0))
        self._last_step = evaluation.step
        self._ratio_before = self._ratio
        return self._decide(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        return {
            "policy": self.name,
            "version": self.version,
            "step": self._last_step,
            "ratio": self.ratio,
            "data": self._named(self._data),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Policy.load_state_dict`."""
        if state.get("policy") != self.name:
            raise BadInput(
                f"the state is of the policy {state.get('policy')!r}, not {self.name!r}; "
                "use continue_from to start from the ratio of another policy"
            )
        ratio = self._checked_ratio(state)
        if "data" not in state:
            raise BadInput("the state lacks data")
        data = self._array(state["data"], "data")
        if data.min() < 0:
            raise BadInput("the state's data must be at least 0 for every domain")
        self._ratio, self._data, self._last_step = ratio, data, state["step"]

    def continue_from(self, state: Mapping[str, Any]) -> None:
        """See `Policy.continue_from`."""
        self._ratio = self._checked_ratio(state)
        self._data = np.zeros_like(self._ratio)
        self._last_step = None

    def _check(self, evaluation: Evaluation) -> None:  # noqa: B027 - most policies take every one
        """Refuse an evaluation that this policy cannot take, before anything is changed."""

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
            data=self._named(self._data),
            explanation=Explanation(
                ratio_updated=not unusable,
                unusable=unusable,
                churn=float(np.abs(self._ratio - self._ratio_before).sum()),
                **explanation,
            ),
        )

    def _checked_ratio(self, state: Mapping[str, Any]) -> FloatArray:
        """The ratio [n] of a state, if it is one of a policy with these domains."""
        if state.get("version") == 1:
            raise BadInput(
                "the state was written by an earlier version, which did not record the data of "
                "each domain; start the phase again"
            )
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
        return self._checked_shares(state["ratio"], "the state's ratio")

    def _checked_shares(self, shares: Mapping[str, float], name: str) -> FloatArray:
        """The shares [n], if they are a ratio of these domains."""
        array = self._array(shares, name)
        if array.min() < 0 or not abs(array.sum() - 1) <= 1e-6:
            raise BadInput(f"{name} must be at least 0 everywhere and sum to 1")
        return array

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
    """Adds a reference ratio and reference losses: given, or those of the source model.

    With `reference_loss="source"` they are the losses of the first update, which must be at step 0:
    there the model is the source model, as nothing has been removed from it yet. A domain without a
    finite loss there has no reference loss. `continue_from` hands them over, so the phase after
    pruning compares with the source model too.
    """

    def __init__(
        self,
        initial_ratio: Mapping[str, float],
        total_steps: int | None,
        final_params: float | None,
        reference_loss: GivenLosses | None,
    ) -> None:
        super().__init__(initial_ratio, total_steps, final_params)
        self._reference_ratio = self._initial_ratio
        self._references = References(len(self._domains))
        self._from_source = reference_loss == "source"
        if isinstance(reference_loss, str) and not self._from_source:
            raise BadInput(
                f"reference_loss must be losses by domain or 'source', not {reference_loss!r}"
            )
        if isinstance(reference_loss, Mapping):
            self._references.put(self._array(reference_loss, "reference_loss"), "given")

    def state_dict(self) -> dict[str, Any]:
        """See `Policy.state_dict`."""
        return super().state_dict() | {
            "reference_ratio": self._named(self._reference_ratio),
            "reference_loss": self._known(self._references.loss),
            "reference_origin": self._origins(),
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
        """Take over what a state has; losses without an origin count as given by the user."""
        if (ratio := state.get("reference_ratio")) is not None:
            self._reference_ratio = self._array(ratio, "reference_ratio")
        losses = state.get("reference_loss") or {}
        origins = state.get("reference_origin") or {}
        for i, name in enumerate(self._domains):
            if name in losses:
                here = np.arange(len(self._domains)) == i
                loss = np.full(len(self._domains), float(losses[name]))
                self._references.put(loss, origins.get(name, "given"), here)

    def _check(self, evaluation: Evaluation) -> None:
        if self._takes_source(evaluation) and evaluation.step > 0:
            raise BadInput(
                "reference_loss: 'source' takes the losses of the source model from the update at "
                f"step 0, and the first update is at step {evaluation.step}; evaluate before the "
                "first step, or give the losses by domain"
            )

    def _takes_source(self, evaluation: Evaluation) -> bool:
        """Whether this evaluation is that of the source model; no phase before has handed it on."""
        return self._from_source and evaluation.is_first and not self._references.known.any()

    def _decide(self, evaluation: Evaluation) -> Decision:
        self._take_source(evaluation)
        excess = self._follow(evaluation.losses, evaluation.unusable)
        return self._decision(
            unusable=evaluation.unusable,
            reference_ratio=self._reference_ratio,
            reference_loss=self._references.loss,
            excess=excess,
            reference_origin=self._origins(),
            **self._explain(),
        )

    def _take_source(self, evaluation: Evaluation) -> None:
        if self._takes_source(evaluation):
            self._references.put(evaluation.losses, "source", np.isfinite(evaluation.losses))

    def _origins(self) -> dict[str, str]:
        """Where the reference loss of each domain comes from, for those that have one."""
        found = self._by_domain(self._references.origin)
        return {name: origin for name, origin in found.items() if origin is not None}

    def _follow(self, losses: FloatArray, unusable: dict[str, str]) -> FloatArray:
        """Set the ratio from the excess losses [n], which are returned, if all are known.

        Domains without a reference loss are added to `unusable`.
        """
        excess: FloatArray = losses - self._references.loss
        for name, known in self._by_domain(self._references.known.tolist()).items():
            if not known:
                unusable.setdefault(name, self._why_no_reference())
        if not unusable:
            self._ratio = self._ratio_from(excess)
        return excess

    def _why_no_reference(self) -> str:
        """What to say of a domain without a reference loss."""
        return NO_SOURCE_LOSS if self._from_source else NO_REFERENCE

    def _explain(self) -> dict[str, Any]:
        """Fields of `Explanation` that this policy adds."""
        return {}
