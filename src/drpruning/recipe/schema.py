"""What a run is: one strict, frozen description, read from YAML.

Every field has its unit, its allowed values and its default under it; the defaults are those of the
DRPruning paper (ACL 2025). An error names the field and what to write instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from drpruning.common.errors import BadInput
from drpruning.common.files import FOLDER_NAME
from drpruning.recipe.distillation import Distill, default_distillation
from drpruning.recipe.domains import Domain, checked_shares, shares_by_size
from drpruning.recipe.evaluate import Evaluate
from drpruning.recipe.model import ModelSection
from drpruning.recipe.paths import IN_A_FILE, PathText
from drpruning.recipe.phases import PHASES, Phase, Pretrain, Prune
from drpruning.recipe.scheduling import (
    AutoOrigin,
    ReferenceModels,
    ReferenceOrigin,
    Scheduling,
)
from drpruning.recipe.section import (
    Count,
    Fraction,
    PositiveFloat,
    Section,
    first_twin,
)
from drpruning.recipe.yaml_io import dump_yaml

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")
"""Kernels that compute in half precision only."""


def _folder_name(name: str) -> str:
    if not name.strip() or "\0" in name:
        raise ValueError("write the name of a folder")
    return name


FolderName = Annotated[PathText, AfterValidator(_folder_name)]


class Data(Section):
    """The text: domains, block length, validation."""

    normalise_shares: bool = Field(default=False, exclude=True)
    """Divide the shares by their sum, whatever that is; the resolved recipe has the result."""
    smoothing: Fraction | None = None
    """Domains without a share get what the others leave, in proportion to size ** smoothing."""
    domains: dict[str, Domain]
    """Name -> domain."""
    root: PathText | None = None
    """Folder that relative domain sources start from; absent: the current folder."""
    prepared: FolderName | None = None
    """Folder of the tokenized blocks, to share them between runs; absent: OUTPUT/data."""
    sequence_length: Annotated[int, Field(ge=8, le=10**9)] = 4096
    """Tokens per block."""
    validation_blocks: Count = 500
    """Validation blocks per domain, at most."""
    special_tokens: Literal["text", "parse"] = "text"
    """What a special token that is written in a document is: text, or the token that it names."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether documents begin with the BOS token; `auto`: where the tokenizer puts it first."""
    eos: Literal["auto", "always", "never"] = "auto"
    """Whether documents end with the EOS token; `auto`: yes, unless they begin with that token."""
    workers: Count | None = None
    """Processes that tokenize; absent: one per core."""

    @field_validator("domains")
    @classmethod
    def _check_domains(cls, domains: dict[str, Domain], info: ValidationInfo) -> dict[str, Domain]:
        if not domains:
            raise ValueError("name at least one domain")
        for name in domains:
            if not FOLDER_NAME.fullmatch(name) or "manifest" in name:
                raise ValueError(
                    f"the name {name!r} becomes a folder's beside manifest.json: use at most 100 "
                    "letters, digits, '-', '_', '.', and another name"
                )
        if (twin := first_twin(domains)) is not None:
            raise ValueError(f"{twin[0]} and {twin[1]} differ by case alone; rename one of them")
        if not {"normalise_shares", "smoothing"} <= info.data.keys():  # refused already
            return domains
        normalise, smoothing = info.data["normalise_shares"], info.data["smoothing"]
        return checked_shares(domains, normalise=normalise, smoothing=smoothing)

    @property
    def unsized(self) -> list[str]:
        """The domains whose share follows from the size of their text."""
        return [name for name, domain in self.domains.items() if domain.share is None]


class Checkpoint(Section):
    """When training saves its state."""

    every_steps: Count = 200
    """Steps between checkpoints."""
    every_minutes: PositiveFloat | None = None
    """Minutes after the last checkpoint at which one is saved too; absent: by steps only."""
    keep: Count = 2
    """How many of the latest are kept."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this many steps are saved and stay for good; absent: none."""
    accept_changes: bool = False
    """Resume from a checkpoint although the recipe or the prepared data has changed since."""


class Training(Section):
    """How the steps are computed; the results do not depend on micro_batch but for rounding."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    """Seed of the order of the data and of the mask noise."""
    micro_batch: Count = 4
    """Blocks per forward pass and rank."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the forward and backward pass; weights and optimizer are always float32."""
    parallelism: Literal["fsdp2", "ddp"] = "fsdp2"
    """On several ranks: weights, gradients and optimizer in shards, or complete on each rank."""
    rank_timeout: Annotated[float, Field(gt=0, le=10**6)] = 180.0
    """Minutes that ranks wait for one that reads text, saves, exports or hangs."""
    compile: bool = False
    """Compile the model with torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    attention: Attention | None = None
    """Kernel of the attention; absent: what Transformers takes for the model (mostly sdpa)."""
    liger: bool = False
    """Use Liger's fused kernels (package liger-kernel, on a GPU)."""
    skip_limit: Count = 10
    """Steps in a row without a finite loss and gradient norm (all are skipped) that end the run."""
    log_every: Count = 10
    """Steps between two lines of kind `step` in metrics.jsonl."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is saved."""

    @model_validator(mode="after")
    def _attention_takes_the_precision(self) -> Self:
        if self.precision == "fp32" and self.attention in FLASH_ATTENTION:
            raise ValueError(
                f"attention: {self.attention} has no float32 arithmetic; write precision: bf16, "
                "or attention: sdpa"
            )
        return self


class Recipe(Section):
    """A whole run: model, data, scheduling, two phases of which one may be absent, output."""

    model: ModelSection
    data: Data
    scheduling: Scheduling = Scheduling()
    prune: Prune | None = None
    """The pruning phase; absent: no pruning."""
    pretrain: Pretrain | None = None
    """The continued-pretraining phase; absent: only pruning."""
    training: Training = Training()
    evaluate: Evaluate = Evaluate()
    output: FolderName
    """The run folder."""

    @model_validator(mode="before")
    @classmethod
    def _with_default_distillation(cls, values: Any) -> Any:
        """Write out what an absent `distill` stands for, so that a run's recipe.yaml says it."""
        if not isinstance(values, Mapping):
            return values
        written = dict(values)
        for name in PHASES:
            phase = values.get(name)
            phase = dict(phase) if isinstance(phase, Phase) else phase  # one made in code
            if isinstance(phase, Mapping) and phase.get("distill") is None:
                prunes = values.get("prune") is not None
                written[name] = {**phase, "distill": default_distillation(name, prunes=prunes)}
        return written

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.prune is None and self.pretrain is None:
            raise ValueError("name at least one phase: `prune: {steps: ...}` or `pretrain: {...}`")
        if self.prune is not None and not self.model.is_pruned:
            raise ValueError("model.target: needed where there is a prune phase; write the shape")
        if self.prune is None and self.model.is_pruned:
            given = "target" if self.model.targets is None else "targets"
            raise ValueError(
                f"prune: missing although model.{given} is given; write `prune: {{steps: ...}}` "
                f"or leave model.{given} out"
            )
        self._check_teachers()
        self.scheduling.check(self.trained, self.untrained, self._auto_origin)
        return self

    def _check_teachers(self) -> None:
        """Refuse teachers that cannot be, or that leave a domain without one."""
        for phase in self.phases:
            distill = self.distillation(phase)
            if distill is None:
                continue
            if distill.is_self and phase != "prune":
                raise ValueError(
                    f"{phase}.distill.teacher: self is the model under masks, which only prune "
                    "has; name a model, or leave teacher out"
                )
            if self.prune is None and not distill.named:
                raise ValueError(
                    f"{phase}.distill.teacher: missing, as no model is pruned here that could "
                    "teach; name a model, or write distill: none"
                )
            if distill.dtype == "fp32" and self.training.attention in FLASH_ATTENTION:
                raise ValueError(
                    f"{phase}.distill.dtype: training.attention: {self.training.attention} has no "
                    "float32 arithmetic; write dtype: bf16, or attention: sdpa"
                )
            try:
                self.teachers(phase)
            except ValueError as error:
                raise ValueError(f"{phase}.distill.{error}") from None

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of the recipe by name, in their order."""
        both = {"prune": self.prune, "pretrain": self.pretrain}
        return {name: phase for name, phase in both.items() if phase is not None}

    def distillation(self, phase: str) -> Distill | None:
        """How a phase learns from teachers; None where it learns from the text alone."""
        settings = self.phases.get(phase)
        distill = None if settings is None else settings.distill
        return distill if isinstance(distill, Distill) else None

    def teachers(self, phase: str) -> dict[str, dict[str, float]]:
        """The teachers of a phase: model (or `self`) -> domain -> weight; empty without any.

        The weights of a domain that is trained on sum to 1.
        """
        if (distill := self.distillation(phase)) is None:
            return {}
        return distill.weights(self.model.reference, self.trained)

    @property
    def initial_ratio(self) -> dict[str, float]:
        """Initial share of each domain that is trained on; sums to 1.

        Raises:
            BadInput: A share follows from the size of the text, and the text was not looked at.
        """
        if unsized := self.data.unsized:
            raise BadInput(
                f"data.domains.{unsized[0]}.share: follows from the size of its text "
                "(data.smoothing), which is not known before the data are prepared"
            )
        return {name: d.share for name, d in self.data.domains.items() if d.share}

    @property
    def trained(self) -> list[str]:
        """The domains that are trained on."""
        return [name for name, domain in self.data.domains.items() if domain.trained]

    @property
    def untrained(self) -> list[str]:
        """The domains of share 0, which are evaluated and never trained on."""
        return [name for name, domain in self.data.domains.items() if not domain.trained]

    def with_sizes(self, sizes: Mapping[str, float]) -> Self:
        """The recipe with the shares that follow from the size of the text; `shares_by_size`."""
        if self.data.smoothing is None:
            return self
        domains = shares_by_size(self.data.domains, self.data.smoothing, sizes)
        data = self.data.model_copy(update={"domains": domains, "smoothing": None})
        return self.model_copy(update={"data": data})

    @property
    def reference_origin(self) -> ReferenceOrigin | None:
        """Where a phase's first reference losses are from; None where it has none."""
        return self.scheduling.reference_origin(self._auto_origin)

    @property
    def _auto_origin(self) -> AutoOrigin | None:
        """What `scheduling.reference_loss: auto` stands for; None: no reference losses."""
        if self.prune is not None:
            return "source"
        return "models" if len(self.teachers("pretrain")) == 1 else None

    @property
    def reference_models(self) -> ReferenceModels | None:
        """The models whose losses are the reference losses, named for that or as the teacher."""
        if self.reference_origin != "models":
            return None
        if (named := self.scheduling.reference_models) is not None:
            return named
        # Made as it is: the place was read already, and a $ in it is no variable any more.
        return ReferenceModels.model_construct(
            from_model=next(iter(self.teachers("pretrain"))), from_models=None
        )

    @property
    def forecasts(self) -> bool:
        """Whether forecasts are the reference losses from `scheduling.forecast_start` on."""
        return self.scheduling.forecasts(self._auto_origin)

    @property
    def prepared_folder(self) -> Path:
        """The folder of the tokenized blocks."""
        return Path(self.data.prepared) if self.data.prepared else Path(self.output) / "data"

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        return dump_yaml(self.model_dump(mode="json", context=IN_A_FILE))
