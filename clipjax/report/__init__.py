"""Results as tables, pages and pictures: what `clipjax eval` and `clipjax report` print and write.

write_report("report.html", read_runs(["runs/quickstart"]))
"""

from clipjax.report.figures import training_summary
from clipjax.report.html import write_html
from clipjax.report.page import render_report, write_report
from clipjax.report.run_data import RunData, read_run, read_runs
from clipjax.report.table import format_table

__all__ = [
    "RunData",
    "format_table",
    "read_run",
    "read_runs",
    "render_report",
    "training_summary",
    "write_html",
    "write_report",
]
