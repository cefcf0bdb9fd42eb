"""What a wrong prediction costs: half squared error, or cross-entropy where predictions are logits.

Every task family says which of the two its predictions are trained and measured by (`innerloop.tasks.Task`):

    half_squared_error    |yhat - y|^2 / 2, summed over outputs
    cross_entropy         -sum_c y_c log softmax(yhat)_c, in nats; y is one-hot or a distribution over classes

    >>> float(prediction_loss("half_squared_error", jnp.array([3.0]), jnp.array([1.0])))
    2.0
    >>> round(float(prediction_loss("cross_entropy", jnp.zeros(2), jnp.array([1.0, 0.0]))), 4)    # log 2
    0.6931
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PredictionLoss = Literal["half_squared_error", "cross_entropy"]


def prediction_loss(
    loss: PredictionLoss, predictions: Float[Array, "output_size *tasks"], targets: Float[Array, "output_size *tasks"]
) -> Float[Array, "*tasks"]:
    """The loss of predictions, outputs along the first axis.

    Args:
        loss: which.
        predictions: yhat; logits for the cross-entropy.
        targets: y.
    """
    if loss == "cross_entropy":
        return -jnp.sum(targets * jax.nn.log_softmax(predictions, axis=0), axis=0)
    # Half of every square, not of their sum: XLA rounds that as it did when this was part of `batch_loss`.
    return jnp.sum(0.5 * (targets - predictions) ** 2, axis=0)


def loss_unit(loss: PredictionLoss) -> str:
    """What tables and axes call a loss.

    >>> loss_unit("cross_entropy")
    'cross-entropy in nats'
    """
    return "cross-entropy in nats" if loss == "cross_entropy" else "half squared error"
