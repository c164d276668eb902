"""One self-contained HTML page from one or several run folders."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_write, check_output_file
from drpruning.pruning.shapes import PRUNABLE_LABELS
from drpruning.report.comparison import Comparison, compare_phase
from drpruning.report.drawing import SERIES_DARK, SERIES_LIGHT, style
from drpruning.report.exports import check_folder, write_files
from drpruning.report.extra_tables import extra_tables
from drpruning.report.figure_parts import Figure
from drpruning.report.figures import times_source_figure
from drpruning.report.formats import (
    PHASE_TITLES,
    exp_text,
    factor,
    loss_text,
    percentage,
    ranges,
    signed,
)
from drpruning.report.own_pages import generator, is_page
from drpruning.report.results import measured_on, result_columns, times_columns
from drpruning.report.sections import RunSection, run_section
from drpruning.report.table import Table, results_table
from drpruning.report.verdict import runs_verdict, source_name
from drpruning.runs.folder import MODEL, PRUNED, SOURCE, RunFolder
from drpruning.runs.records import FILES, RunRecord, load_run, section


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows; its template writes it, and its figures and tables go to files too."""

    text: str
    figures: list[Figure]


def write_report(
    folders: Sequence[Path],
    output: Path | None = None,
    figures: Path | None = None,
    *,
    png: bool = False,
) -> Path:
    """Write the report of one run, or of several side by side.

    An earlier report in its place is replaced, any other file is not.

    Args:
        folders: Run folders; the first gives the page its title.
        output: The HTML file; ``report.html`` in the first folder where it is None.
        figures: A folder for the figures as SVG and the tables as CSV and LaTeX; None: no such
            files.
        png: Whether the figures are to be there as PNG too.

    Returns:
        Where the page was written.

    Raises:
        BadInput: A folder is missing, holds nothing to show, or has a file that cannot be read; or
            the page cannot be written.
    """
    if png and figures is None:
        raise BadInput("--png: needs a folder for the figures; name one with --figures FOLDER")
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
    if figures is not None:
        check_folder(figures)
    page = render_page(runs)
    try:
        atomic_write(output, page.text)
    except OSError as error:
        raise BadInput(f"{option} {output}: {error.strerror}; name another file") from None
    if figures is not None:
        write_files(figures, page.figures, page.text, png=png)
    return output


def render_page(runs: Sequence[RunRecord]) -> Page:
    """Return the page; see :func:`write_report`."""
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    labels = run_labels(runs)
    table = results_table(runs)
    with style():
        sections = [
            run_section(run, label, f"run{number}", domains)
            for number, (run, label) in enumerate(zip(runs, labels, strict=True), start=1)
        ]
        named = list(zip(labels, runs, strict=True))
        compared = [
            compared
            for name in dict.fromkeys(name for run in runs for name in run.phases)
            if (compared := compare_phase(name, named)) is not None
        ]
        overview = _overview(table, domains, sections)
    text = render(
        "page.html.j2",
        filters={
            "share": percentage,
            "loss": loss_text,
            "exp": exp_text,
            "signed": signed,
            "factor": factor,
            "ranges": ranges,
        },
        generator=generator("report"),
        title=_title(runs[0]) if len(runs) == 1 else _title_of_several(runs),
        verdict=sections[0].verdict if len(runs) == 1 else runs_verdict(table, labels),
        summary=_summary(runs[0]) if len(runs) == 1 else [],
        overview=overview,
        warnings=_warnings(sections),
        table=table,
        columns=result_columns(table),
        times=times_columns(table),
        measured_on=measured_on(runs),
        extra_tables=extra_tables(named, table),
        comparisons=compared,
        runs=sections,
        dimensions=PRUNABLE_LABELS,
        series_light=SERIES_LIGHT,
        series_dark=SERIES_DARK,
    )
    return Page(text=text, figures=_figures(overview, compared, sections))


def _warnings(sections: Sequence[RunSection]) -> list[str]:
    """The warnings of all phases, each with where it is from."""
    several = len(sections) > 1
    return [
        f"{phase.title}{f' ({run.label})' if several else ''}: {line}"
        for run in sections
        for phase in run.phases
        for line in phase.warnings
    ]


def _overview(
    table: Table, domains: Sequence[str], sections: Sequence[RunSection]
) -> Figure | None:
    """The figure of the first screen: over time for one run, at the end for several."""
    if len(sections) == 1:
        return sections[0].figures.overview
    models = {row.model: row.times_source for row in table.rows if row.recovered}
    return times_source_figure("overview", domains, models) if table.summaries else None


def _figures(
    overview: Figure | None, compared: Sequence[Comparison], sections: Sequence[RunSection]
) -> list[Figure]:
    """Every figure of the page once, in its order."""
    found = [overview, *(comparison.figure for comparison in compared)]
    for run in sections:
        drawn = run.figures
        found += [drawn.overview, *drawn.losses, *drawn.ratios, *drawn.forecasts, *drawn.masks]
        found += drawn.training
    return list({figure.ident: figure for figure in found if figure is not None}.values())


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its folder's, with as many parents as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{run.label} ({number})" for number, run in enumerate(runs, start=1)]


def _title(run: RunRecord) -> str:
    target = section(run.recipe, "model", "target")
    shape = [
        f"{label} {size:,}" if label.endswith("size") else f"{size:,} {label}"
        for name, label in PRUNABLE_LABELS.items()
        if (size := target.get(name)) is not None
    ]
    if shape and "prune" in run.recipe:
        return f"{source_name(run)} pruned to {', '.join(shape)}"
    if "prune" in run.phases or run.plan:
        return f"{source_name(run)}, pruned"
    if "pretrain" in run.phases:
        return f"{source_name(run)}, continued pretraining"
    return source_name(run)


def _title_of_several(runs: Sequence[RunRecord]) -> str:
    titles = list(dict.fromkeys(map(_title, runs)))
    return f"{len(runs)} runs: {titles[0]}" if len(titles) == 1 else f"{len(runs)} runs"


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
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    # The page's policy allows this script alone and no request at all, whatever names it shows.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=script, script_digest=digest, **values)
