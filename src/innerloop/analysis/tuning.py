"""Tuning an algorithm's numbers on sampled tasks, where no closed form gives them.

    >>> from innerloop.algorithms import CrossEntropyDescent
    >>> from innerloop.keys import root_key
    >>> from innerloop.tasks import LinearClassification
    >>> samples = LinearClassification().samples(root_key(1), 2000)
    >>> (eta,), loss = best_numbers(CrossEntropyDescent, (10.0,), samples, "cross_entropy")

Numbers are positive and searched on a logarithmic scale, by SciPy's method of Nelder and Mead: one to three of them, a
smooth loss that is the same function at every call, and no derivatives through fits inside an algorithm.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from innerloop.analysis.evaluation import task_losses
from innerloop.problem import Learner
from innerloop.tasks import PredictionLoss, Sample


def best_numbers(
    make: Callable[..., Learner],
    start: Sequence[float],
    samples: Sample,
    loss: PredictionLoss = "half_squared_error",
    *,
    tolerance: float = 1e-3,
) -> tuple[np.ndarray, float]:
    """The positive numbers with which an algorithm has the smallest mean loss on given tasks.

    Args:
        make: ``(*numbers) -> learner``; called once, with traced scalars.
        start: a guess of each number, within a factor of ten or so.
        samples: the tasks to tune on; judge on others.
        loss: what is minimised.
        tolerance: on the logarithm of every number.

    Returns:
        The numbers and the mean loss that they have on these tasks.

    Raises:
        ValueError: if a guess is not positive.
        RuntimeError: if the search does not converge.
    """
    if min(start) <= 0:
        raise ValueError(f"start must be positive numbers, got {tuple(start)}; they are searched on a log scale")
    dtype = samples.query_target.dtype

    @eqx.filter_jit
    def mean_loss(logarithms: Float[Array, " numbers"], samples: Sample) -> Float[Array, ""]:
        return jnp.mean(task_losses(make(*jnp.exp(logarithms)), samples, loss))

    found = scipy.optimize.minimize(
        lambda logarithms: float(mean_loss(jnp.asarray(logarithms, dtype), samples)),
        np.log(start),
        method="Nelder-Mead",
        # The loss is flat at its optimum: rounding of single precision must not keep the search going.
        options={
            "xatol": tolerance,
            "fatol": 1e-5 if dtype == jnp.float32 else 1e-10,
            "initial_simplex": _simplex(start),
        },
    )
    if not found.success:
        raise RuntimeError(f"tuning from {tuple(start)} did not converge: {found.message}; start nearer to the optimum")
    return np.exp(found.x), float(found.fun)


def _simplex(start: Sequence[float]) -> np.ndarray:
    """The start, and for each number a point with that number half as large again."""
    logarithms = np.log(start)
    return np.stack([logarithms, *(logarithms + np.log(1.5) * np.eye(len(logarithms)))])
