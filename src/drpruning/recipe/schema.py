"""What a run is: one strict, frozen description, read from YAML.

Every field has its unit, its allowed values and its default under it; the defaults are those of the
DRPruning paper (ACL 2025). An error names the field and what to write instead.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from drpruning.common.errors import shown
from drpruning.common.files import FOLDER_NAME
from drpruning.recipe.model import ModelSection
from drpruning.recipe.paths import IN_A_FILE, PathText
from drpruning.recipe.phases import Phase, Pretrain, Prune
from drpruning.recipe.scheduling import ReferenceOrigin, Scheduling
from drpruning.recipe.section import (
    SHARES_TOLERANCE,
    Count,
    NonNegativeFloat,
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


class Domain(Section):
    """One data domain: where its text is and what share of the blocks it gets at first."""

    source: PathText
    """A path, glob, folder or address of files of text (see below), or a dataset on the Hub."""
    share: NonNegativeFloat
    """Initial share of the blocks, which all have the same length; they sum to 1; 0: see below."""
    text_field: str = "text"
    """The field or column that holds a document's text."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Keep documents whose (dotted) field has this value, or one of these values."""
    validation: PathText | None = None
    """Source of validation text; absent: held out by document from `source`."""
    split: str = "train"
    """The split of a Hub dataset."""
    config: str | None = None
    """The configuration of a Hub dataset."""
    on_exhausted: Literal["repeat", "redistribute", "stop"] = "repeat"
    """Once exhausted: it starts again, the others get its share, or the phase ends; see below."""

    @field_validator("where")
    @classmethod
    def _plain_values(cls, where: dict[str, Any]) -> dict[str, Any]:
        for field, value in where.items():
            values = value if isinstance(value, list) else [value]
            plain = all(isinstance(v, str | int | float) and v == v for v in values)  # noqa: PLR0124
            if not values or not plain:
                raise ValueError(
                    f"where.{field}: write a text, number or boolean, or a list of these, "
                    f"not {shown(value)}"
                )
        return where


class Data(Section):
    """The text: domains, block length, validation."""

    normalise_shares: bool = Field(default=False, exclude=True)
    """Divide the shares by their sum, whatever that is; the resolved recipe has the result."""
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
    """Whether documents end with the EOS token; `auto`: yes (see below)."""
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
        return _with_shares_of_one(domains, normalise=info.data.get("normalise_shares", True))


def _with_shares_of_one(domains: dict[str, Domain], *, normalise: bool) -> dict[str, Domain]:
    """The domains with shares that sum to 1.

    Shares that do so within the tolerance stay to the bit, so that a resolved recipe, read again,
    is the same recipe.

    Raises:
        ValueError: Every share is 0, or they sum to something else and are not to be normalised.
    """
    largest = max(domain.share for domain in domains.values())
    if not largest:
        raise ValueError("every share is 0; give at least one domain a share above 0")
    # Divided by the largest one first: the sum of very large shares would be infinite.
    parts = {name: domain.share / largest for name, domain in domains.items()}
    total = math.fsum(parts.values())
    if abs(largest * total - 1) <= SHARES_TOLERANCE:
        return domains
    scaled = {name: part / total for name, part in parts.items()}
    if not normalise:
        shares = ", ".join(f"{name}: {share:.6g}" for name, share in scaled.items())
        raise ValueError(
            f"the shares sum to {largest * total:.6g}, not 1; in proportion: {shares}; or write "
            "data.normalise_shares: true, which does that"
        )
    if lost := [name for name, share in scaled.items() if domains[name].share > 0 == share]:
        raise ValueError(
            f"the share of {lost[0]} is too small beside the others to be told from 0, which "
            "means that it is never trained on; write 0 or a larger share"
        )
    return {
        name: domain.model_copy(update={"share": scaled[name]}) for name, domain in domains.items()
    }


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
    output: FolderName
    """The run folder."""

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
        prunes = self.prune is not None
        self.scheduling.check(self.initial_ratio, self.untrained, prunes=prunes)
        return self

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of the recipe by name, in their order."""
        both = {"prune": self.prune, "pretrain": self.pretrain}
        return {name: phase for name, phase in both.items() if phase is not None}

    @property
    def initial_ratio(self) -> dict[str, float]:
        """Initial share of each domain that is trained on; sums to 1."""
        return {name: d.share for name, d in self.data.domains.items() if d.share > 0}

    @property
    def untrained(self) -> list[str]:
        """The domains of share 0, which are evaluated and never trained on."""
        return [name for name, domain in self.data.domains.items() if domain.share == 0]

    @property
    def reference_origin(self) -> ReferenceOrigin | None:
        """Where a phase's first reference losses are from; None where it has none."""
        return self.scheduling.reference_origin(prunes=self.prune is not None)

    @property
    def forecasts(self) -> bool:
        """Whether forecasts give the reference losses from `scheduling.forecast_start` on."""
        return self.scheduling.forecasts(prunes=self.prune is not None)

    @property
    def prepared_folder(self) -> Path:
        """The folder of the tokenized blocks."""
        return Path(self.data.prepared) if self.data.prepared else Path(self.output) / "data"

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        return dump_yaml(self.model_dump(mode="json", context=IN_A_FILE))
