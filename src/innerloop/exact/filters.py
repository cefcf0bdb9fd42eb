"""Noise and what is done against it, on spectra: weight decay, early stopping, ridge.

From W0 = 0 all of these predict sum_j y_j x_j^T g(X X^T) x_q, with a function g of the eigenvalues l of X X^T:

    ridge                               1 / (l + penalty)
    K steps of gradient descent         (1 - (1 - c l)^K) / l,              c = eta / N
    the same with decay d = eta lambda  c sum_{k<K} (1 - d - c l)^k

What the filter lets through of W is l g, of noise along an eigenvector g sqrt(l), so the expected loss of a context is

    n_o / 2 sum_i q_i [ s^2 (1 - l_i g_i)^2 + sigma^2 l_i g_i^2 ],

as in `innerloop.exact.spectrum` with r = 1 - l g. The best g of all is ridge's with penalty (sigma / s)^2. Numbers are
tuned on pooled spectra (`innerloop.exact.tuning`) in milliseconds, without samples of targets.

    >>> import jax
    >>> from innerloop.exact.tuning import tuning_spectra
    >>> task = LinearRegression(noise_std=0.7)
    >>> tuned = tune_weight_decay(task, 2, spectra=tuning_spectra(task, num_contexts=5000))
    >>> round(tuned.learning_rate, 1), round(tuned.weight_decay, 3)
    (5.0, 0.017)
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from innerloop.checks import finite_number, positive_int
from innerloop.exact.spectrum import Spectra, gradient_descent_losses, pool
from innerloop.exact.tuning import TuningSpectra, tuning_spectra
from innerloop.tasks import LinearRegression

# Where a fit of step size (in units of 1 / typical largest eigenvalue) and decay starts; decay can be below zero.
_STEP_SIZES = (0.5, 1.0, 2.0, 4.0)
_DECAYS = (-0.2, 0.0, 0.2, 0.5)


class TunedDecay(NamedTuple):
    """Gradient descent with weight decay, tuned, and what it is worth.

    Attributes:
        learning_rate: eta, shared by all steps.
        weight_decay: lambda. Below zero where the noise is too weak for the steps to need any.
        loss: on contexts that took no part in the fit; half squared error, summed over outputs, mean over contexts.
        loss_standard_error: of that mean.
    """

    learning_rate: float
    weight_decay: float
    loss: float
    loss_standard_error: float


class Stopping(NamedTuple):
    """Early-stopped gradient descent: the best number of small steps, and what it is worth, as in `TunedDecay`."""

    num_steps: int
    loss: float
    loss_standard_error: float


def ridge_filter(eigenvalues: Float[Array, "*shape"], penalty: float | Float[Array, ""]) -> Float[Array, "*shape"]:
    """1 / (l + penalty); for a penalty of zero 0 at l = 0, the minimum-norm solution."""
    shifted = eigenvalues + penalty
    return jnp.where(shifted > 0, 1 / jnp.where(shifted > 0, shifted, jnp.ones_like(shifted)), jnp.zeros_like(shifted))


def decay_filter(
    eigenvalues: Float[Array, "*shape"],
    step_size: float | Float[Array, ""],
    decay: float | Float[Array, ""],
    num_steps: int,
) -> Float[Array, "*shape"]:
    """C sum_{k < K} (1 - d - c l)^k: gradient descent with weight decay.

    Args:
        eigenvalues: l.
        step_size: c = eta / N.
        decay: d = eta lambda, what a step takes off the weights.
        num_steps: K.
    """
    kept = 1 - decay - step_size * eigenvalues
    # Horner's scheme; the closed form of the geometric sum divides by d + c l, which may vanish.
    learned = jnp.zeros_like(eigenvalues)
    for _ in range(num_steps):
        learned = learned * kept + step_size
    return learned


def filter_losses(
    task: LinearRegression, spectra: Spectra, learned: Float[Array, "tasks input_size"]
) -> Float[Array, " tasks"]:
    """Expected half squared error (summed over outputs) per context of a learner with filter values g.

    Args:
        task: gives noise, target scale and number of outputs.
        spectra: of the contexts.
        learned: g at every eigenvalue.
    """
    eigenvalues = spectra.eigenvalues
    left = 1 - eigenvalues * learned
    error = task.target_scale**2 * left**2 + task.noise_std**2 * eigenvalues * learned**2
    return task.output_size / 2 * jnp.sum(spectra.query_moments * error, axis=-1)


def tune_weight_decay(task: LinearRegression, num_steps: int, *, spectra: TuningSpectra | None = None) -> TunedDecay:
    """The learning rate and the decay with the smallest expected loss after the last of K steps from zero.

    With one step decay has no effect, and is zero.

    Args:
        task: the task.
        num_steps: K.
        spectra: contexts to tune and report on; by default `tuning_spectra` draws them.
    """
    positive_int("num_steps", num_steps)
    sets = tuning_spectra(task) if spectra is None else spectra
    with jax.enable_x64(True):
        fitted, choosing = pool(sets.fitted), pool(sets.choosing)
        unit = float(jnp.mean(sets.fitted.eigenvalues[:, -1]))

        def numbers(free: np.ndarray) -> tuple[jax.Array, jax.Array]:
            return jnp.asarray(free[0] / unit), jnp.asarray(free[1] if num_steps > 1 else 0.0)

        def fit(start: tuple[float, float]) -> np.ndarray:
            count = 2 if num_steps > 1 else 1
            found = scipy.optimize.least_squares(
                lambda free: np.asarray(_residuals(task, fitted, *numbers(free), num_steps)),
                np.array(start[:count]),
                method="lm",
                max_nfev=200,
            )
            return found.x

        def chosen_loss(free: np.ndarray) -> float:
            loss = float(np.sum(np.asarray(_residuals(task, choosing, *numbers(free), num_steps)) ** 2) / 2)
            return loss if np.isfinite(loss) else np.inf

        starts = [(step, decay) for step in _STEP_SIZES for decay in (_DECAYS if num_steps > 1 else (0.0,))]
        step_size, decay = map(float, numbers(min(map(fit, starts), key=chosen_loss)))
        learned = decay_filter(sets.reported.eigenvalues, step_size, decay, num_steps)
        loss, error = _mean_and_error(filter_losses(task, sets.reported, learned))
    learning_rate = task.context_length * step_size
    return TunedDecay(learning_rate, decay / learning_rate, loss, error)


def tune_stopping(
    task: LinearRegression, learning_rate: float, *, most_steps: int = 2000, spectra: TuningSpectra | None = None
) -> Stopping:
    """After how many steps of a given, small learning rate gradient descent should stop.

    Args:
        task: the task; without noise there is no reason to stop.
        learning_rate: eta of a step.
        most_steps: where the search ends.
        spectra: contexts to tune and report on; by default `tuning_spectra` draws them.

    Raises:
        ValueError: if the loss still falls at ``most_steps``, or where the steps are too large to learn anything.
    """
    finite_number("learning_rate", learning_rate, above=0.0)
    positive_int("most_steps", most_steps)
    sets = tuning_spectra(task) if spectra is None else spectra
    with jax.enable_x64(True):
        losses = np.asarray(gradient_descent_losses(task, pool(sets.fitted), jnp.full(most_steps, learning_rate)))
        best = int(np.nanargmin(losses[:, 0]))
        if best == most_steps:
            raise ValueError(
                f"most_steps must be above the best number of steps, but the loss still falls at {most_steps}; raise it"
            )
        if best == 0:
            raise ValueError(f"learning_rate must be small, but {learning_rate:.3g} diverges at once; lower it")
        losses = gradient_descent_losses(task, sets.reported, jnp.full(best, learning_rate))[-1]
        return Stopping(best, *_mean_and_error(losses))


@eqx.filter_jit
def _residuals(task: LinearRegression, spectra: Spectra, step_size, decay, num_steps: int):
    """Numbers whose squares sum to twice the pooled loss: of what is left unlearned, and of noise that is learned."""
    eigenvalues, weights = spectra.eigenvalues[0], spectra.query_moments[0]
    learned = decay_filter(eigenvalues, step_size, decay, num_steps)
    parts = [task.target_scale * (1 - eigenvalues * learned)]
    if task.noise_std > 0:
        parts.append(task.noise_std * jnp.sqrt(eigenvalues) * learned)
    return jnp.concatenate([jnp.sqrt(task.output_size * weights) * part for part in parts])


def _mean_and_error(losses: Float[Array, " tasks"]) -> tuple[float, float]:
    values = np.asarray(losses)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
