"""Results as tables, pages and pictures: what `clipjax eval` prints and writes, and the summary of a training run."""

from clipjax.report.figures import training_summary
from clipjax.report.html import write_html
from clipjax.report.table import format_table

__all__ = ["format_table", "training_summary", "write_html"]
