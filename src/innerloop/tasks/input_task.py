"""What families share whose inputs are independent draws from a chosen `InputDistribution`."""

import equinox as eqx
from jaxtyping import Array, Float, Key

from innerloop.checks import finite_number, positive_int
from innerloop.keys import named_key
from innerloop.tasks.inputs import Gaussian, InputDistribution
from innerloop.tasks.task import Task


class InputTask(Task):
    """A family with a distribution of inputs, and a scale on inputs and on targets; it checks them."""

    input_scale: eqx.AbstractVar[float]
    target_scale: eqx.AbstractVar[float]
    inputs: eqx.AbstractVar[InputDistribution]

    def __check_init__(self):
        for name in ("input_size", "output_size", "context_length"):
            positive_int(f"task.{name}", getattr(self, name))
        for name in ("input_scale", "target_scale"):
            finite_number(f"task.{name}", getattr(self, name), above=0.0)
        if isinstance(self.inputs, Gaussian):
            self.inputs.second_moment(self.input_size)  # raises if the sizes differ

    def draw_inputs(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "input_size tokens batch"]:
        """Unscaled context inputs and, last along the token axis, the query's, from a stream of their own."""
        return self.inputs.sample(named_key(key, "inputs"), (self.input_size, self.context_length + 1, batch_size))


def apply_weights(
    weights: Float[Array, "output_size input_size batch"], inputs: Float[Array, "input_size tokens batch"]
) -> Float[Array, "output_size tokens batch"]:
    """W x of every token.

    A sum of products, not an einsum: with the tasks last, XLA's CPU backend turns this into vector code.
    """
    outputs = weights[:, 0, None] * inputs[0]
    for d in range(1, inputs.shape[0]):
        outputs = outputs + weights[:, d, None] * inputs[d]
    return outputs
