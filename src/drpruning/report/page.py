"""One self-contained HTML page from one or several run folders."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_output_file
from drpruning.pruning import PruningPlan
from drpruning.pruning.shapes import PRUNABLE_LABELS
from drpruning.recipe.distillation import SELF
from drpruning.report.comparison import compare_phase
from drpruning.report.decision import (
    LastDecision,
    SkippedUpdates,
    decision_counts,
    last_decision,
    reference_origins,
    skipped_updates,
)
from drpruning.report.drawing import SERIES_DARK, SERIES_LIGHT, style
from drpruning.report.figure_parts import Figure, divergences, series
from drpruning.report.figures import mask_convergence, phase_figures
from drpruning.report.formats import (
    PHASE_TITLES,
    duration,
    factor,
    loss_text,
    percentage,
    ranges,
    signed,
)
from drpruning.report.own_pages import generator, is_page
from drpruning.report.table import format_perplexity, results_table
from drpruning.runs.counterfactuals import ForecastCheck, phase_checks
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import (
    FILES,
    PhaseRecord,
    RunRecord,
    load_run,
    section,
)


@dataclass(frozen=True, kw_only=True)
class RatioRow:
    """One domain from the first evaluation of a phase to its last; NaN is not known.

    A domain of share 0 is only evaluated: it has losses and no share.
    """

    domain: str
    only_evaluated: bool
    initial: float
    ratio: float
    reference_ratio: float
    first_loss: float
    last_loss: float
    reference_loss: float
    last_divergence: float

    @property
    def ratio_factor(self) -> float:
        """By what factor the ratio differs from the initial one."""
        return self.ratio / self.initial if self.initial else math.nan

    @property
    def reference_factor(self) -> float:
        """By what factor the reference ratio differs from the initial one."""
        return self.reference_ratio / self.initial if self.initial else math.nan


@dataclass(frozen=True, kw_only=True)
class PhaseSection:
    """What the page says of one phase of one run."""

    name: str
    title: str
    ident: str
    facts: list[str]
    warnings: list[str]
    ratio_rows: list[RatioRow]
    decision: LastDecision | None
    decision_counts: dict[str, str]
    reference_origins: dict[str, str]
    skipped_updates: list[SkippedUpdates]
    forecast_checks: list[ForecastCheck]
    figures: list[Figure]

    @property
    def has_teacher(self) -> bool:
        """Whether a domain has a divergence from a teacher."""
        return any(math.isfinite(row.last_divergence) for row in self.ratio_rows)

    @property
    def forecast_domains(self) -> list[str]:
        """The domains with a forecast that was compared with the end, in the order of the page."""
        checked = {name for check in self.forecast_checks for name in check.error}
        return [row.domain for row in self.ratio_rows if row.domain in checked]


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What the page says of one run."""

    ident: str
    label: str
    about: str
    phases: list[PhaseSection]
    plan: PruningPlan | None
    convergence: Figure | None
    recipe_text: str
    provenance: list[str]


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side.

    An earlier report in its place is replaced, any other file is not.

    Args:
        folders: Run folders; the first gives the page its title.
        output: The HTML file; ``report.html`` in the first folder where it is None.

    Returns:
        Where the page was written.

    Raises:
        BadInput: A folder is missing, holds nothing to show, or has a file that cannot be read; or
            the page cannot be written.
    """
    if not folders:
        raise BadInput("RUN: a report needs at least one run folder")
    runs = [load_run(folder) for folder in folders]
    for run in runs:
        if run.is_empty:
            raise BadInput(
                f"{run.folder} has nothing to show: no logged step, evaluation or plan in "
                f"{', '.join(FILES)}; name the `output` folder of a recipe"
            )
    option = "report" if output is None else "--output"
    output = RunFolder(runs[0].folder).report if output is None else Path(output)
    check_output_file(output, option, lambda path: is_page(path, "report"))
    page = render_page(runs)
    try:
        atomic_write(output, page)
    except OSError as error:
        raise BadInput(f"{option} {output}: {error.strerror}; name another file") from None
    return output


def render_page(runs: Sequence[RunRecord]) -> str:
    """Return the page as text; see :func:`write_report`."""
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    labels = run_labels(runs)
    table = results_table(runs)
    with style():
        sections = [
            _run_section(run, label, f"run{number}", domains)
            for number, (run, label) in enumerate(zip(runs, labels, strict=True), start=1)
        ]
        named = list(zip(labels, runs, strict=True))
        compared = [
            compared
            for name in dict.fromkeys(name for run in runs for name in run.phases)
            if (compared := compare_phase(name, named)) is not None
        ]
    return render(
        "page.html.j2",
        filters={
            "share": percentage,
            "loss": loss_text,
            "signed": signed,
            "factor": factor,
            "ranges": ranges,
            "perplexity": format_perplexity,
        },
        generator=generator("report"),
        title=_title(runs[0]),
        summary=_summary(runs[0]),
        table=table,
        best=table.best(),
        measured_on=_measured_on(runs),
        comparisons=compared,
        runs=sections,
        dimensions=PRUNABLE_LABELS,
        series_light=SERIES_LIGHT,
        series_dark=SERIES_DARK,
    )


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its folder's, with as many parents as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{run.label} ({number})" for number, run in enumerate(runs, start=1)]


def ratio_rows(run: RunRecord, phase: PhaseRecord) -> list[RatioRow]:
    """Ratios and losses at the start and the end of a phase, as in the paper's Tables 3 and 7.

    The initial ratio is the recipe's; where the folder has no recipe, that of the first evaluation.
    """
    if not phase.evals:
        return []
    first, last = phase.evals[0], phase.evals[-1]
    initial = run.initial_ratio or first.ratio
    known = [*first.loss, *last.loss, *last.ratio]
    return [
        RatioRow(
            domain=name,
            only_evaluated=name in run.untrained,
            initial=initial.get(name, math.nan),
            ratio=last.ratio.get(name, math.nan),
            reference_ratio=last.reference_ratio.get(name, math.nan),
            first_loss=first.loss.get(name, math.nan),
            last_loss=last.loss.get(name, math.nan),
            reference_loss=last.reference_loss.get(name, math.nan),
            last_divergence=_last_divergence(phase, name),
        )
        for name in run.domains
        if name in known
    ]


def _last_divergence(phase: PhaseRecord, domain: str) -> float:
    """The latest of a domain, which has one only where it was trained on; NaN without any."""
    _, known = series(phase.evals, divergences, domain)
    return known[-1] if known else math.nan


def _run_section(run: RunRecord, label: str, ident: str, domains: Sequence[str]) -> RunSection:
    return RunSection(
        ident=ident,
        label=label,
        about=_about(run),
        phases=[
            PhaseSection(
                name=phase.name,
                title=PHASE_TITLES.get(phase.name, phase.name),
                ident=f"{ident}-{phase.name}",
                facts=_facts(phase),
                warnings=_warnings(phase),
                ratio_rows=ratio_rows(run, phase),
                decision=last_decision(phase, domains),
                decision_counts=decision_counts(phase),
                reference_origins=reference_origins(phase, domains),
                skipped_updates=skipped_updates(phase, domains),
                forecast_checks=phase_checks(phase),
                figures=phase_figures(phase, domains, ident),
            )
            for phase in run.phases.values()
        ],
        plan=run.plan,
        convergence=mask_convergence(run, ident),
        recipe_text=run.recipe_text,
        provenance=_provenance(run),
    )


def _source_name(run: RunRecord) -> str:
    source = section(run.recipe, "model").get("source")
    return Path(str(source)).name if source else run.label


def _title(run: RunRecord) -> str:
    target = section(run.recipe, "model", "target")
    shape = [
        f"{label} {size:,}" if label.endswith("size") else f"{size:,} {label}"
        for name, label in PRUNABLE_LABELS.items()
        if (size := target.get(name)) is not None
    ]
    if shape and "prune" in run.recipe:
        return f"{_source_name(run)} pruned to {', '.join(shape)}"
    if "prune" in run.phases or run.plan:
        return f"{_source_name(run)}, pruned"
    if "pretrain" in run.phases:
        return f"{_source_name(run)}, continued pretraining"
    return _source_name(run)


def _summary(run: RunRecord) -> list[str]:
    """What was reached, in sentences; only what the evaluations say."""
    found = run.evaluations
    sentences = []
    if SOURCE in found and (result := found.get(MODEL) or found.get(PRUNED)):
        source, small = found[SOURCE].parameters, result.parameters
        if small != source and source.total and source.other:
            sentences.append(
                f"{source.total:,} parameters became {small.total:,} "
                f"({small.total / source.total:.1%}); outside the embeddings {source.other:,} "
                f"became {small.other:,} ({small.other / source.other:.1%})."
            )
    steps = [
        f"{phase.last_step:,} steps of {PHASE_TITLES.get(name, name).lower()}"
        for name, phase in run.phases.items()
    ]
    if steps:
        more = len(run.untrained)
        domains = len(run.domains) - more
        evaluated = f"; {more} more only evaluated" if more else ""
        sentences.append(f"{' and '.join(steps)} on {domains} domains{evaluated}.")
    return sentences


def _measured_on(runs: Sequence[RunRecord]) -> str:
    """The size of the validation data behind the table of results."""
    evaluations = [evaluation for run in runs for evaluation in run.evaluations.values()]
    blocks = [
        int(count) for e in evaluations for count in e.blocks.values() if math.isfinite(count)
    ]
    lengths = sorted({evaluation.sequence_length for evaluation in evaluations})
    if not blocks:
        return ""
    few, many = min(blocks), max(blocks)
    number = f"{many:,}" if few == many else f"{few:,} to {many:,}"
    tokens = " or ".join(f"{length:,}" for length in lengths)
    return f"Measured on {number} blocks of {tokens} tokens per domain."


def _about(run: RunRecord) -> str:
    policy = section(run.recipe, "scheduling").get("policy")
    where = f"From {run.folder}."
    return f"{where} Data scheduling: {policy}." if policy else where


def _facts(phase: PhaseRecord) -> list[str]:
    """Size, state and cost of a phase."""
    facts = []
    if phase.start:
        start = phase.start
        facts.append(
            f"{start.total_steps:,} steps of {start.global_batch:,} × {start.sequence_length:,} "
            "tokens"
        )
        facts += [_teacher(name, size) for name, size in (start.teachers or {}).items()]
        if phase.end is None:
            facts.append(f"not complete: last record at step {phase.last_step:,}")
        elif phase.end.stopped:
            facts.append(f"ended at step {phase.last_step:,}: {phase.end.stopped}")
    facts.append(f"{len(phase.evals)} evaluations")
    facts.append(f"{duration(phase.seconds)} in all")
    for name, seconds in (
        ("evaluation", [point.evaluation_seconds for point in phase.evals]),
        ("ratio updates", [point.update_seconds for point in phase.evals]),
    ):
        known = [value for value in seconds if math.isfinite(value)]
        if known:
            part = f" ({percentage(sum(known) / phase.seconds)})" if phase.seconds else ""
            facts.append(f"{name} {duration(sum(known))}{part}")
    return facts


def _teacher(model: str, parameters: float) -> str:
    size = f" of {parameters:,.0f} parameters" if math.isfinite(parameters) else ""
    name = "the model itself without its masks" if model == SELF else Path(model).name
    return f"taught by {name}{size}"


def _warnings(phase: PhaseRecord) -> list[str]:
    """Warnings in the order of time; those with the same words are one."""
    alike: dict[str, list[int]] = {}
    for warned in phase.warnings:
        alike.setdefault(warned.message, []).append(warned.step)
    lines = [
        f"Step {steps[0]:,}: {message}."
        if len(steps) == 1
        else f"{len(steps)} times, step {steps[0]:,} to {steps[-1]:,}: {message}."
        for message, steps in alike.items()
    ]
    if phase.skipped:
        steps, count = [skipped.step for skipped in phase.skipped], len(phase.skipped)
        first, last = min(steps), max(steps)
        where = f"step {first:,}" if count == 1 else f"{count} steps, {first:,} to {last:,}"
        lines.append(
            f"Skipped, because loss or gradient norm was not finite: {where}. metrics.jsonl has "
            "their blocks."
        )
    return lines


def _provenance(run: RunRecord) -> list[str]:
    """Versions and commits that the phases were run with, each once."""
    found: dict[str, None] = {}
    for phase in run.phases.values():
        if phase.start:
            start = phase.start
            versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
            commit = f"commit {start.commit}" if start.commit else "commit not known"
            found[f"{versions or 'versions not known'}; {commit}"] = None
    return list(found)


def render(template: str, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """The page that a template makes of these values; a value that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
