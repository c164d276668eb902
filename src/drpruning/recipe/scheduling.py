"""The scheduling section of a recipe: the policy, its reference losses, where it starts."""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, field_validator, model_validator

from drpruning.common.policy_settings import DEFAULT_SETTINGS, PAPER_SETTINGS
from drpruning.common.shares import INITIAL_OR_EQUAL, SMALLEST_REFERENCE, initial_or_equal
from drpruning.recipe.paths import PathText
from drpruning.recipe.section import (
    SHARES_TOLERANCE,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    Share,
)

Losses = dict[str, PositiveFloat]
ReferenceWord = Literal["auto", "source", "none"]
FloorWord = Literal["initial_or_equal", "smallest_reference"]
_LOSSES = TypeAdapter(Losses, config={"strict": True})
_SHARE = TypeAdapter(Fraction, config={"strict": True})
_SHARES = TypeAdapter(dict[str, Fraction], config={"strict": True})

DEFAULTS: dict[str, dict[str, Any]] = {
    "drpruning": {**DEFAULT_SETTINGS, "reference_loss": "auto"},
    "naive_dro": {"rho": 0.1, "floor": SMALLEST_REFERENCE},
    "sheared": {"reference_loss": "auto"},
    "constant": {},
    "equal": {},
    "group_dro": {"eta": 0.1},
    "cvar": {"alpha": 0.2},
    "ado": {},
}
"""Policy -> its settings and their defaults, those of its class in `drpruning.scheduling`."""
PAPER: dict[str, Any] = {
    name: value
    for name, value in {**PAPER_SETTINGS, "reference_loss": "none"}.items()
    if name != "transfer"  # of no effect on the paper's forecasts
}
"""What `reference: paper` puts in place of the defaults of drpruning (arXiv 2411.14055)."""
COMPARING = {"drpruning", "naive_dro", "sheared"}
"""The policies that compare losses with reference losses."""
SOURCE_BY_DEFAULT = {name for name, own in DEFAULTS.items() if own.get("reference_loss") == "auto"}
"""The policies that `auto` gives the losses of the model that is pruned, or of the teacher."""

AutoOrigin = Literal["source", "models"]
"""Where reference losses are from by default: the model that is pruned, or the only teacher."""
ReferenceOrigin = Literal["given", "start"] | AutoOrigin
"""Where reference losses are from: numbers or models in the recipe, `start`, the model pruned."""


def defaults_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with their defaults, of the policy that a scheduling section names."""
    policy = values.get("policy", Scheduling.model_fields["policy"].default)
    defaults = DEFAULTS.get(policy, {}) if isinstance(policy, str) else {}
    return defaults | PAPER if policy == "drpruning" and values.get("reference") else defaults


class ReferenceModels(Section):
    """Trained models whose losses on the run's validation blocks give the reference losses."""

    from_model: PathText | None = None
    """A model whose losses are taken as they are: a folder, or a name on the Hub."""
    from_models: list[PathText] | None = None
    """Three or more sizes of a family: a law over their sizes gives the losses at the target's."""

    @field_validator("from_models")
    @classmethod
    def _are_several(cls, models: list[str] | None) -> list[str] | None:
        if models is not None and (len(models) < 3 or len(set(models)) < len(models)):
            raise ValueError("name three or more different sizes of a family")
        return models

    @model_validator(mode="after")
    def _is_one_way(self) -> Self:
        if (self.from_model is None) == (self.from_models is None):
            raise ValueError("write either from_model or from_models")
        return self

    @property
    def models(self) -> list[str]:
        """The models, whichever way they are used."""
        return [self.from_model] if self.from_model is not None else list(self.from_models or [])


def _reference_loss(value: Any) -> Losses | ReferenceModels | str | None:
    """A word, numbers by domain, or models where a `from_...` names some."""
    words = get_args(ReferenceWord)
    if value is None or isinstance(value, ReferenceModels):
        return value
    if isinstance(value, str) and value in words:
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"write {', '.join(words)}, nats by domain, {{from_model: NAME}} or "
            "{from_models: [A, B, C]}"
        )
    named = any(str(k).startswith("from_") and not _is_number(v) for k, v in value.items())
    return ReferenceModels.model_validate(value) if named else _LOSSES.validate_python(value)


def _floor(value: Any) -> float | dict[str, float] | str | None:
    """A share, shares by domain, or a word."""
    if value is None:
        return None
    if isinstance(value, str):
        if value in (INITIAL_OR_EQUAL, SMALLEST_REFERENCE):
            return value
        raise ValueError(
            f"write a share, shares by domain, {INITIAL_OR_EQUAL} or {SMALLEST_REFERENCE}"
        )
    return (
        _SHARES.validate_python(value)
        if isinstance(value, Mapping)
        else (_SHARE.validate_python(value))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Start(Section):
    """Where the schedule starts: what an earlier run has found, as `export-schedule` writes it."""

    ratio: dict[str, Fraction] | None = None
    """First share of each domain, not below `scheduling.floor`; absent: those of `data.domains`."""
    reference_ratio: dict[str, Share] | None = None
    """First reference ratio, within `bound` of the shares of `data.domains`; absent: those."""
    reference_loss: dict[str, NonNegativeFloat] | None = None
    """First reference loss of each domain in nats; absent: that of `scheduling.reference_loss`."""

    @field_validator("ratio", "reference_ratio")
    @classmethod
    def _sums_to_one(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is not None and abs((total := math.fsum(shares.values())) - 1) > SHARES_TOLERANCE:
            raise ValueError(f"the shares sum to {total:.6g}, not 1")
        return shares

    @model_validator(mode="after")
    def _gives_something(self) -> Self:
        if all(value is None for _, value in self):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class Scheduling(Section):
    """How the data ratio moves (paper, sections 2.2, 3.1 to 3.3)."""

    policy: Literal[
        "drpruning", "naive_dro", "sheared", "constant", "equal", "group_dro", "cvar", "ado"
    ] = "drpruning"
    """Which rule gives the next ratio."""
    reference: Literal["paper"] | None = None
    """`paper`: the other settings (drpruning) have the paper's defaults; absent: our own."""
    rho: PositiveFloat | None = None
    """Radius of the ball around the reference ratio (drpruning; naive_dro, where it is 0.1)."""
    tau: NonNegativeFloat | None = None
    """How far the excess of a domain must lie above the mean to double its share, in nats
    (drpruning); 0: differences of any size fill the ball."""
    floor: Annotated[Fraction | dict[str, Fraction] | FloorWord | None, BeforeValidator(_floor)] = (
        None
    )
    """Smallest share: one for all, one for each domain, or a word (drpruning; naive_dro, where it
    is smallest_reference)."""
    relative_floor: Fraction | None = None
    """Smallest part of its reference share that a domain keeps (drpruning)."""
    reference_loss: Annotated[
        Losses | ReferenceModels | ReferenceWord | None, BeforeValidator(_reference_loss)
    ] = None
    """What losses are compared with: a word, nats by domain, or models (drpruning, sheared).
    `auto`: the losses of the model that is pruned, or else of the teacher."""
    loss_weight: Share | None = None
    """Weight of the latest loss in the moving average of losses (drpruning); 1: no average."""
    forecast: Literal["combine", "replace", "never"] | None = None
    """What forecasts do beside other reference losses (drpruning)."""
    forecast_start: Fraction | None = None
    """Share of the steps before the first forecast (drpruning)."""
    forecast_at: Literal["equal", "reference", "present"] | None = None
    """Share of a domain in the rest of training that a forecast assumes (drpruning)."""
    transfer: Fraction | None = None
    """Part of the other domains' data that counts as a domain's own in its forecast (drpruning)."""
    min_quality: Fraction | None = None
    """Smallest quality of a forecast that is used (drpruning); 0: every one is."""
    reference_rule: Literal["minimum", "credible", "latest"] | None = None
    """Which forecast so far is the reference loss (drpruning)."""
    moving_reference: bool | None = None
    """Let the reference ratio follow the ratio (drpruning)."""
    reference_start: Fraction | None = None
    """Share of the steps before the reference ratio moves (drpruning)."""
    delta: Fraction | None = None
    """How far the reference ratio moves at an update (drpruning)."""
    bound: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """The reference ratio stays within 1/bound and bound times the initial one (drpruning)."""
    eta: PositiveFloat | None = None
    """Step size at an evaluation, in 1/nats (group_dro)."""
    alpha: Share | None = None
    """The worst fraction of the data (cvar)."""
    handover: Literal["fresh", "continue"] = "fresh"
    """Continued pretraining starts from the initial ratio, or from what pruning ended with."""
    start: Start | None = None
    """What another run has found (the content of a `drprune export-schedule` file, or its name)."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Write out the settings of the policy that are absent, so that a recipe says them all."""
        if not isinstance(values, Mapping):
            return values
        absent = {n: value for n, value in defaults_of(values).items() if values.get(n) is None}
        return {**values, **absent}

    def check(
        self, trained: Collection[str], untrained: Collection[str], auto: AutoOrigin | None
    ) -> None:
        """Refuse settings that do not fit together, or do not fit the domains.

        Args:
            trained: Domains that are trained on.
            untrained: Domains of share 0, which may have a reference loss and nothing else.
            auto: What `reference_loss: auto` stands for; `source` where a model is pruned.

        Raises:
            ValueError: A mapping names other domains, floors or reference losses contradict one
                another, or the policy could never move the ratio; the field is named.
        """
        self._check_domains(set(trained), set(untrained))
        if isinstance(self.floor, dict) and (total := math.fsum(self.floor.values())) > 1:
            raise ValueError(
                f"scheduling.floor: the floors sum to {total:.6g}, more than 1; lower them"
            )
        given = not self._is_word or self.reference_loss == "source"
        if given and self.started_reference_loss is not None:
            raise ValueError(
                "scheduling.reference_loss: scheduling.start has reference losses too; drop "
                "reference_loss to start from those, or reference_loss in start to use your own"
            )
        self._check_reference_loss(auto)

    @property
    def _is_word(self) -> bool:
        """Whether `reference_loss` is absent or a word, not losses or models."""
        return self.reference_loss is None or isinstance(self.reference_loss, str)

    def _check_reference_loss(self, auto: AutoOrigin | None) -> None:
        """Refuse reference losses that cannot be, and a policy that lacks those it needs."""
        if isinstance(self.reference_loss, str) and self.policy not in COMPARING:
            raise ValueError(
                f"scheduling.reference_loss: the policy {self.policy!r} compares with no reference "
                "loss; leave it out"
            )
        if self.reference_loss == "source" and auto != "source":
            raise ValueError(
                "scheduling.reference_loss: no model is pruned here: 'source' takes the losses of "
                "the model that is pruned; write auto, losses by domain, or {from_model: NAME}"
            )
        if self.reference_origin(auto) is not None:
            return
        if self.policy == "sheared":
            raise ValueError(
                "scheduling.reference_loss: the policy 'sheared' compares with fixed reference "
                "losses; write one for each domain, or from_model or from_models"
            )
        if self.policy == "drpruning" and self.forecast == "never":
            raise ValueError(
                "scheduling.reference_loss: without it and without forecasts the policy "
                "'drpruning' could never move the ratio; write one loss for each domain, or "
                "from_model or from_models, or leave out forecast: never, or write policy: constant"
            )

    def _check_domains(self, trained: set[str], untrained: set[str]) -> None:
        by_domain: dict[str, Any] = {"reference_loss": self.reference_loss, "floor": self.floor}
        if self.start is not None:
            by_domain |= {f"start.{name}": values for name, values in self.start}
        for name, values in by_domain.items():
            optional = untrained if name.endswith("reference_loss") else set()
            if not isinstance(values, dict) or set(values) - optional == trained:
                continue
            if set(values) & set(ReferenceModels.model_fields):
                raise ValueError(
                    f"scheduling.{name}: from_model takes the name of a model, and from_models "
                    "a list of names, not a number"
                )
            if given := sorted(set(values) & untrained - optional):
                raise ValueError(
                    f"scheduling.{name}: {given[0]} has the share 0 in data.domains: it is never "
                    "trained on; leave it out here"
                )
            raise ValueError(
                f"scheduling.{name}: must name exactly the domains {sorted(trained)}, not "
                f"{sorted(values)}"
            )

    def floors(self, ratio: Mapping[str, float]) -> dict[str, float]:
        """The smallest share of each domain around the initial ratio; 0 without a floor."""
        own, relative = self.floor, self.relative_floor or 0.0
        if own == INITIAL_OR_EQUAL:
            own = initial_or_equal(ratio)
        elif not isinstance(own, dict):
            smallest = min(ratio.values()) if own == SMALLEST_REFERENCE else own
            own = dict.fromkeys(ratio, float(smallest or 0))
        return {name: max(own[name], relative * share) for name, share in ratio.items()}

    @property
    def started_reference_loss(self) -> dict[str, float] | None:
        """The reference losses of `start`."""
        return None if self.start is None else self.start.reference_loss

    def reference_origin(self, auto: AutoOrigin | None) -> ReferenceOrigin | None:
        """Where the reference losses at the start of a phase are from; None where there are none.

        Args:
            auto: What `reference_loss: auto` stands for.
        """
        if isinstance(self.reference_loss, dict):
            return "given"
        if self.reference_models is not None:
            return "models"
        if self.started_reference_loss is not None:
            return "start"
        if self.reference_loss == "source":
            return "source"
        return auto if self.reference_loss == "auto" and self.policy in SOURCE_BY_DEFAULT else None

    def forecasts(self, auto: AutoOrigin | None) -> bool:
        """Whether forecasts are the reference losses from `forecast_start` on."""
        if self.policy != "drpruning":
            return False
        alone = self.reference_origin(auto) is None
        return self.forecast == "replace" or (self.forecast == "combine" and alone)

    @property
    def reference_models(self) -> ReferenceModels | None:
        """The models whose losses are the reference losses, where such are named."""
        return self.reference_loss if isinstance(self.reference_loss, ReferenceModels) else None

    def options(self) -> dict[str, Any]:
        """The settings that are given and are not the policy's defaults."""
        words = {"reference_loss"} if self._is_word else set()
        given = self.model_dump(exclude={"policy", "handover", "start", *words}, exclude_none=True)
        defaults = defaults_of(given | {"policy": self.policy})
        return {name: value for name, value in given.items() if defaults.get(name) != value}
