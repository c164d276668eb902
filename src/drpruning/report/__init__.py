"""From the files of run folders to tables, figures and one HTML page.

Nothing here knows how a run is made: the contract is ``docs/run-folder.md``. matplotlib and jinja2
are imported only when a page is written.
"""

from drpruning.report.page import write_report
from drpruning.report.reading import load_evaluation, load_phases, load_run
from drpruning.report.records import EvalPoint, PhaseRecord, RunRecord
from drpruning.report.replay_page import (
    CAVEAT,
    ReplayCurves,
    percent_text,
    points_text,
    render_replay_page,
)
from drpruning.report.table import Row, Table, render_table_text, results_table

__all__ = [
    "CAVEAT",
    "EvalPoint",
    "PhaseRecord",
    "ReplayCurves",
    "Row",
    "RunRecord",
    "Table",
    "load_evaluation",
    "load_phases",
    "load_run",
    "percent_text",
    "points_text",
    "render_replay_page",
    "render_table_text",
    "results_table",
    "write_report",
]
