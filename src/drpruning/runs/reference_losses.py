"""reference_loss.json: reference losses measured from models, or from the one that is pruned."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, TypeAdapter

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, dumps
from drpruning.recipe import ReferenceModels
from drpruning.runs.folder import SOURCE, RunFolder, may_have_moved
from drpruning.runs.records import load_evaluation, load_phases
from drpruning.scheduling import SizeLaw, fit_size_law
from drpruning.scheduling.size_law import first_rise

FORMAT_VERSION = 1

Losses = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
Constants = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class OfOtherModels(BadInput):
    """The file is in order, and of other models than were asked for."""


@dataclass(frozen=True)
class MeasuredModel:
    """What was measured of one model: its size (all parameters), and its loss in nats by domain."""

    path: str
    parameters: Annotated[int, Field(gt=0)]
    loss: Losses


@dataclass(frozen=True)
class ReferenceLosses:
    """Reference losses, and the measurements they come from; see docs/run-folder.md.

    Attributes:
        models: What was measured, the smallest first.
        reference_loss: Domain -> nats; None where no law over sizes describes what was measured.
        law: Domain -> `a`, `b` and `c` of `a / N**b + c`; None where there is none.
        parameters: The N at which the law was read off; None without a law.
        of_source: Whether they are those of the model that the run, or the chain of runs that it
            belongs to, prunes. They then have every domain with a finite loss, also those of share
            0.
    """

    models: Annotated[list[MeasuredModel], Field(min_length=1)]
    reference_loss: Constants | None = None
    law: dict[str, Constants] | None = None
    parameters: Annotated[int, Field(gt=0)] | None = None
    of_source: bool = False

    @classmethod
    def of_pruned_model(cls, path: str, parameters: int, losses: Mapping[str, float]) -> Self:
        """Make them from the losses of the model that is pruned; those not finite are left out."""
        known = {domain: loss for domain, loss in losses.items() if 0 < loss < math.inf}
        return cls([MeasuredModel(path, parameters, known)], known, of_source=True)

    @classmethod
    def of(cls, models: Sequence[MeasuredModel], parameters: int) -> Self:
        """Make them from measured losses: those of one model, or by a law over several sizes.

        Where a domain's loss does not fall with the size there is no law; `usable` says so.

        Args:
            models: One, or three and more of different sizes, measured on the same domains.
            parameters: The size at which a law is read off.

        Raises:
            BadInput: Two models have the same size.
        """
        models = sorted(models, key=lambda model: model.parameters)
        if len(models) == 1:
            return cls(models, models[0].loss)
        measured = cls(models)
        sizes, losses = measured.points()
        if first_rise(losses) is not None:
            return measured
        try:
            law = fit_size_law(sizes, losses)
        except ValueError as error:
            raise BadInput(f"scheduling.reference_loss.from_models: {error}") from None
        constants = zip(law.a.tolist(), law.b.tolist(), law.c.tolist(), strict=True)
        domains = list(models[0].loss)
        return cls(
            models=models,
            reference_loss=dict(zip(domains, law.loss_at(parameters).tolist(), strict=True)),
            law={
                domain: {"a": a, "b": b, "c": c}
                for domain, (a, b, c) in zip(domains, constants, strict=True)
            },
            parameters=parameters,
        )

    def points(self) -> tuple[list[int], list[list[float]]]:
        """The sizes of the models [k], and their losses [n, k] by domain."""
        sizes = [model.parameters for model in self.models]
        return sizes, [[m.loss[domain] for m in self.models] for domain in self.models[0].loss]

    def largest_miss(self) -> float:
        """How far the law misses a measured loss at most, in nats; 0 without a law."""
        if self.law is None:
            return 0.0
        a, b, c = (np.array([law[name] for law in self.law.values()]) for name in "abc")
        return SizeLaw(a, b, c).largest_miss(*self.points())

    def usable(self) -> dict[str, float]:
        """The reference losses.

        Raises:
            BadInput: There are none: on some domain the loss does not fall with the size.
        """
        if self.reference_loss is not None:
            return self.reference_loss
        row, column = first_rise(self.points()[1]) or (0, 1)
        domain = list(self.models[0].loss)[row]
        small, large = self.models[column - 1 : column + 1]
        raise BadInput(
            f"scheduling.reference_loss.from_models: on {domain} the loss does not fall with the "
            f"size: {small.loss[domain]:.4f} of {small.path} ({small.parameters:,} parameters), "
            f"{large.loss[domain]:.4f} of {large.path} ({large.parameters:,}); name sizes of one "
            "family trained alike, or take the losses of one model with from_model"
        )

    @classmethod
    def read(cls, folder: Path, wanted: ReferenceModels | None, domains: Collection[str]) -> Self:
        """Read the file of a run folder.

        Args:
            folder: The run folder.
            wanted: What the recipe names; the file must be of these models. None: of the model
                that is pruned.
            domains: Those of the recipe; the file must be of them.

        Raises:
            BadInput: There is no such file, it is corrupted, or of other models or domains.
        """
        file = RunFolder(folder).reference_loss
        if not file.is_file():
            raise BadInput(
                f"scheduling.reference_loss: {_named(wanted)}: not measured yet (no {file}); "
                "`drprune run` does it before it trains"
            )
        try:
            text = file.read_bytes()
            if json.loads(text)["version"] != FORMAT_VERSION:
                raise ValueError
            found: Self = TypeAdapter(cls).validate_json(text, strict=True)
            found._check_parts(domains)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(
                f"{file} is not what this program writes for the domains {', '.join(domains)}; "
                "remove it"
            ) from None
        paths = {model.path for model in found.models}
        moved = (
            wanted is not None
            and wanted.from_model is not None
            and all(may_have_moved(path, wanted.from_model, folder) for path in paths)
        )
        others = wanted is not None and paths != set(wanted.models) and not moved
        if found.of_source != (wanted is None) or others:
            measured = "the model that is pruned" if found.of_source else ", ".join(sorted(paths))
            raise OfOtherModels(
                f"scheduling.reference_loss: {file} has the losses of {measured}, not of "
                f"{_named(wanted)}; remove it to measure again"
            )
        return found

    def _check_parts(self, domains: Collection[str]) -> None:
        """Refuse parts that are of other domains, or contradict one another."""
        parts = [m.loss for m in self.models] + [p for p in (self.reference_loss, self.law) if p]
        has_law = len(self.models) > 1 and self.reference_loss is not None
        known = set(self.models[0].loss) if self.of_source else set(domains)
        fits = [
            known <= set(domains) and all(set(part) == known for part in parts),
            (self.law is not None) == (self.parameters is not None) == has_law,
            all(set(constants) == {"a", "b", "c"} for constants in (self.law or {}).values()),
            self.reference_loss is not None or first_rise(self.points()[1]) is not None,
        ]
        if not all(fits):
            raise ValueError

    def write(self, folder: Path) -> None:
        """Write the file into a run folder, complete or not at all."""
        text = dumps({"version": FORMAT_VERSION, **asdict(self)}, indent=1)
        atomic_write(RunFolder(folder).reference_loss, text)


def _named(wanted: ReferenceModels | None) -> str:
    return "the model that is pruned" if wanted is None else ", ".join(wanted.models)


def source_losses(folder: Path, domains: Collection[str]) -> dict[str, float]:
    """Domain -> nats of the model that a run prunes, for the domains where that is known.

    A run that compares with them has measured them before its first phase. For another one, which
    is replayed, they are those of its evaluation of the source, or else of pruning at step 0, where
    masks are within 1% of one.

    Args:
        folder: The run folder; in a chain of targets, of the first one, as the others begin with
            another model.
        domains: All domains of the recipe.

    Raises:
        BadInput: None of these files is there, or one is damaged.
    """
    files = RunFolder(folder)
    if files.reference_loss.is_file():
        with suppress(OfOtherModels):
            return ReferenceLosses.read(folder, None, domains).usable()
    found: Mapping[str, float] = {}
    if (evaluation := load_evaluation(files.evaluation(SOURCE))) is not None:
        found = evaluation.loss
    elif files.metrics.is_file():
        pruning = load_phases(folder).phases.get("prune")
        found = {} if pruning is None else pruning.first_loss
    known = {name: loss for name, loss in found.items() if 0 < loss < math.inf}
    if not known:
        ReferenceLosses.read(folder, None, domains)  # says what is missing
    return known
