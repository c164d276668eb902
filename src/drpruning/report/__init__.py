"""From run folders to tables, figures and one HTML page.

Nothing here knows how a run is made: `drpruning.runs` reads what a run folder holds. matplotlib and
jinja2 are imported only when a page is written.
"""

from drpruning.report.page import write_report
from drpruning.report.replay_page import render_replay_page
from drpruning.report.table import render_table_text, results_table

__all__ = ["render_replay_page", "render_table_text", "results_table", "write_report"]
