"""One layer of linear attention that takes one gradient step on a cross-entropy, from W = 0.

On L(W) = -(1/N) sum_j log softmax(W x_j)_{class of j} the gradient is (1/N) sum_j (softmax(W x_j) - y_j) x_j^T, with
y_j one-hot. At W = 0 the softmax is 1/C whatever x_j is, so that one step with learning rate eta predicts the logits

    (eta / N) sum_j (y_j - 1/C) (x_j . x_q),

which are linear in the targets: Proposition 1 with centred targets. The layer needs one-hot targets in its tokens and
nothing else. No bias takes the 1/C off, W_V does: entries of y_j sum to 1, so (I - 1 1^T / C) y_j = y_j - 1/C and

    W_K = W_Q = [[I, 0], [0, 0]],   W_V = [[0, 0], [0, -(I - 1 1^T / C)]],   P = (eta / N) I.

*What the loss does not see.* Without the centring every logit is larger by one and the same number,
(eta / N C) sum_j x_j . x_q, and softmax takes that away again. The layer of Proposition 1 on one-hot targets, a step on
the *squared* error, thus has the same cross-entropy, and no training on it can tell the two apart: compare logits with
`innerloop.algorithms.CentredLogits`.

*The second step.* It needs the residuals y_j - softmax(W_1 x_j) of the moved W_1. Softmax is not linear, and linear
attention moves every token by a linear map: it cannot be exact. To first order softmax(z) = 1/C + z/C for logits z that
sum to 0, so K layers on tokens with targets C y_j and learning rate eta / C take gradient steps on

    (1/2N) sum_j |W x_j - C (y_j - 1/C)|^2,

the cross-entropy's second-order expansion at W = 0, times C and up to a constant. Their logits
after two steps miss those of two exact steps by a term of third order in eta (of fourth for two classes, where
softmax's error is odd).
"""

import equinox as eqx
from jaxtyping import Array, Float

from innerloop.checks import positive_int
from innerloop.constructions.gradient_descent import gradient_descent_weights
from innerloop.models import StackConfig, StackWeights, Transformer


def classification_descent_weights(
    *,
    input_size: int,
    num_classes: int,
    context_length: int,
    learning_rate: float | Float[Array, ""],
    centred: bool = True,
) -> StackWeights:
    """Writes one step on the cross-entropy down, for tokens (x_j, one-hot y_j).

    Args:
        input_size: n_i.
        num_classes: C, at least 2.
        context_length: N, which the gradient's mean divides by.
        learning_rate: eta.
        centred: take 1/C off the targets; False is Proposition 1, whose probabilities are the same.

    Returns:
        Weights of one layer with one head and the token's width as key size.
    """
    positive_int("num_classes", num_classes, minimum=2)
    weights = gradient_descent_weights(
        input_size=input_size, output_size=num_classes, context_length=context_length, learning_rate=learning_rate
    )
    if not centred:
        return weights
    values = weights.attention.W_V.at[..., input_size:, input_size:].add(1 / num_classes)
    return eqx.tree_at(lambda one: one.attention.W_V, weights, values)


def classification_descent_transformer(
    *,
    input_size: int,
    num_classes: int,
    context_length: int,
    learning_rate: float | Float[Array, ""],
    centred: bool = True,
) -> Transformer:
    """A transformer that takes one gradient step on the cross-entropy; arguments as above.

    Example:
        >>> import jax.numpy as jnp
        >>> from innerloop.problem import Problem
        >>> layer = classification_descent_transformer(
        ...     input_size=2, num_classes=2, context_length=2, learning_rate=1.0
        ... )
        >>> problem = Problem(jnp.eye(2), jnp.eye(2), jnp.array([1.0, 0.0]))
        >>> layer(problem).value.tolist()    # (1 / 2) (1 - 1/2) and its negative
        [0.25, -0.25]
    """
    weights = classification_descent_weights(
        input_size=input_size,
        num_classes=num_classes,
        context_length=context_length,
        learning_rate=learning_rate,
        centred=centred,
    )
    return Transformer(StackConfig(), weights)
