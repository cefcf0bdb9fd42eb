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

__all__ = [
    "Kernel",
    "batch_loss",
    "expected_kernel",
    "held_out_loss",
    "jax_kernel",
    "path_instruction_set",
    "training_kernel",
    "training_path",
]
