"""The detector of plateaus and drops, on curves whose plateau and drop are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from innerloop.analysis import find_drop
from innerloop.analysis.plateaus import ARRIVED, BAND

STEPS = np.arange(0, 4001, 20)


def sigmoid_curve(centre: float, width: float, *, start=0.43, target=0.21) -> np.ndarray:
    """A loss that starts at ``start`` and falls to the target around ``centre``."""
    fall = 1 / (1 + np.exp(-(STEPS - centre) / width))
    fall = (fall - fall[0]) / (1 - fall[0])
    return start + (target - start) * fall


centres, widths = st.floats(400, 3000), st.floats(15, 60)


@given(centres, widths)
def test_finds_plateau_and_drop_of_a_curve_that_has_both(centre, width):
    drop = find_drop(STEPS, sigmoid_curve(centre, width), target=0.21)
    assert abs(drop.step - centre) < 5
    assert drop.plateau_begin == 0
    # Progress p of the sigmoid is reached at centre + width log(p / (1 - p)); measurements are 20 steps apart.
    assert abs(drop.plateau_end - (centre + width * np.log(BAND / (1 - BAND)))) < 20 + 1
    assert abs(drop.arrived - (centre + width * np.log(ARRIVED / (1 - ARRIVED)))) < 5
    assert drop.plateau_length == drop.plateau_end - drop.plateau_begin


@given(centres, st.floats(0.05, 20), st.floats(-3, 3), st.integers(1, 7))
def test_units_do_not_matter(centre, factor, offset, step_factor):
    """Losses in other units give the same steps; other steps give proportional ones."""
    losses = sigmoid_curve(centre, 40)
    drop = find_drop(STEPS, losses, target=0.21)
    other = find_drop(step_factor * STEPS, factor * losses + offset, target=factor * 0.21 + offset)
    np.testing.assert_allclose(other, step_factor * np.array(drop), rtol=1e-6, atol=1e-6)


@given(centres, st.floats(100, 900))
def test_a_later_drop_is_a_longer_plateau(centre, later):
    one, other = (find_drop(STEPS, sigmoid_curve(value, 30), target=0.21) for value in (centre, centre + later))
    assert abs(other.step - one.step - later) < 5
    assert abs(other.plateau_length - one.plateau_length - later) <= 20


@given(centres, st.floats(0.1, 0.4), st.integers(0, 2**32 - 1))
def test_a_plateau_below_a_first_fall_and_under_noise(centre, first_fall, seed):
    """As in training: the loss falls a little at once, lingers, then drops; the lingering is the plateau."""
    rng = np.random.default_rng(seed)
    losses = sigmoid_curve(centre + 600, 20, start=0.43 - first_fall * 0.22)
    losses[:5] += (0.43 - losses[0]) * np.array([1, 0.8, 0.5, 0.2, 0.1])
    losses[1:] += rng.uniform(-0.002, 0.002, losses.size - 1)  # .02 of the way from top to bottom, peak to peak
    drop = find_drop(STEPS, losses, target=0.21)
    assert 0 < drop.plateau_begin <= 100
    assert abs(drop.plateau_end - (centre + 600)) < 150
    assert drop.step > drop.plateau_end


def test_a_curve_that_never_drops_is_one_plateau():
    drop = find_drop(STEPS, np.full(STEPS.size, 0.42), target=0.21)
    assert np.isnan(drop.step)
    assert np.isnan(drop.arrived)
    assert (drop.plateau_begin, drop.plateau_end) == (0, 4000)


def test_a_curve_that_stops_half_way_has_a_drop_but_does_not_arrive():
    losses = sigmoid_curve(1000, 30, target=0.28)  # two thirds of the way
    drop = find_drop(STEPS, losses, target=0.21)
    assert 1000 < drop.step < 1100
    assert np.isnan(drop.arrived)
    assert drop.plateau_end < 1000  # a stretch after the drop is no plateau


def test_a_straight_line_has_no_plateau_to_speak_of():
    drop = find_drop(STEPS, np.linspace(0.43, 0.21, STEPS.size), target=0.21)
    assert abs(drop.plateau_length - BAND * 4000) <= 20
    np.testing.assert_allclose([drop.step, drop.arrived], [2000, 3600], atol=1)


def test_a_diverged_curve_has_a_plateau_up_to_there():
    losses = np.full(STEPS.size, 0.42)
    losses[50:] = np.nan
    drop = find_drop(STEPS, losses, target=0.21)
    assert np.isnan(drop.step)
    assert drop.plateau_end == 49 * 20


def test_a_target_above_the_start_is_refused():
    with pytest.raises(ValueError, match="target must be below the first loss, got"):
        find_drop(STEPS, np.full(STEPS.size, 0.1), target=0.21)
