"""Grokking: the detector of rises and falls on curves that are known, and the experiment's recipes and verdicts."""

import dataclasses
from typing import cast
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from helpers import random_weights
from hypothesis import given
from hypothesis import strategies as st

import innerloop.runs
from innerloop.analysis import find_rise_and_fall
from innerloop.experiments.grokking import recipes
from innerloop.experiments.grokking.judge import judge, train_share
from innerloop.experiments.grokking.measure import measure_curves
from innerloop.experiments.grokking.search import COLUMNS, search, table
from innerloop.experiments.grokking.setting import CANDIDATES, CHOSEN, FRESH, MAIN, Candidate, block_recipe
from innerloop.runs import Run

STEPS = np.arange(0, 2001, 20)


def bump(centre: float, width: float, height: float) -> np.ndarray:
    """A loss that rises from .43 by a bell of the given height, and falls to .21 around the bell's centre."""
    bell = height * np.exp(-(((STEPS - centre) / width) ** 2))
    return 0.43 + bell - 0.22 / (1 + np.exp(-(STEPS - centre - 3 * width) / (width / 4)))


@given(st.integers(20, 60), st.floats(60, 120), st.floats(0.2, 3.0))
def test_finds_the_peak_and_the_fall_of_a_curve_that_groks(peak_index, width, height):
    centre = float(STEPS[peak_index])
    found = find_rise_and_fall(STEPS, bump(centre, width, height))
    assert found.peak_step == centre
    assert abs(found.peak - (0.43 + height)) < 1e-4
    assert abs(found.rise - (0.43 + height) / 0.43) < 0.01
    assert found.lowest_step > centre + 3 * width
    assert abs(found.lowest - 0.21) < 1e-3


@given(st.floats(0.1, 5.0), st.floats(0.0, 3.0))
def test_a_curve_that_falls_first_and_overfits_then_has_not_risen(start, later):
    """As in training without grokking: gradient descent's loss at once, then overfitting, even far above the start."""
    losses = 0.2 + start * np.exp(-STEPS / 200) + later * start * np.maximum(STEPS - 1000, 0) / 1000
    found = find_rise_and_fall(STEPS, losses)
    assert (found.peak_step, found.rise) == (0, 1)
    assert found.lowest == losses.min()
    assert found.lowest_step == STEPS[losses.argmin()]


def test_a_curve_that_only_rises_has_no_fall():
    found = find_rise_and_fall(STEPS, np.linspace(0.4, 1.2, STEPS.size))
    assert found.peak == found.lowest == 1.2
    assert found.peak_step == found.lowest_step == STEPS[-1]
    assert found.rise == pytest.approx(3)


@given(st.floats(0.05, 20), st.integers(1, 7))
def test_units_do_not_matter(factor, step_factor):
    one, other = (
        find_rise_and_fall(by * STEPS, scale * bump(700, 80, 0.5)) for by, scale in ((1, 1.0), (step_factor, factor))
    )
    assert other.rise == pytest.approx(one.rise)
    np.testing.assert_allclose(other[1::2], step_factor * np.array(one[1::2]))
    np.testing.assert_allclose(other[::2], factor * np.array(one[::2]))


def test_nothing_counts_after_divergence():
    losses = bump(700, 80, 0.5)
    losses[60:] = np.nan
    losses[90] = 0.01
    found = find_rise_and_fall(STEPS, losses)
    assert found.peak_step == 700
    assert found.lowest == np.nanmin(losses[:60])


@pytest.mark.parametrize("first", [np.nan, 0.0, -1.0])
def test_a_curve_without_a_first_loss_is_refused(first):
    with pytest.raises(ValueError, match="losses must begin with a positive number, got"):
        find_rise_and_fall(STEPS, np.full(STEPS.size, first))


# --- The experiment --------------------------------------------------------------------------------------------------


def curves(fixed, fresh, train, seeds=3) -> xr.Dataset:
    """Measured data of made curves (steps,), the same for all seeds but for a hundredth of a per cent."""
    shift = 1 + 1e-4 * np.arange(seeds)
    parts = []
    for label, losses, on_train in ((MAIN, fixed, train), (FRESH, fresh, fresh)):
        found = [find_rise_and_fall(STEPS, losses * one) for one in shift]
        on_train = np.concatenate([[np.nan], on_train[1:]])  # as recorded: nothing was trained before step 0
        variables = {
            "loss": (("step", "seed"), losses[:, None] * shift),
            "train_loss": (("step", "seed"), on_train[:, None] * shift),
            "smooth_loss": (("step", "seed"), losses[:, None] * shift),
            "smooth_train_loss": (("step", "seed"), on_train[:, None] * shift),
            "peak_step": (("seed",), np.array([one.peak_step for one in found])),
            "peak_loss": (("seed",), np.array([one.peak for one in found])),
            "lowest_loss": (("seed",), np.array([one.lowest for one in found])),
            "diverged_at": (("seed",), np.full(seeds, -1.0)),
        }
        parts.append(xr.Dataset(variables, {"step": STEPS, "seed": np.arange(seeds)}).assign_coords(tasks=label))
    parts[1] = parts[1].isel(seed=slice(1))  # the control has one seed
    data = cast(xr.Dataset, xr.concat(parts, "tasks", join="outer"))
    return data.assign(descent_loss=((), np.asarray(0.21)), zero_loss=((), np.asarray(0.43)))


LEARNS = 0.21 + 0.22 * np.exp(-STEPS / 200)
GROKS = bump(700, 80, 0.5)
MEMORISES = np.maximum(0.43 - 0.43 * STEPS / 700, 0.01)
CASES = {
    "groks": ((GROKS, LEARNS, MEMORISES), {"rises": True, "falls": True, "overfits": True}),
    "diverges and comes back": ((GROKS, LEARNS, GROKS), {"rises": True, "falls": True, "overfits": False}),
    "learns at once": ((LEARNS, LEARNS, LEARNS), {"rises": False, "falls": True, "overfits": False}),
    "starts far off": ((2 * LEARNS - 0.21, LEARNS, LEARNS), {"rises": False, "falls": True, "overfits": False}),
    "overfits for good": (
        (0.43 + STEPS / 2000, LEARNS, MEMORISES), {"rises": True, "falls": False, "overfits": True}
    ),
    "falls half-way": ((np.maximum(GROKS, 0.3), LEARNS, MEMORISES), {"rises": True, "falls": False, "overfits": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdicts_of_known_curves(case):
    (fixed, fresh, train), expected = CASES[case]
    claims = judge(curves(fixed, fresh, train))
    assert {claim.id: claim.verdict == "reproduced" for claim in claims} == expected
    if case == "groks":
        assert {claim.control_verdict for claim in claims} == {"not reproduced"}


def test_training_share_is_of_one_interval():
    """Both losses fall by the same numbers: the mean over an interval is the mean of a straight line's ends."""
    line = 1.0 + STEPS / 2000
    line[-1] = 0.5
    train = np.concatenate([[np.nan], 0.5 * (line[1:] + line[:-1]) / 3])
    np.testing.assert_allclose(train_share(curves(line, line, train), MAIN), 1 / 3, rtol=1e-12)


@pytest.mark.parametrize(("length", "counts"), [(1, False), (2, False), (5, True)])
def test_spikes_are_no_rise(length, counts):
    """Of one or two measurements, where attention starts; what lasts for the whole window counts in full."""
    losses = LEARNS.copy()
    losses[40 : 40 + length] = 5.0
    seeds = np.stack([losses, LEARNS], axis=1)
    variables = {"evaluation_loss": (("step", "seed"), seeds), "train_loss": (("step", "seed"), 2 * seeds)}
    metrics = xr.Dataset(variables | {"diverged_at": (("seed",), np.full(2, -1))}, {"step": STEPS})
    recipe = block_recipe(num_steps=6, widening=2, seeds=(1000, 1001))
    weights = random_weights(recipe.model, recipe.token_size, seed=0)
    measured = measure_curves(Run("made", recipe, metrics, weights, weights, {}, []))
    np.testing.assert_array_equal(measured["loss"], seeds)
    np.testing.assert_array_equal(measured["train_loss"], 2 * seeds)
    np.testing.assert_allclose(measured["peak_loss"][1], LEARNS[:3].mean(), rtol=0.1)
    np.testing.assert_allclose(measured["peak_loss"][0], 5.0 if counts else measured["peak_loss"][1])
    for name, factor in (("smooth_loss", 1), ("smooth_train_loss", 2)):
        assert float(measured[name].max()) == pytest.approx(factor * (5.0 if counts else LEARNS[1]))


def test_recipes_differ_from_their_control_in_the_tasks_alone():
    for preset in ("smoke", "quick", "paper"):
        fixed, fresh = recipes(preset, None).values()
        assert fixed.training_tasks == fresh.batch_size
        assert fresh.seeds == fixed.seeds[:1]
        changed = {"training_tasks": fixed.training_tasks, "batch_size": fixed.batch_size, "seeds": fixed.seeds}
        assert dataclasses.replace(fresh, **changed) == fixed
    assert recipes("quick", None)[MAIN].training_tasks == 8192
    assert CHOSEN in CANDIDATES


def test_the_search_leaves_the_judged_seeds_alone():
    judged = {seed for preset in ("smoke", "quick", "paper") for seed in recipes(preset, None)[MAIN].seeds}
    assert all(min(candidate.recipe.seeds) >= 1000 for candidate in CANDIDATES)
    assert max(judged) < 1000
    assert len({candidate.name for candidate in CANDIDATES}) == len({one.recipe for one in CANDIDATES})


def tiny(name: str, **changes) -> Candidate:
    recipe = block_recipe(num_steps=6, widening=2, **changes)
    return Candidate(
        name, "quick", dataclasses.replace(recipe, training_tasks=16, evaluation_tasks=20, evaluation_interval=2)
    )


def test_search_trains_once_and_tabulates(tmp_path):
    candidates = [tiny("small"), tiny("large", init_scale=30.0)]
    shown = search(candidates, tmp_path)
    assert [one.candidate for one in shown] == candidates
    assert shown[1].first > 10 * shown[0].first
    for one in shown:
        assert one.lowest <= one.peak
        assert 0 < one.descent < one.zero
    with mock.patch.object(innerloop.runs, "train", side_effect=AssertionError):
        assert search(candidates, tmp_path) == shown
    lines = table(shown).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    numbers = [f"{value:.3f}" for value in (shown[1].first, shown[1].last, shown[1].last_train)]
    assert [cells[3], *cells[6:]] == numbers
    assert cells[4] == f"{shown[1].peak:.3f} ({shown[1].peak_step:.0f})"


def test_search_refuses_several_seeds(tmp_path):
    with pytest.raises(ValueError, match="candidates must have one seed, got"):
        search([tiny("two", seeds=(1000, 1001))], tmp_path)
