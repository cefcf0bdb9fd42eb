"""Running an experiment end to end, its progress bars, its table, its files."""

from innerloop.report.progress import Bars, progress_bars
from innerloop.report.reproduce import reproduce
from innerloop.report.summary import markdown_table, terminal_table, verdict_counts

__all__ = ["Bars", "markdown_table", "progress_bars", "reproduce", "terminal_table", "verdict_counts"]
