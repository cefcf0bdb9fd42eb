"""Tuning gradient descent and GD++ on spectra, as a least-squares problem, in place of a line search or of training.

The expected loss (see `innerloop.exact.spectrum`) is linear in the measure that puts mass q_i on every eigenvalue l_i,
so hundreds of thousands of contexts are pooled into a few thousand weighted eigenvalues first, and a fit takes
milliseconds (shared numbers) to under a second (12 steps with numbers of their own).

*The tail.* After K steps with their own numbers, what is left is a polynomial of l whose degree grows like 3^K. From
K = 3 or so on, its optimum for any finite sample is huge just beyond the sample's largest eigenvalue, and the loss on
other contexts can be many times the loss on the sample. Two things help. `innerloop.exact.pool` adds the tail that the
sample lacks (5 steps of GD++, 4000 contexts, fitted .018: .032 to .049 on 400 000 fresh contexts without it, .0186 to
.0189 with it). And three independent sets of contexts are used: one is fitted, one chooses among the fits, and the
third gives the loss that is reported, with its standard error.

*Local minima.* There are many for numbers per step. Levenberg and Marquardt's method is started from the shared numbers
and from numbers that grow geometrically; what is returned is the best found, not a proven optimum.

    >>> from innerloop.tasks import LinearRegression
    >>> task = LinearRegression()
    >>> tuned = tune(task, 2, algorithm="gd++", spectra=tuning_spectra(task, num_contexts=5000))
    >>> round(float(tuned.curvature_corrections[0]), 2)     # the paper found .179 by training
    0.18
"""

import dataclasses
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float

from innerloop.checks import one_of, positive_int
from innerloop.exact.spectrum import (
    Spectra,
    Unlearned,
    gradient_descent_losses,
    pool,
    sample_spectra,
)
from innerloop.keys import named_key, root_key
from innerloop.tasks import LinearRegression

Algorithm = Literal["gd", "gd++"]

# Step sizes and corrections from which a fit of shared numbers starts, in units of the typical largest eigenvalue.
_STEP_SIZES = (0.8, 1.5, 3.0, 5.0, 8.0, 12.0)
_CORRECTIONS = (0.0, 0.3, 0.6, 0.8)
# First step size and correction, and ratio, of numbers per step that grow.
_GROWTHS = (((2.6, 0.35), 7.0), ((2.6, 0.35), 5.0), ((2.6, 0.35), 9.0), ((0.8, 0.75), 9.0))
_MOST_EVALUATIONS = 150


class TuningSpectra(NamedTuple):
    """Three independent sets of contexts of one task, in float64: to fit, to choose among fits, and to report on."""

    fitted: Spectra
    choosing: Spectra
    reported: Spectra


class Tuned(NamedTuple):
    """Numbers of an algorithm, and what they are worth.

    Attributes:
        learning_rates: eta per step.
        curvature_corrections: gamma per step; zero for gradient descent. The last one has no effect, and is set to the
            one before (or to what is shared).
        fitted_loss: on the contexts that were fitted.
        loss: on contexts that took no part in the fit; half squared error, summed over outputs, mean over contexts.
        loss_standard_error: of that mean.
    """

    learning_rates: Float[np.ndarray, " steps"]
    curvature_corrections: Float[np.ndarray, " steps"]
    fitted_loss: float
    loss: float
    loss_standard_error: float


def tuning_spectra(task: LinearRegression, *, num_contexts: int = 50_000, seed: int = 0) -> TuningSpectra:
    """Draws the three sets, each of ``num_contexts`` contexts.

    They depend on a task's inputs alone; the last sets are kept, for tasks that differ in their targets.
    """
    return _tuning_spectra(
        dataclasses.replace(task, output_size=1, noise_std=0.0, target_scale=1.0), num_contexts, seed
    )


@lru_cache(maxsize=4)
def _tuning_spectra(task: LinearRegression, num_contexts: int, seed: int) -> TuningSpectra:
    key = named_key(root_key(seed), "tuning")
    with jax.enable_x64(True):
        return TuningSpectra(
            *(sample_spectra(task, named_key(key, name), num_contexts) for name in TuningSpectra._fields)
        )


def tune(
    task: LinearRegression,
    num_steps: int,
    *,
    algorithm: Algorithm = "gd++",
    per_step: bool = False,
    spectra: TuningSpectra | None = None,
) -> Tuned:
    """Finds the learning rates (and curvature corrections) with the smallest expected loss after the last step.

    Args:
        task: the task.
        num_steps: K.
        algorithm: gradient descent or GD++.
        per_step: numbers of their own for every step; otherwise all steps share theirs, as the paper's baselines do.
        spectra: contexts to tune and report on; by default `tuning_spectra` draws them.

    Raises:
        ValueError: if a value is out of range.
    """
    positive_int("num_steps", num_steps)
    one_of("algorithm", algorithm, get_args(Algorithm))
    sets = tuning_spectra(task) if spectra is None else spectra
    with jax.enable_x64(True):
        unit = jnp.mean(sets.fitted.eigenvalues[:, -1])
        fit = _Fit(task, pool(sets.fitted), pool(sets.choosing), unit)
        free = _Free(num_steps, algorithm)
        numbers = fit.minimise(free, fit.best(free.grid(), free))
        if per_step and num_steps > 1:
            fit = _Fit(task, pool(sets.fitted, with_tail=True), pool(sets.choosing, with_tail=True), unit)
            free = _Free(num_steps, algorithm, per_step=True)
            numbers = fit.best([fit.minimise(free, start) for start in free.starts(numbers)], free)
        learning_rates, corrections = (np.array(part) for part in free.unpack(jnp.asarray(numbers), task, unit))
        corrections[-1] = corrections[-2] if num_steps > 1 else 0.0
        steps = jnp.asarray(learning_rates), jnp.asarray(corrections)
        losses = np.asarray(gradient_descent_losses(task, sets.reported, steps[0], curvature_corrections=steps[1])[-1])
        fitted_loss = fit.loss(free, fit.fitted, numbers)
    return Tuned(
        learning_rates,
        corrections,
        fitted_loss,
        float(losses.mean()),
        float(losses.std(ddof=1) / np.sqrt(losses.size)),
    )


class _Free(NamedTuple):
    """Which numbers are free; they are given in units of 1 / eigenvalue."""

    num_steps: int
    algorithm: Algorithm
    per_step: bool = False

    def unpack(self, numbers, task: LinearRegression, unit):
        """Learning rates and corrections per step."""
        count = self.num_steps if self.per_step else 1
        steps = jnp.broadcast_to(numbers[:count], (self.num_steps,)) / unit
        corrections = jnp.zeros(self.num_steps)
        if self.algorithm == "gd++":
            corrections = jnp.broadcast_to(numbers[count:], (self.num_steps,)) / unit
        return steps * task.context_length, corrections

    def grid(self) -> list[np.ndarray]:
        """Where a fit of shared numbers may start: there are local minima, with gamma below zero among them."""
        if self.algorithm == "gd":
            return [np.array([step]) for step in _STEP_SIZES]
        return [np.array([step, correction]) for step in _STEP_SIZES for correction in _CORRECTIONS]

    def starts(self, shared: np.ndarray) -> list[np.ndarray]:
        """Where fits per step start.

        Gradient descent's loss does not depend on the order of its steps, so equal ones would stay equal for ever;
        they are set apart, by Chebyshev's nodes around the shared one. GD++ starts at the shared numbers, and at
        numbers that grow geometrically: every correction shrinks the large eigenvalues (to at most 4/27 of 1 / gamma),
        so the next step can be several times as large. Good solutions are of this kind; from equal numbers alone they
        are missed.
        """
        steps = np.arange(self.num_steps)
        if self.algorithm == "gd":
            return [shared[0] * (1 + 0.5 * np.cos((2 * steps + 1) * np.pi / (2 * self.num_steps)))]
        growths = _GROWTHS if self.num_steps <= 5 else _GROWTHS[:1]
        growing = [np.concatenate([first[0] * ratio**steps, first[1] * ratio**steps]) for first, ratio in growths]
        return [np.repeat(shared, self.num_steps), *growing] if self.num_steps <= 5 else growing


class _Fit(NamedTuple):
    """What is fitted, and on which contexts.

    Attributes:
        task: the task.
        fitted: pooled spectra whose loss is minimised.
        choosing: pooled spectra that choose among candidates.
        unit: the typical largest eigenvalue, which makes the free numbers of order one.
    """

    task: LinearRegression
    fitted: Spectra
    choosing: Spectra
    unit: jax.Array

    def minimise(self, free: _Free, start: np.ndarray) -> np.ndarray:
        """Minimises the loss on the fitted set; it is half a sum of squares, one or two for every node."""

        def on_host(function) -> Any:
            return lambda numbers: np.asarray(function(free, self.task, self.fitted, self.unit, jnp.asarray(numbers)))

        if not np.isfinite(on_host(_residuals)(start)).all():
            return start
        found = scipy.optimize.least_squares(
            on_host(_residuals), start, jac=on_host(_jacobian), method="lm", max_nfev=_MOST_EVALUATIONS
        )
        return found.x

    def best(self, candidates: list[np.ndarray], free: _Free) -> np.ndarray:
        """The candidate with the lowest loss on the set that is not fitted."""

        def loss(numbers: np.ndarray) -> float:
            value = self.loss(free, self.choosing, numbers)
            return value if np.isfinite(value) else np.inf

        return min(candidates, key=loss)

    def loss(self, free: _Free, spectra: Spectra, numbers: np.ndarray) -> float:
        """The expected loss on pooled spectra."""
        return float(np.sum(np.asarray(_residuals(free, self.task, spectra, self.unit, jnp.asarray(numbers))) ** 2) / 2)


@eqx.filter_jit
def _residuals(free: _Free, task: LinearRegression, spectra: Spectra, unit, numbers):
    """Numbers whose squares sum to twice the pooled loss: of what is left unlearned, and of fitted noise."""
    learning_rates, corrections = free.unpack(numbers, task, unit)
    eigenvalues, weights = spectra.eigenvalues[0], spectra.query_moments[0]
    unlearned = Unlearned.everything(eigenvalues)
    for step in range(free.num_steps):
        step_size = learning_rates[step] / task.context_length
        unlearned = unlearned.after_step(eigenvalues, step_size, corrections[step])
    parts = [task.target_scale * unlearned.left]
    if task.noise_std > 0:
        parts.append(task.noise_std * unlearned.noise(eigenvalues))
    return jnp.concatenate([jnp.sqrt(task.output_size * weights) * part for part in parts])


@eqx.filter_jit
def _jacobian(free: _Free, task: LinearRegression, spectra: Spectra, unit, numbers):
    return jax.jacfwd(lambda numbers: _residuals(free, task, spectra, unit, numbers))(numbers)
