"""From the files of run folders to tables, figures and one HTML page.

Nothing here knows how a run is made: the contract is ``docs/run-folder.md``. matplotlib and jinja2
are imported only when a page is written.
"""

from drpruning.report.page import write_report
from drpruning.report.reading import load_run
from drpruning.report.records import RunRecord
from drpruning.report.table import Row, Table, render_table_text, results_table

__all__ = [
    "Row",
    "RunRecord",
    "Table",
    "load_run",
    "render_table_text",
    "results_table",
    "write_report",
]
