"""The lines of ``metrics.jsonl``: training writes the same classes that `read_lines` reads.

Names and order of the fields are those of the file (``docs/run-folder.md``). What is not known is
NaN, an empty mapping or None here and null in the file; what has a default and has that value is
left out of the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json
from drpruning.common.unknown import Unknown, record_fields
from drpruning.runs.typed_json import (
    Blocks,
    Explained,
    Number,
    Numbers,
    OptionalNumber,
    Step,
    Texts,
    as_json,
    file_bytes,
    read_record,
)
from drpruning.scheduling import Decision


@dataclass(frozen=True, kw_only=True)
class Line:
    """What every line has.

    Attributes:
        phase: `prune` or `pretrain`.
        step: Optimizer steps done in this phase.
        time: Seconds since the epoch.
    """

    kind: ClassVar[str]
    phase: str
    step: Step
    time: Number

    def to_json(self) -> dict[str, Any]:
        """The object that stands in the file."""
        return {"kind": self.kind} | record_fields(self)


@dataclass(frozen=True, kw_only=True)
class Start(Line):
    """A phase begins, or is resumed with other settings or data (`accept_changes`).

    Attributes:
        teachers: Model -> parameters of the teachers; None without distillation.
        hardware: What it is trained on, for people; unknown in files of an earlier version.
    """

    kind = "start"
    total_steps: int
    global_batch: int
    sequence_length: int
    parameters: Number
    final_parameters: Number
    versions: Texts
    commit: str | None
    teachers: Numbers | None = None
    hardware: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepPoint(Line):
    """One logged training step; what belongs to pruning is None in continued pretraining.

    Attributes:
        loss: Cross-entropy in nats, with distillation too.
        divergence: KL(teacher || student) in nats; None without distillation.
    """

    kind = "step"
    loss: Number
    divergence: OptionalNumber = None
    lagrangian: OptionalNumber = None
    gradient_norm: Number
    skipped: Number
    learning_rate: Number
    tokens: Number
    tokens_per_second: Number
    sparsity: Numbers | None = None
    target_sparsity: Numbers | None = None
    sparsity_deviation: Numbers | None = None
    expected_parameters: OptionalNumber = None


@dataclass(frozen=True, kw_only=True)
class SkippedPoint(Line):
    """A step that changed nothing, its loss or gradient not being finite."""

    kind = "skip"
    loss: Number
    divergence: OptionalNumber = None
    lagrangian: OptionalNumber = None
    gradient_norm: Number
    blocks: Blocks


@dataclass(frozen=True, kw_only=True)
class EvalPoint(Line):
    """One evaluation and the ratio update that it led to; mappings go from domain to nats or share.

    A domain that is only evaluated (share 0) is in `loss`, where it has a reference loss in
    `reference_loss`, and nowhere else.

    Attributes:
        loss: Validation losses.
        reference_ratio: The one after the update.
        realised_share: Of the segment that has just ended.
        data: Training that each domain has had in this phase, in steps' worth: its realised share
            times the steps under it, added up. Unknown in files of an earlier version.
        used_up: Exhausted domains -> what their `on_exhausted` says.
        parameters: Expected number under the current masks in pruning.
        divergence: Mean KL(teacher || student) in nats of the tokens trained on since the
            evaluation before, of the domains that had any; None without distillation.
    """

    kind = "eval"
    loss: Numbers
    ratio: Numbers
    reference_ratio: Numbers
    reference_loss: Numbers
    forecast: Numbers
    excess: Numbers
    data: Numbers = field(default_factory=Unknown)
    explanation: Explained
    realised_share: Numbers
    epochs: Numbers
    used_up: Texts
    parameters: Number
    evaluation_seconds: Number
    update_seconds: Number
    divergence: Numbers | None = None

    @staticmethod
    def decided(decision: Decision, untrained: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The fields that a decision gives.

        Args:
            decision: Of the domains that are trained on.
            untrained: Reference losses of the others.
        """
        fields = vars(decision) | {
            "reference_loss": {**(decision.reference_loss or {}), **(untrained or {})} or None
        }
        return {name: Unknown() if value is None else value for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class Warned(Line):
    """Something that people should know of."""

    kind = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class End(Line):
    """A phase is complete; `stopped` says why before its last step, if so."""

    kind = "end"
    total_seconds: Number
    tokens: Number
    stopped: str | None


_KINDS: dict[str, type[Line]] = {
    line.kind: line for line in (Start, StepPoint, SkippedPoint, EvalPoint, Warned, End)
}


def read_lines(path: Path) -> Iterator[Line]:
    """Read ``metrics.jsonl``; a last line that was cut off in the middle is left out.

    Lines of a kind that is not known here come as plain `Line`.

    Raises:
        BadInput: A line is not JSON, or lacks something that its kind must have.
    """
    lines = file_bytes(path).split(b"\n")
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            yield parse_line(text, f"{path}, line {number}")
        except BadInput:
            if number < len(lines) or _is_json(text):
                raise
            return  # no newline at its end: the writer was stopped in this line


def parse_line(text: bytes, where: str) -> Line:
    """Read one complete line.

    Args:
        text: The line.
        where: The file, and the line in it, for messages.

    Raises:
        BadInput: It is not JSON, or lacks something that its kind must have.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{where}: not a JSON object ({error}); remove this line") from error
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if isinstance(raw, dict) and not isinstance(kind, str):
        raise BadInput(f"{where}: field 'kind': must be a valid string, found {as_json(kind)}")
    return read_record(_KINDS.get(str(kind), Line), text, where)


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
