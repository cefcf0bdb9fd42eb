"""Where a loss curve rises and then falls: grokking, told from overfitting and from plain learning (Fig 15 right).

The *fall* is the largest one that the curve has: of all pairs of measurements, the later one below the earlier, the two
with the largest difference. Its top is the *peak*, its bottom the *lowest* loss after it. How far the curve rose is how
far the peak lies above the first loss. So

- a curve that only falls, and one that falls first and overfits then, have their peak at the start: no rise;
- a curve that only rises has no fall: the peak is its last measurement, and so is the lowest loss after it;
- a curve that rises far and falls later has its peak where the eye sees it.

    >>> find_rise_and_fall(np.arange(0, 500, 100), np.array([0.4, 0.5, 0.9, 0.3, 0.2]))
    RiseAndFall(first=0.4, peak_step=200.0, peak=0.9, lowest_step=400.0, lowest=0.2)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class RiseAndFall(NamedTuple):
    """The largest fall of a loss curve, and where it began; losses in the curve's own unit.

    Attributes:
        first: the first loss.
        peak_step: training steps at the fall's top.
        peak: the loss there.
        lowest_step: training steps at its bottom.
        lowest: the loss there.
    """

    first: float
    peak_step: float
    peak: float
    lowest_step: float
    lowest: float

    @property
    def rise(self) -> float:
        """The peak relative to the first loss: 1 for a curve that does not rise before it falls."""
        return self.peak / self.first


def find_rise_and_fall(
    steps: Int[np.ndarray, " measurements"], losses: Float[np.ndarray, " measurements"]
) -> RiseAndFall:
    """Finds the largest fall of one loss curve.

    Args:
        steps: at which the loss was measured, increasing.
        losses: measured; from the first one on that is not finite, the curve is left out.

    Raises:
        ValueError: if the first loss is not a positive number.
    """
    if not (np.isfinite(losses[0]) and losses[0] > 0):
        raise ValueError(f"losses must begin with a positive number, got {losses[0]!r}; measure the untrained model")
    end = losses.size if np.isfinite(losses).all() else int(np.argmin(np.isfinite(losses)))
    steps, losses = steps[:end], losses[:end]
    lowest_after = np.minimum.accumulate(losses[::-1])[::-1]
    falls = losses - lowest_after
    # Without any fall, all are 0: the last measurement is then the highest one.
    peak = int(np.argmax(falls)) if falls.max() > 0 else losses.size - 1
    lowest = peak + int(np.argmin(losses[peak:]))
    return RiseAndFall(
        float(losses[0]), float(steps[peak]), float(losses[peak]), float(steps[lowest]), float(losses[lowest])
    )
