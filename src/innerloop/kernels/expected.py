"""Exact training: the expected loss of one layer and its gradient, in place of those of a sampled batch.

Every step sees the same function of the weights, without noise, so optimisers with a line search apply, and the end of
training is the optimum rather than a neighbourhood of it. See `innerloop.exact.one_layer` for what is covered.
"""

import jax

from innerloop.exact import one_layer_loss
from innerloop.kernels.kernel import Kernel
from innerloop.models import StackConfig, products
from innerloop.tasks import LinearRegression
from innerloop.tokens import ConcatenatedTokens


def expected_kernel(config: StackConfig, tokens: ConcatenatedTokens, task: LinearRegression) -> Kernel:
    """The kernel of exact training; nothing is drawn, so neither seed nor step matters to it.

    Args:
        config: architecture, of one layer.
        tokens: the tokeniser.
        task: what the expectation is over.

    Raises:
        ValueError: for what the expected loss does not cover.
    """
    loss_of_products = one_layer_loss(task, config, tokens)

    def loss(weights):
        return loss_of_products(products(weights))

    def prepare(stream, step):
        return ()

    def loss_and_gradient(weights, draw):
        return jax.value_and_grad(loss)(weights)

    return Kernel("exact", prepare, loss_and_gradient, loss)
