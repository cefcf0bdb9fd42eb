"""The training loss of a whole batch and its gradient: in JAX, native, exact, and the choice between them."""

from innerloop.kernels.expected import expected_kernel
from innerloop.kernels.kernel import (
    Kernel,
    batch_loss,
    held_out_loss,
    jax_kernel,
    path_instruction_set,
    training_kernel,
    training_path,
)
from innerloop.kernels.responses import Responses, stack_predictions, stack_responses

__all__ = [
    "Kernel",
    "Responses",
    "batch_loss",
    "expected_kernel",
    "held_out_loss",
    "jax_kernel",
    "path_instruction_set",
    "stack_predictions",
    "stack_responses",
    "training_kernel",
    "training_path",
]
