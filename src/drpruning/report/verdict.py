"""What a run came to, in one sentence: how much smaller, and how far from the source model."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drpruning.recipe.phases import PHASES
from drpruning.report.formats import PHASE_TITLES, format_perplexity, number
from drpruning.report.table import Table, times_source
from drpruning.runs.counterfactuals import geometric_mean
from drpruning.runs.folder import MODEL, PRUNED, SOURCE
from drpruning.runs.records import Evaluation, PhaseRecord, RunRecord, section


def run_verdict(run: RunRecord) -> str:
    """One sentence on a run; of one that is not complete, how far it is."""
    found = run.evaluations
    unfinished = progress(run)
    result = found.get(MODEL) or (None if unfinished else found.get(PRUNED))
    if unfinished or result is None:
        return _without_result(run, unfinished)
    source = found.get(SOURCE)
    made = _made(run, source, result) + _stopped(run.phases)
    if MODEL not in found:
        made += ", as cut and before any recovery"
    if source is None:
        return f"{made}, has {_level(result.perplexity)}."
    distance = _distance(times_source(result.perplexity, source.perplexity))
    return f"{made}, has {distance or _level(result.perplexity)}."


def source_name(run: RunRecord) -> str:
    """The name of the model that the run starts from."""
    source = section(run.recipe, "model").get("source")
    return Path(str(source)).name if source else run.label


def progress(run: RunRecord) -> str:
    """Which phase of the recipe is at what step; empty for a complete run."""
    for name in PHASES:
        phase = run.phases.get(name)
        title = PHASE_TITLES[name].lower()
        if phase is None:
            if name in run.recipe and run.recipe[name] is not None and not _done_before(run, name):
                return f"{title} has not begun"
        elif phase.end is None:
            total = f" of {phase.total_steps:,}" if phase.total_steps else ""
            return f"{title} is at step {phase.last_step:,}{total}"
    return ""


def _done_before(run: RunRecord, name: str) -> bool:
    """Whether the result of a phase without records is in the folder all the same."""
    return (PRUNED if name == "prune" else MODEL) in run.evaluations


def _without_result(run: RunRecord, unfinished: str) -> str:
    phases = [phase for phase in run.phases.values() if phase.evals]
    if not run.phases and not run.evaluations:
        plan = run.plan
        what = "agreement of the masks is known" if plan is None else "plan is known"
        return f"Of the pruning of {source_name(run)} only the {what}; no training is on record."
    if not run.phases:
        count = len(run.evaluations)
        return (
            f"{count} model{'s were' if count > 1 else ' was'} measured; no training is on record."
        )
    begun = f"Not complete: {unfinished}" if unfinished else f"{_trained(run)} is complete"
    if not phases:
        return f"{begun}; nothing was evaluated yet."
    last = phases[-1].evals[-1]
    known = {n: math.exp(v) for n, v in last.loss.items() if abs(v) < 700}
    if not known:
        return f"{begun}; no validation loss is known."
    source = run.evaluations.get(SOURCE)
    base = source.perplexity if source else {}
    level = _distance(times_source(known, base)) or _level(known)
    return f"{begun}; at its last evaluation the model has {level}."


def _trained(run: RunRecord) -> str:
    titles = [PHASE_TITLES.get(name, name).lower() for name in run.phases]
    text = f"{' and '.join(titles)} of {source_name(run)}"
    return text[0].upper() + text[1:]


def _made(run: RunRecord, source: Evaluation | None, result: Evaluation) -> str:
    """What was made, and how much smaller it is."""
    name, size = source_name(run), result.parameters.total
    before = source.parameters.total if source else 0
    if 0 < size < before:
        times = number(before / size)
        return f"{name}, made {times} times smaller ({short(size)} of {short(before)} parameters)"
    trained = "trained further" if "pretrain" in run.phases else "as measured"
    return f"{name} of {short(size)} parameters, {trained}"


def _stopped(phases: Mapping[str, PhaseRecord]) -> str:
    """That training ended before its last step, and why."""
    return "".join(
        f", with {PHASE_TITLES.get(phase.name, phase.name).lower()} ended early at step "
        f"{phase.last_step:,} ({phase.end.stopped})"
        for phase in phases.values()
        if phase.end is not None and phase.end.stopped
    )


def _distance(factors: Mapping[str, float]) -> str:
    """How far perplexities are from the source's, on average and in the worst domain."""
    if not factors:
        return ""
    return _on_average_and_worst(
        factors,
        lambda average: f"{number(average)} times the source's perplexity",
        lambda worst: f"{number(worst)} times",
    )


def _on_average_and_worst(
    values: Mapping[str, float],
    write_average: Callable[[float], str],
    write_worst: Callable[[float], str],
) -> str:
    """The average of the domains and the worst of them, if there are several."""
    average = write_average(geometric_mean(values.values()))
    if len(values) == 1:
        return average
    worst = max(values, key=lambda name: values[name])
    return f"{average} on average and {write_worst(values[worst])} in the worst domain, {worst}"


def _level(perplexities: Mapping[str, float]) -> str:
    known = {name: value for name, value in perplexities.items() if 0 < value < math.inf}
    if not known:
        return "no perplexity that is known"
    return _on_average_and_worst(
        known, lambda average: f"a perplexity of {format_perplexity(average)}", format_perplexity
    )


def short(count: float) -> str:
    """A number of parameters or tokens in three digits and a unit."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:  # what rounds up to a unit is written in it
            return f"{count / unit:.3g}{name}" if count < 1000 * unit else f"{count:.3g}"
    return f"{count:.0f}"


def runs_verdict(table: Table, runs: Sequence[str]) -> str:
    """One sentence on several runs: which ends best, on average and in the worst domain."""
    ends = [row for row in table.rows if row.recovered]
    if not table.summaries:
        return f"{len(runs)} runs that cannot be compared. {table.note}".strip()
    known = [row for row in ends if math.isfinite(row.average)]
    if len(known) < 2:
        found = "none has" if not known else "only one has"
        return f"{len(runs)} runs side by side; {found} a model that was measured at its end."
    # The last two columns are average and worst. Distances from a source say more than levels.
    rows = {row.model: table.times_source(row)[-2:] for row in known}
    text, what = number, " times the source's perplexity"
    if any(math.isnan(value) for values in rows.values() for value in values):
        rows = {row.model: table.values(row)[-2:] for row in known}
        text, what = format_perplexity, " perplexity"
    best, last = (pick(rows, key=lambda name: rows[name][0]) for pick in (min, max))
    least = min(rows, key=lambda name: rows[name][1])
    if text(rows[best][0]) == text(rows[last][0]):
        lead = f"{len(known)} runs end alike on average, at {text(rows[best][0])}{what}"
    else:
        lead = (
            f"Of {len(known)} runs, “{best}” ends best on average, at {text(rows[best][0])}{what} "
            f"(“{last}”: {text(rows[last][0])})"
        )
    return f"{lead}; in the worst domain “{least}” is best, at {text(rows[least][1])}."
