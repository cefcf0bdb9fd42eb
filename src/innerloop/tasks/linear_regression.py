"""Linear regression: y = W x with a fresh W per task, the paper's main task family (section 2).

    >>> task = LinearRegression(context_length=20, input_scale=2.0)   # x ~ U(-1, 1)
    >>> import jax
    >>> task.sample(jax.random.key(0)).problem.context_inputs.shape
    (20, 10)

Out-of-distribution variants are the same family with another scale, distribution or normalisation:
``dataclasses.replace(task, input_scale=1.5)``, `other_input_distributions`. The two scales are leaves of the pytree: a
compiled sweep puts traced values there with ``equinox.tree_at`` (see `innerloop.analysis.scaled_samples`).
"""

import dataclasses
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from innerloop.checks import finite_number
from innerloop.keys import named_key
from innerloop.tasks.input_task import InputTask, apply_weights
from innerloop.tasks.inputs import Exponential, InputDistribution, Laplace, Normal, Uniform
from innerloop.tasks.task import Batch


class InputMoments(NamedTuple):
    """Exact moments of one scaled input vector: E x, E x x^T and E |x|^2 x x^T (float64)."""

    mean: Float[np.ndarray, " input_size"]
    second: Float[np.ndarray, "input_size input_size"]
    fourth: Float[np.ndarray, "input_size input_size"]


class Draw(NamedTuple):
    """The random numbers of a batch of linear-regression tasks, unscaled; tasks last.

    Attributes:
        inputs: context inputs and, last along the token axis, the query's.
        weights: W.
        noise: standard normal noise of the context's targets; None in a noiseless task.
    """

    inputs: Float[Array, "input_size tokens batch"]
    weights: Float[Array, "output_size input_size batch"]
    noise: Float[Array, "output_size context batch"] | None


class LinearRegression(InputTask):
    """Targets y = W x + noise with W ~ N(0, target_scale^2), inputs i.i.d. from a chosen distribution."""

    input_size: int = eqx.field(default=10, static=True)
    """Number of input dimensions n_i."""
    output_size: int = eqx.field(default=1, static=True)
    """Number of outputs n_o; each has its own row of W."""
    context_length: int = eqx.field(default=10, static=True)
    """Number of context pairs N."""
    noise_std: float = eqx.field(default=0.0, static=True)
    """Standard deviation of the normal noise on the context's targets. The query's target is noiseless."""
    input_scale: float = 1.0
    """Factor on every input; 2 turns the default U(-1/2, 1/2) into the text's U(-1, 1)."""
    target_scale: float = 1.0
    """Standard deviation of the entries of W."""
    inputs: InputDistribution = eqx.field(default_factory=Uniform)
    """Distribution of an input vector before scaling: uniform, normal, exponential, laplace, or a covariance."""
    normalise_context: bool = eqx.field(default=False, static=True)
    """Divide all inputs by the Frobenius norm of the context's (the published code's other-distribution sets)."""

    def __check_init__(self):
        finite_number("task.noise_std", self.noise_std, minimum=0.0)

    def draw(self, key: Key[Array, ""], batch_size: int) -> Draw:
        """Draws inputs, weights and noise, each from a stream of its own, before any scale is applied."""
        inputs = self.draw_inputs(key, batch_size)
        weights = jax.random.normal(named_key(key, "weights"), (self.output_size, self.input_size, batch_size))
        noise = None
        if self.noise_std > 0:
            shape = (self.output_size, self.context_length, batch_size)
            noise = jax.random.normal(named_key(key, "noise"), shape)
        return Draw(inputs, weights, noise)

    def assemble(self, draw: Draw) -> Batch:
        """Scales the inputs and computes the targets W x, plus noise on the context's."""
        inputs = draw.inputs
        if self.normalise_context:
            inputs = inputs / jnp.sqrt(jnp.sum(inputs[:, :-1] ** 2, axis=(0, 1)))
        inputs = self.input_scale * inputs
        weights = self.target_scale * draw.weights
        targets = apply_weights(weights, inputs)
        if draw.noise is not None:
            targets = targets.at[:, :-1].add(self.noise_std * draw.noise)
        return Batch(inputs, targets)

    def input_moments(self) -> InputMoments:
        """Exact moments of one input vector, scale included.

        Raises:
            ValueError: with ``normalise_context``, where inputs depend on each other and no closed form is known.
        """
        self._check_moments()
        size, scale = self.input_size, float(self.input_scale)
        return InputMoments(
            scale * self.inputs.mean(size),
            scale**2 * self.inputs.second_moment(size),
            scale**4 * self.inputs.fourth_moment(size),
        )

    def fourth_moment_tensor(self) -> Float[np.ndarray, "input_size input_size input_size input_size"]:
        """E x_i x_j x_k x_l of one input vector, scale included; apart from `input_moments`, since it is large.

        Raises:
            ValueError: with ``normalise_context``, as for `input_moments`.
        """
        self._check_moments()
        return float(self.input_scale) ** 4 * self.inputs.fourth_moment_tensor(self.input_size)

    def _check_moments(self) -> None:
        if self.normalise_context:
            raise ValueError("task.normalise_context must be False for closed-form moments; estimate the loss instead")


def other_input_distributions(task: LinearRegression, *, normalise_context: bool) -> dict[str, LinearRegression]:
    """The paper's other-distribution variants of a task (Fig 6a): normal, exponential, Laplace inputs.

    Args:
        task: the task that was trained on.
        normalise_context: True for the code's variant, which divides by the context's Frobenius norm; False for the
            text's, which only scales. With it, ``input_scale`` 1 makes the whole context's norm 1; the uniform training
            context has about sqrt(context_length * input_size / 12).
    """
    others = {"normal": Normal(), "exponential": Exponential(), "laplace": Laplace()}
    return {
        name: dataclasses.replace(task, inputs=inputs, normalise_context=normalise_context)
        for name, inputs in others.items()
    }


def typical_context_norm(task: LinearRegression) -> float:
    """Root mean square of the context's Frobenius norm: sqrt(N tr E x x^T)."""
    return math.sqrt(task.context_length * float(np.trace(task.input_moments().second)))
