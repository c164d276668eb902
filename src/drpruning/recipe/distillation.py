"""The setting `distill` of a phase: who teaches the trained model, and by which loss."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from drpruning.recipe.paths import PathText
from drpruning.recipe.section import (
    Count,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Section,
    Share,
)

SELF = "self"
"""The teacher that is the model under masks of one; a folder of that name is `./self`."""
OFF: Literal["none"] = "none"
"""The word in place of the section for a phase without a teacher."""

_WEIGHT = TypeAdapter(NonNegativeFloat, config={"strict": True})
_WEIGHTS = TypeAdapter(dict[str, NonNegativeFloat], config={"strict": True})


def _teacher_weight(value: Any) -> float | dict[str, float]:
    """Read a weight for all domains, or weights by domain."""
    if isinstance(value, Mapping):
        return _WEIGHTS.validate_python(value)
    if isinstance(value, int | float):
        return _WEIGHT.validate_python(value)
    raise ValueError("write a weight, or weights by domain")


TeacherWeight = Annotated[
    NonNegativeFloat | dict[str, NonNegativeFloat], BeforeValidator(_teacher_weight)
]


class Distill(Section):
    """The loss of a phase is a mix of cross-entropy and of the divergence from a teacher."""

    teacher: PathText | None = None
    """A model folder or Hub name, or `self` (prune only); absent: the model that is pruned."""
    teachers: dict[PathText, TeacherWeight] | None = None
    """Several models in place of `teacher`, each with a weight, or with weights by domain."""
    weight: Share = 0.9
    """Weight of the divergence, above 0 and at most 1; the cross-entropy has the rest."""
    final_weight: Fraction | None = None
    """Weight at the end of the phase, approached linearly; absent: `weight` all the time."""
    temperature: PositiveFloat = 1.0
    """What the logits of teacher and student are divided by before the softmax."""
    top_k: Count | None = None
    """How many of the teacher's likeliest tokens are compared, all others as one; absent: the full
    vocabulary."""
    dtype: Literal["bf16", "fp32", "int8"] = "bf16"
    """Type of the teacher's weights; int8: of its linear layers, the rest in bf16."""
    shard: bool | None = None
    """Whether the ranks share the teacher's weights (int8 ones are never shared); absent: as those
    of the trained model (`training.parallelism`)."""
    cache: bool = False
    """Keep the teacher's top tokens of each training block on disk, for when the block comes again;
    needs `top_k`."""

    @field_validator("teachers", mode="wrap")
    @classmethod
    def _are_different(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        teachers = check(value)
        if teachers is None:
            return None
        if not teachers:
            raise ValueError("name at least one model")
        if len(teachers) < len(value):
            raise ValueError("two names stand for one model; write it once")
        if SELF in teachers:
            raise ValueError(
                "self is the model that is trained and teaches alone: write teacher: self "
                "(./self is a folder of that name)"
            )
        return teachers

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.teacher is not None and self.teachers is not None:
            raise ValueError("write either teacher or teachers")
        if self.dtype == "int8" and self.shard:
            raise ValueError(
                "shard: int8 weights are not sharded; leave shard out, or write dtype: bf16"
            )
        if self.cache and self.top_k is None:
            raise ValueError(
                "cache: only the top tokens of the teacher are kept; write top_k, such as 64"
            )
        if self.is_self and self.cache:
            raise ValueError(
                "cache: the teacher self changes at each step; leave cache out, or name a model"
            )
        if self.is_self and (self.dtype != "bf16" or self.shard is not None):
            raise ValueError(
                "the teacher self has no weights of its own; leave dtype and shard out"
            )
        return self

    @property
    def is_self(self) -> bool:
        """Whether the model under masks of one teaches the sampled model."""
        return self.teacher == SELF

    @property
    def named(self) -> list[str]:
        """The models that are named as teachers, folders or names on the Hub."""
        if self.teachers is not None:
            return list(self.teachers)
        return [] if self.teacher is None or self.is_self else [self.teacher]

    def weights(self, pruned: str, domains: Collection[str]) -> dict[str, dict[str, float]]:
        """The teachers, and the weight of each in each domain; they sum to 1 in a domain.

        Args:
            pruned: The model that is pruned, which teaches where no teacher is named.
            domains: Those that are trained on.

        Raises:
            ValueError: Weights are for other domains, a domain has no teacher, or a teacher has no
                domain.
        """
        if self.teachers is None:
            return {pruned if self.teacher is None else self.teacher: dict.fromkeys(domains, 1.0)}
        given = {name: _by_domain(name, w, domains) for name, w in self.teachers.items()}
        if idle := [name for name, own in given.items() if not any(own.values())]:
            raise ValueError(
                f"teachers: {idle[0]} has no weight above 0; give one, or leave it out"
            )
        found: dict[str, dict[str, float]] = {name: {} for name in given}
        for domain in domains:
            # Divided by the largest first: the sum of very large weights would be infinite.
            largest = max(own[domain] for own in given.values())
            if not largest:
                raise ValueError(
                    f"teachers: the domain {domain} has none; give it a weight above 0"
                )
            parts = {name: own[domain] / largest for name, own in given.items()}
            total = sum(parts.values())
            for name, part in parts.items():
                found[name][domain] = part / total
        return found

    def with_places(self, place: Callable[[str], str]) -> Self:
        """The same with each named teacher at another place."""
        one = self.teacher if self.teacher is None or self.is_self else place(self.teacher)
        several = {place(name): weight for name, weight in (self.teachers or {}).items()}
        return self.model_copy(update={"teacher": one, "teachers": several or None})


def _by_domain(
    teacher: str, weight: float | Mapping[str, float], domains: Collection[str]
) -> dict[str, float]:
    if not isinstance(weight, Mapping):
        return dict.fromkeys(domains, weight)
    if unknown := sorted(set(weight) - set(domains)):
        raise ValueError(
            f"teachers: {teacher} has a weight for {unknown[0]}, which is no domain that is "
            f"trained on; choose from {', '.join(sorted(domains))}"
        )
    return {domain: weight.get(domain, 0.0) for domain in domains}


def _distill(value: Any) -> Any:
    if value is None or value == OFF or isinstance(value, Distill):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("write none, or settings such as {weight: 0.9}; {} takes the defaults")
    return Distill.model_validate(value)


DistillSetting = Annotated[Distill | Literal["none"] | None, BeforeValidator(_distill)]
"""What stands in the field: the section, `none`, or nothing."""


def default_distillation(phase: str, *, prunes: bool) -> dict[str, Any] | Literal["none"]:
    """What an absent `distill` stands for: the model that is pruned teaches in the recovery.

    Args:
        phase: `prune` or `pretrain`.
        prunes: Whether the recipe has a pruning phase.
    """
    return {} if phase == "pretrain" and prunes else OFF
