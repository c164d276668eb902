"""reference_loss.json: what the models named in a recipe say the losses should be. No torch."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from drpruning.errors import BadInput
from drpruning.json_text import dumps
from drpruning.recipe import ReferenceModels
from drpruning.scheduling import fit_size_law

REFERENCE_LOSS_FILE = "reference_loss.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class MeasuredModel:
    """A model's size (all its parameters) and its loss in nats by domain."""

    path: str
    parameters: int
    loss: dict[str, float]


@dataclass(frozen=True)
class ReferenceLosses:
    """Reference losses and where they are from; see docs/run-folder.md.

    Attributes:
        reference_loss: Domain -> nats.
        models: What was measured, the smallest first.
        law: Domain -> `a`, `b` and `c` of `a / N**b + c`; None where one model's losses are taken.
        parameters: The N at which the law was read off; None without a law.
    """

    reference_loss: dict[str, float]
    models: list[MeasuredModel]
    law: dict[str, dict[str, float]] | None = None
    parameters: int | None = None

    @classmethod
    def of(cls, models: Sequence[MeasuredModel], parameters: int) -> Self:
        """From measured losses: those of a single model, or the law over several sizes.

        Args:
            models: One, or three and more of different sizes, measured on the same domains.
            parameters: The size at which a law is read off.

        Raises:
            BadInput: Two models have the same size, or a domain's loss does not fall with the size.
        """
        if len(models) == 1:
            return cls(models[0].loss, list(models))
        models = sorted(models, key=lambda model: model.parameters)
        _check_fall(models)
        domains = list(models[0].loss)
        losses = [[model.loss[domain] for model in models] for domain in domains]
        try:
            law = fit_size_law([model.parameters for model in models], losses)
        except ValueError as error:
            raise BadInput(f"scheduling.reference_loss.from_models: {error}") from None
        numbers = zip(law.a.tolist(), law.b.tolist(), law.c.tolist(), strict=True)
        return cls(
            reference_loss=dict(zip(domains, law.loss_at(parameters).tolist(), strict=True)),
            models=models,
            law={
                domain: {"a": a, "b": b, "c": c}
                for domain, (a, b, c) in zip(domains, numbers, strict=True)
            },
            parameters=parameters,
        )

    @classmethod
    def read(cls, folder: Path, wanted: ReferenceModels) -> Self:
        """What a run folder holds.

        Args:
            folder: The run folder.
            wanted: What the recipe names; the file must be of these models.

        Raises:
            BadInput: There is no such file, it is damaged, or of other models.
        """
        file = folder / REFERENCE_LOSS_FILE
        if not file.is_file():
            raise BadInput(
                f"scheduling.reference_loss: {', '.join(wanted.models)} not measured yet (no "
                f"{file}); `drprune run` does it before it trains"
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.pop("version") != FORMAT_VERSION:
                raise ValueError
            models = [MeasuredModel(**model) for model in values.pop("models")]
            found = cls(models=models, **values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{file} is not what this program writes; remove it") from None
        if {model.path for model in models} != set(wanted.models):
            raise BadInput(
                f"scheduling.reference_loss: {file} has the losses of "
                f"{', '.join(model.path for model in models)}, not of {', '.join(wanted.models)}"
            )
        return found

    def write(self, folder: Path) -> None:
        """Write the file into a run folder; it appears whole."""
        file = folder / REFERENCE_LOSS_FILE
        temporary = file.with_suffix(".partial")
        temporary.write_text(dumps({"version": FORMAT_VERSION, **asdict(self)}, indent=1))
        temporary.replace(file)


def _check_fall(models: Sequence[MeasuredModel]) -> None:
    """Refuse losses that no law over sizes describes, in words that name domain and models."""
    for small, large in itertools.pairwise(models):
        if small.parameters == large.parameters:
            raise BadInput(
                f"scheduling.reference_loss.from_models: {small.path} and {large.path} both have "
                f"{small.parameters:,} parameters; name models of different sizes"
            )
        for domain, loss in large.loss.items():
            if loss >= small.loss[domain]:
                raise BadInput(
                    f"scheduling.reference_loss.from_models: on {domain} the loss does not fall "
                    f"with the size: {small.loss[domain]:.4f} of {small.path} "
                    f"({small.parameters:,} parameters), {loss:.4f} of {large.path} "
                    f"({large.parameters:,}); name sizes of one family trained alike, or take the "
                    "losses of one model with from_model"
                )
