"""Comparing models and runs by their losses, which must be means over the same validation data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drpruning.report.figure_parts import Figure, finite
from drpruning.report.figures import comparison_figure
from drpruning.report.formats import PHASE_TITLES
from drpruning.runs.records import PhaseRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """What losses were measured on, as far as it is recorded.

    Attributes:
        domains: Those that have a loss.
        blocks: Domain -> validation blocks; empty where not known.
        sequence_length: Tokens of a block; None where not known.
        tokenizer: Digest of the tokenizer; empty where not known.
        digests: Domain -> digest of its validation blocks; empty where not known.
    """

    domains: Sequence[str]
    blocks: Mapping[str, float]
    sequence_length: int | None
    tokenizer: str
    digests: Mapping[str, str]


def common_ground(measured: Sequence[ValidationData]) -> tuple[list[str], list[str]]:
    """What losses can be compared over.

    Returns:
        The domains that all have, in the order of the first, and in what the data differ, in words:
        where that is anything, averages over these domains are of different things.
    """
    names = measured[0].domains if measured else []
    common = [name for name in names if all(name in data.domains for data in measured)]
    differences = []
    lengths = sorted({data.sequence_length for data in measured if data.sequence_length})
    if len(lengths) > 1:
        differences.append(f"sequence length ({', '.join(f'{length:,}' for length in lengths)})")
    if len({data.tokenizer for data in measured if data.tokenizer}) > 1:
        differences.append("tokenizer")
    if other := [name for name in common if len(_block_counts(measured, name)) > 1]:
        differences.append(f"number of validation blocks ({', '.join(other)})")
    if not differences and (other := [n for n in common if len(_digests(measured, n)) > 1]):
        differences.append(f"text ({', '.join(other)})")
    if measured and not common:
        differences.append("domains (none is common to all)")
    return common, differences


def _block_counts(measured: Sequence[ValidationData], domain: str) -> set[float]:
    counts = {data.blocks.get(domain, math.nan) for data in measured}
    return {count for count in counts if math.isfinite(count)}


def _digests(measured: Sequence[ValidationData], domain: str) -> set[str]:
    return {data.digests[domain] for data in measured if domain in data.digests}


@dataclass(frozen=True, kw_only=True)
class LastLosses:
    """What a run has reached in a phase, over the domains that all compared runs have."""

    run: str
    step: int
    average: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs in one phase; without a figure, `note` says why they cannot be compared."""

    ident: str
    title: str
    note: str
    figure: Figure | None
    rows: list[LastLosses]


def compare_phase(name: str, runs: Sequence[tuple[str, RunRecord]]) -> Comparison | None:
    """Compare the losses of runs in a phase; None where not two of them have any.

    Args:
        name: The phase.
        runs: Label and record of each.
    """
    found = [(label, run) for label, run in runs if name in run.phases]
    found = [(label, run) for label, run in found if _measured(run, name).domains]
    if len(found) < 2:
        return None
    title, ident = PHASE_TITLES.get(name, name), f"comparison-{name}"
    data = [_measured(run, name) for _, run in found]
    domains, differences = common_ground(data)
    if differences:
        note = (
            f"The runs are not compared: their validation data differ in {'; '.join(differences)}."
        )
        return Comparison(ident=ident, title=title, note=note, figure=None, rows=[])
    every = {domain for measured in data for domain in measured.domains}
    note = f"Only over the domains common to all runs: {', '.join(domains)}."
    phases = [(label, run.phases[name]) for label, run in found]
    return Comparison(
        ident=ident,
        title=title,
        note=note if len(domains) < len(every) else "",
        figure=comparison_figure(ident, phases, domains),
        rows=[_last_losses(label, phase, domains) for label, phase in phases],
    )


def _measured(run: RunRecord, name: str) -> ValidationData:
    """What the losses of a phase were measured on; without domains if none is known."""
    phase = run.phases[name]
    known = {n for p in phase.evals for n, loss in p.loss.items() if math.isfinite(loss)}
    blocks = {n: count for e in run.evaluations.values() for n, count in e.blocks.items()}
    digests = {n: digest for e in run.evaluations.values() for n, digest in e.validation.items()}
    return ValidationData(
        domains=[domain for domain in run.domains if domain in known],
        blocks=blocks,
        sequence_length=phase.start.sequence_length if phase.start else None,
        tokenizer=run.tokenizer,
        digests=digests,
    )


def _last_losses(label: str, phase: PhaseRecord, domains: Sequence[str]) -> LastLosses:
    """At the last evaluation at which the loss of every domain is known, NaN without one."""
    complete = [p for p in phase.evals if len(finite(_only(p.loss, domains))) == len(domains)]
    if not complete:
        return LastLosses(run=label, step=phase.last_step, average=math.nan, worst=math.nan)
    losses = finite(_only(complete[-1].loss, domains))
    average = sum(loss / len(losses) for loss in losses)
    return LastLosses(run=label, step=complete[-1].step, average=average, worst=max(losses))


def _only(values: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: values.get(name, math.nan) for name in names}
