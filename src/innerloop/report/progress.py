"""Progress bars with loss and time left, for anything that takes longer than two seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from innerloop.runs import Progress as RunProgress


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
