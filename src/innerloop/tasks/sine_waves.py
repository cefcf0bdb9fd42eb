"""Sine waves: y = a sin(x + p) with a fresh amplitude and phase per task (Fig 4 of the paper).

Two variants have names, because they are different families:

- ``independent``: amplitude and phase are drawn separately, a ~ U(.1, .5) and p ~ U(0, pi). The honest task.
- ``reference``: the published code draws both from the same random key, so that (a - .1) / .4 = p / pi. One number
  determines the whole function; the published losses are for this family.

    >>> SineWaves(variant="reference").input_size
    1
    >>> text = SineWaves(largest_amplitude=5.0)   # the text's U(.1, 5)
"""

import math
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from innerloop.checks import finite_number, one_of, positive_int
from innerloop.keys import named_key
from innerloop.tasks.task import Batch, Task

Variant = Literal["independent", "reference"]


class Draw(NamedTuple):
    """The random numbers of a batch of sine waves; tasks last.

    Attributes:
        inputs: in [-1/2, 1/2], context inputs and, last, the query's.
        amplitude: in [0, 1], the place in the range of amplitudes.
        phase: in [0, 1], the place in the range of phases.
    """

    inputs: Float[Array, "1 tokens batch"]
    amplitude: Float[Array, " batch"]
    phase: Float[Array, " batch"]


class SineWaves(Task):
    """Targets y = a sin(x + p), inputs uniform around zero."""

    input_size: int = eqx.field(default=1, static=True)
    """1: there is no other sine wave here."""
    output_size: int = eqx.field(default=1, static=True)
    """1: there is no other sine wave here."""
    context_length: int = eqx.field(default=10, static=True)
    """Number of context pairs N."""
    variant: Variant = eqx.field(default="independent", static=True)
    """Draw amplitude and phase separately, or from one number, as the published code does (reference)."""
    smallest_amplitude: float = eqx.field(default=0.1, static=True)
    """Lower end of the amplitudes."""
    largest_amplitude: float = eqx.field(default=0.5, static=True)
    """Upper end of the amplitudes: .5 in the published code, 5 in the text."""
    largest_phase: float = eqx.field(default=math.pi, static=True)
    """Upper end of the phases, in radians; the lower end is 0."""
    input_range: float = eqx.field(default=10.0, static=True)
    """Width of the interval of inputs, centred at 0: 10 means U(-5, 5)."""

    def __check_init__(self):
        for name in ("input_size", "output_size"):
            positive_int(f"task.{name} (of sine waves)", getattr(self, name), maximum=1)
        positive_int("task.context_length", self.context_length)
        one_of("task.variant", self.variant, get_args(Variant))
        finite_number("task.smallest_amplitude", self.smallest_amplitude, minimum=0.0)
        finite_number("task.largest_amplitude", self.largest_amplitude, minimum=self.smallest_amplitude)
        finite_number("task.largest_phase", self.largest_phase, minimum=0.0)
        finite_number("task.input_range", self.input_range, above=0.0)

    def draw(self, key: Key[Array, ""], batch_size: int) -> Draw:
        """Draws inputs, amplitudes and phases, each from its own stream; the last two are one in ``reference``."""
        inputs = jax.random.uniform(
            named_key(key, "inputs"), (1, self.context_length + 1, batch_size), minval=-0.5, maxval=0.5
        )
        amplitude = jax.random.uniform(named_key(key, "amplitude"), (batch_size,))
        if self.variant == "reference":
            return Draw(inputs, amplitude, amplitude)
        return Draw(inputs, amplitude, jax.random.uniform(named_key(key, "phase"), (batch_size,)))

    def assemble(self, draw: Draw) -> Batch:
        """Scales the draws and computes the waves."""
        inputs = self.input_range * draw.inputs
        amplitude = self.smallest_amplitude + (self.largest_amplitude - self.smallest_amplitude) * draw.amplitude
        return Batch(inputs, amplitude * jnp.sin(inputs + self.largest_phase * draw.phase))
