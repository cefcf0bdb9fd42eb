"""Running an experiment end to end, its progress bars, its table, its files; time estimates; the self-test."""

from innerloop.report.estimate import Estimate, estimate, notes, text_of
from innerloop.report.progress import Bars, progress_bars
from innerloop.report.reproduce import reproduce
from innerloop.report.several import Outcome, reproduce_several
from innerloop.report.summary import markdown_table, terminal_table, verdict_counts

__all__ = [
    "Bars",
    "Estimate",
    "Outcome",
    "estimate",
    "markdown_table",
    "notes",
    "progress_bars",
    "reproduce",
    "reproduce_several",
    "terminal_table",
    "text_of",
    "verdict_counts",
]
