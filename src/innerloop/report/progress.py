"""Progress bars with loss and time left, for anything that takes longer than two seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from innerloop.runs import Progress as RunProgress

_PARTS = ("trained ", "analyse: ")
"""How the lines begin that `Bars` prints off a terminal, one per finished run and per stage."""


@contextmanager
def progress_bars(console: Console) -> Iterator["Bars"]:
    """Shows bars while the body runs; on something that is no terminal, only a line per finished part."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress, console)


class Bars:
    """Bars for training runs and for the stages of an analysis."""

    def __init__(self, progress: Progress, console: Console):
        self._progress = progress
        self._console = console

    def training(self, label: str, num_steps: int) -> Callable[[RunProgress], None]:
        """A bar for one run; returns what `innerloop.runs.obtain_run` reports to."""
        bar = self._progress.add_task(f"train {label}", total=num_steps, detail="")

        def report(progress: RunProgress) -> None:
            detail = "another process trains it; waiting" if progress.is_waiting else f"loss {progress.loss:.4f}"
            self._progress.update(bar, completed=progress.step, detail=detail)
            if progress.step == num_steps and not self._console.is_terminal:
                self._console.print(f"trained {label}: held-out loss {progress.loss:.4f}")

        return report

    def stages(self, label: str, names: tuple[str, ...]) -> Callable[[str], None]:
        """A bar that moves on when the next stage is announced; the last stage ends with the bars."""
        bar = self._progress.add_task(label, total=len(names), detail="")

        def stage(name: str) -> None:
            done = names.index(name)
            self._progress.update(bar, completed=done, detail=name)
            if not self._console.is_terminal:
                self._console.print(f"{label}: {name} ({done + 1} of {len(names)})")

        return stage


@contextmanager
def several_bars(console: Console, seconds: float) -> Iterator["SeveralBars"]:
    """One bar over several experiments while the body runs; off a terminal, a line when one starts and when it ends.

    Args:
        console: where to.
        seconds: that all of them will take, roughly; only their proportions matter.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    disabled = not console.is_terminal
    with Progress(*columns, console=console, disable=disabled, speed_estimate_period=3600) as progress:
        yield SeveralBars(progress, console, progress.add_task("all", total=seconds, detail=""))


class SeveralBars:
    """A bar for each experiment that runs, by the lines that its process prints, and one for all."""

    def __init__(self, progress: Progress, console: Console, whole: TaskID):
        self._progress = progress
        self._console = console
        self._whole = whole
        self._bars: dict[str, tuple[TaskID, float]] = {}

    def experiment(self, name: str, seconds: float, num_parts: int) -> Callable[[str], None]:
        """A bar for one experiment; returns what its lines are to be given to.

        Args:
            name: of the experiment.
            seconds: its share of the seconds of all.
            num_parts: how many runs and stages will report at most, and one for the end.
        """
        bar = self._progress.add_task(name, total=num_parts, detail="")
        self._bars[name] = bar, seconds
        if not self._console.is_terminal:
            self._console.print(f"{name}: started", highlight=False)

        def on_line(line: str) -> None:
            if not line:
                return
            is_part = line.startswith(_PARTS)
            self._progress.update(bar, advance=int(is_part), detail=escape(line[:60]))
            self._progress.update(self._whole, advance=is_part * seconds / num_parts)

        return on_line

    def end(self, name: str, line: str) -> None:
        """Replaces an experiment's bar by a line on what came of it."""
        bar, seconds = self._bars.pop(name)
        task = next(task for task in self._progress.tasks if task.id == bar)
        self._progress.update(self._whole, advance=seconds * (1 - task.completed / (task.total or 1)))
        self._progress.remove_task(bar)
        self._console.print(line, highlight=False, markup=False)
