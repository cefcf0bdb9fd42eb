"""The search for a recipe that groks: every candidate on the tuning seed, through the store, as a table.

    python -m innerloop.experiments.grokking.search --out results

writes ``results/grokking/search.md`` and trains into ``results/runs``; what is there already is not trained again.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from innerloop.experiments.grokking.measure import measure_curves, reference_losses
from innerloop.experiments.grokking.setting import CANDIDATES, Candidate
from innerloop.runs import obtain_run
from innerloop.store import ensure_writable, write_atomically

COLUMNS = ("candidate", "idea", "steps", "first", "peak (step)", "lowest after (step)", "end", "end, training tasks")


class Shown(NamedTuple):
    """What a candidate showed on the tuning seed; losses are half squared errors on held-out tasks.

    Attributes:
        candidate: which.
        first: before training.
        peak: at the top of the largest fall; the last loss where nothing falls.
        peak_step: when.
        lowest: at the bottom of that fall.
        lowest_step: when.
        last: in the end.
        last_train: in the end, on the training tasks.
        descent: of one optimal step of gradient descent.
        zero: of predicting zero.
    """

    candidate: Candidate
    first: float
    peak: float
    peak_step: float
    lowest: float
    lowest_step: float
    last: float
    last_train: float
    descent: float
    zero: float


def search(candidates: Iterable[Candidate], store: str | Path) -> list[Shown]:
    """Trains every candidate that the store does not hold yet, and says what it showed.

    Args:
        candidates: recipes of one seed each.
        store: folder of runs.

    Returns:
        One row per candidate, in their order.

    Raises:
        ValueError: if a recipe has several seeds: their curves would need a table each.
    """
    shown = []
    for candidate in candidates:
        if len(candidate.recipe.seeds) != 1:
            raise ValueError(
                f"candidates must have one seed, got {candidate.recipe.seeds} for {candidate.name!r}; name each seed's "
                "recipe apart"
            )
        run = obtain_run(candidate.recipe, store)
        curves = measure_curves(run).isel(seed=0)
        descent, zero = reference_losses(run)
        shown.append(
            Shown(
                candidate,
                first=float(curves["loss"][0]),
                peak=float(curves["peak_loss"]),
                peak_step=float(curves["peak_step"]),
                lowest=float(curves["lowest_loss"]),
                lowest_step=float(curves["lowest_step"]),
                last=float(curves["loss"][-1]),
                last_train=float(curves["train_loss"][-1]),
                descent=descent,
                zero=zero,
            )
        )
    return shown


def table(shown: list[Shown]) -> str:
    """The rows as Markdown."""
    rows = [
        (
            one.candidate.name,
            one.candidate.idea,
            f"{one.candidate.recipe.num_steps}",
            f"{one.first:.3f}",
            f"{one.peak:.3f} ({one.peak_step:.0f})",
            f"{one.lowest:.3f} ({one.lowest_step:.0f})",
            f"{one.last:.3f}",
            f"{one.last_train:.3f}",
        )
        for one in shown
    ]
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(out: Path = Path("results")) -> None:
    """Searches and writes the table.

    Args:
        out: folder for results; runs go to its ``runs``.
    """
    ensure_writable(out / "grokking")
    written = table(search(CANDIDATES, out / "runs"))
    write_atomically(out / "grokking" / "search.md", written.encode())
    print(written)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
