"""Where a loss curve lingers and where it drops (Fig 15).

Progress is the share of the way from the first loss to a target loss, here gradient descent's, that has been covered:

    progress(t) = (loss(0) - loss(t)) / (loss(0) - target)

- The *drop* is the step at which progress first reaches one half, interpolated between measurements.
- The *plateau* is the longest stretch of measurements up to the drop (or to the end, where there is none) along which
  progress stays within a band of .05.
- The drop has *arrived* when progress first reaches .9.

    >>> steps = np.arange(0, 700, 100)
    >>> find_drop(steps, np.array([1.0, 0.9, 0.89, 0.88, 0.88, 0.08, 0.01]), target=0.0)
    Drop(step=447.5, arrived=497.5, plateau_begin=100.0, plateau_end=400.0)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

HALF_WAY, ARRIVED = 0.5, 0.9
BAND = 0.05


class Drop(NamedTuple):
    """What a loss curve does; all in training steps.

    Attributes:
        step: where progress reaches one half; NaN for a curve that never gets there.
        arrived: where progress reaches .9; NaN likewise.
        plateau_begin: first measurement of the longest plateau.
        plateau_end: its last one.
    """

    step: float
    arrived: float
    plateau_begin: float
    plateau_end: float

    @property
    def plateau_length(self) -> float:
        """Steps between the plateau's ends."""
        return self.plateau_end - self.plateau_begin


def find_drop(
    steps: Int[np.ndarray, " measurements"], losses: Float[np.ndarray, " measurements"], *, target: float
) -> Drop:
    """Finds the plateau and the drop of one loss curve.

    Args:
        steps: at which the loss was measured, increasing.
        losses: measured; a curve that stops being finite has no drop from there on.
        target: the loss that progress is measured towards, below the first one.

    Raises:
        ValueError: if the first loss is not above the target.
    """
    if not losses[0] > target:
        raise ValueError(f"target must be below the first loss, got {target!r} and {losses[0]!r}; there is no way down")
    progress = (losses[0] - losses) / (losses[0] - target)
    drop = _first_crossing(steps, progress, HALF_WAY)
    is_before = np.isfinite(progress) & (np.isnan(drop) | (steps <= drop))
    begin, end = _longest_in_band(steps[is_before], progress[is_before])
    return Drop(drop, _first_crossing(steps, progress, ARRIVED), begin, end)


def _first_crossing(steps: np.ndarray, progress: np.ndarray, level: float) -> float:
    reached = np.flatnonzero(progress >= level)
    if reached.size == 0:
        return float("nan")
    after = reached[0]  # at least 1, since progress starts at 0
    low, high = progress[after - 1], progress[after]
    return float(steps[after - 1] + (level - low) / (high - low) * (steps[after] - steps[after - 1]))


def _longest_in_band(steps: np.ndarray, progress: np.ndarray) -> tuple[float, float]:
    best = 0.0, 0.0
    for first in range(steps.size):
        highest = np.maximum.accumulate(progress[first:])
        lowest = np.minimum.accumulate(progress[first:])
        last = first + int(np.flatnonzero(highest - lowest <= BAND)[-1])
        if steps[last] - steps[first] > best[1] - best[0]:
            best = float(steps[first]), float(steps[last])
    return best
