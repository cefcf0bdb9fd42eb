"""The training loss of a whole batch and its gradient: in JAX, native, exact, and the choice between them."""

from innerloop.kernels.expected import expected_kernel
from innerloop.kernels.kernel import Kernel, batch_loss, training_kernel

__all__ = ["Kernel", "batch_loss", "expected_kernel", "training_kernel"]
