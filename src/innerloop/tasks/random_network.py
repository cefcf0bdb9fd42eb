"""Targets from a random two-layer network, y = V relu(W x), with fresh weights per task.

A nonlinear family in more than one dimension (after Garg et al. 2022, What can transformers learn in-context?). With
W ~ N(0, 1) and V ~ N(0, 2 / hidden_size) per entry, E y^2 = |x|^2, as in linear regression.

    >>> import jax
    >>> RandomNetwork(input_size=3).sample(jax.random.key(0)).query_target.shape
    (1,)
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from innerloop.checks import positive_int
from innerloop.keys import named_key
from innerloop.tasks.input_task import InputTask
from innerloop.tasks.inputs import InputDistribution, Uniform
from innerloop.tasks.task import Batch


class Draw(NamedTuple):
    """The random numbers of a batch; tasks last.

    Attributes:
        inputs: unscaled context inputs and, last along the token axis, the query's.
        first: W.
        second: V before it is divided by the root of hidden_size / 2.
    """

    inputs: Float[Array, "input_size tokens batch"]
    first: Float[Array, "hidden_size input_size batch"]
    second: Float[Array, "output_size hidden_size batch"]


class RandomNetwork(InputTask):
    """Targets y = V relu(W x), inputs i.i.d. from a chosen distribution."""

    input_size: int = eqx.field(default=10, static=True)
    """Number of input dimensions n_i."""
    output_size: int = eqx.field(default=1, static=True)
    """Number of outputs n_o."""
    context_length: int = eqx.field(default=10, static=True)
    """Number of context pairs N."""
    hidden_size: int = eqx.field(default=100, static=True)
    """Hidden units of the network."""
    input_scale: float = 1.0
    """Factor on every input."""
    target_scale: float = 1.0
    """Factor on every target."""
    inputs: InputDistribution = eqx.field(default_factory=Uniform)
    """Distribution of an input vector before scaling: uniform, normal, exponential, laplace, or a covariance."""

    def __check_init__(self):
        positive_int("task.hidden_size", self.hidden_size)

    def draw(self, key: Key[Array, ""], batch_size: int) -> Draw:
        """Draws inputs and both layers' weights, each from a stream of its own."""
        inputs = self.draw_inputs(key, batch_size)
        first = jax.random.normal(named_key(key, "first"), (self.hidden_size, self.input_size, batch_size))
        second = jax.random.normal(named_key(key, "second"), (self.output_size, self.hidden_size, batch_size))
        return Draw(inputs, first, second)

    def assemble(self, draw: Draw) -> Batch:
        """Scales the inputs and runs the network."""
        inputs = self.input_scale * draw.inputs
        hidden = jax.nn.relu(jnp.einsum("hib,itb->htb", draw.first, inputs))
        scale = self.target_scale * math.sqrt(2 / self.hidden_size)
        return Batch(inputs, scale * jnp.einsum("ohb,htb->otb", draw.second, hidden))
