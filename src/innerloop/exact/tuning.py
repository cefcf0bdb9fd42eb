"""Tuning gradient descent and GD++ on spectra, with a quasi-Newton method in place of a line search or of training.

The expected loss (see `innerloop.exact.spectrum`) is linear in the measure that puts mass q_i on every eigenvalue l_i,
so hundreds of thousands of contexts are pooled into a few thousand weighted eigenvalues first, and a fit takes
milliseconds (shared numbers) to under a second (12 steps with numbers of their own).

*The tail.* After K steps with their own numbers, what is left is a polynomial of l whose degree grows like 3^K. From
K = 3 or so on, its optimum for any finite sample is huge just beyond the sample's largest eigenvalue, and the loss on
other contexts can be a hundred times the loss on the sample. Therefore three independent sets of contexts are used: one
is fitted, one says at which iterate to stop, and the third gives the loss that is reported.

    >>> from innerloop.tasks import LinearRegression
    >>> task = LinearRegression()
    >>> tuned = tune(task, 2, algorithm="gd++", spectra=tuning_spectra(task, num_contexts=5000))
    >>> round(float(tuned.curvature_corrections[0]), 2)     # the paper found .179 by training
    0.18
"""

from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float

from innerloop.checks import one_of, positive_int
from innerloop.exact.spectrum import Spectra, gradient_descent_losses, pool, sample_spectra
from innerloop.keys import named_key, root_key
from innerloop.tasks import LinearRegression

Algorithm = Literal["gd", "gd++"]

# Step sizes and corrections from which a fit of shared numbers starts, in units of the typical largest eigenvalue.
_STEP_SIZES = (0.8, 1.5, 3.0, 5.0, 8.0, 12.0)
_CORRECTIONS = (0.0, 0.3, 0.6, 0.8)


class TuningSpectra(NamedTuple):
    """Three independent sets of contexts of one task, in float64: to fit, to stop, and to report on."""

    fitted: Spectra
    stopping: Spectra
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
    """Draws the three sets, each of ``num_contexts`` contexts."""
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
        fit = _Fit(task, pool(sets.fitted), pool(sets.stopping), unit=jnp.mean(sets.fitted.eigenvalues[:, -1]))
        free = _Free(num_steps, algorithm)
        numbers = fit.minimise(free, fit.best_start(free))
        if per_step and num_steps > 1:
            free = _Free(num_steps, algorithm, per_step=True)
            numbers = fit.minimise(free, free.spread(numbers))
        learning_rates, corrections = (np.array(part) for part in free.unpack(jnp.asarray(numbers), task, fit.unit))
        corrections[-1] = corrections[-2] if num_steps > 1 else 0.0
        steps = jnp.asarray(learning_rates), jnp.asarray(corrections)
        losses = np.asarray(gradient_descent_losses(task, sets.reported, steps[0], curvature_corrections=steps[1])[-1])
        fitted_loss = float(_loss(free, task, fit.fitted, fit.unit, jnp.asarray(numbers)))
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

    def spread(self, shared: np.ndarray) -> np.ndarray:
        """Where a fit per step starts: at the shared numbers.

        Gradient descent's loss does not depend on the order of its steps, so equal ones would stay equal for ever; they
        are set apart, by Chebyshev's nodes around the shared one.
        """
        if self.algorithm == "gd++":
            return np.repeat(shared, self.num_steps)
        angles = (2 * np.arange(self.num_steps) + 1) * np.pi / (2 * self.num_steps)
        return shared[0] * (1 + 0.5 * np.cos(angles))


class _Fit(NamedTuple):
    """What is fitted, and on which contexts.

    Attributes:
        task: the task.
        fitted: pooled spectra whose loss is minimised.
        stopping: pooled spectra that choose among the iterates.
        unit: the typical largest eigenvalue, which makes the free numbers of order one.
    """

    task: LinearRegression
    fitted: Spectra
    stopping: Spectra
    unit: jax.Array

    def best_start(self, free: _Free) -> np.ndarray:
        """The best of a coarse grid of shared numbers: there are local minima, with gamma below zero among them."""
        if free.algorithm == "gd":
            starts = [np.array([step]) for step in _STEP_SIZES]
        else:
            starts = [np.array([step, correction]) for step in _STEP_SIZES for correction in _CORRECTIONS]
        return min(starts, key=lambda start: self._loss_on(self.fitted, free, start))

    def minimise(self, free: _Free, start: np.ndarray) -> np.ndarray:
        """Minimises on one set with BFGS and returns the iterate that is best on the other."""

        def loss_and_gradient(numbers):
            loss, gradient = _loss_and_gradient(free, self.task, self.fitted, self.unit, jnp.asarray(numbers))
            return float(loss), np.asarray(gradient)

        iterates = [start]
        scipy.optimize.minimize(
            loss_and_gradient, start, jac=True, method="BFGS", callback=lambda numbers: iterates.append(numbers.copy())
        )
        return min(iterates, key=lambda numbers: self._loss_on(self.stopping, free, numbers))

    def _loss_on(self, spectra: Spectra, free: _Free, numbers: np.ndarray) -> float:
        loss = float(_loss(free, self.task, spectra, self.unit, jnp.asarray(numbers)))
        return loss if np.isfinite(loss) else np.inf


@eqx.filter_jit
def _loss(free: _Free, task: LinearRegression, spectra: Spectra, unit, numbers):
    learning_rates, corrections = free.unpack(numbers, task, unit)
    return gradient_descent_losses(task, spectra, learning_rates, curvature_corrections=corrections)[-1, 0]


@eqx.filter_jit
def _loss_and_gradient(free: _Free, task: LinearRegression, spectra: Spectra, unit, numbers):
    return jax.value_and_grad(lambda numbers: _loss(free, task, spectra, unit, numbers))(numbers)
