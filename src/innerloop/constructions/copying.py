"""Proposition 3: a layer that copies a neighbouring token, so that x and y in tokens of their own can meet.

Tokens (content; p_j) with one-hot codes p_1 .. p_T, and the cyclic shift U with U p_{j+1} = p_j and U p_1 = p_T:

    W_K = [[0, 0], [0, I]],   W_Q = [[0, 0], [0, U^T]],   W_V = [[0, 0], [J, -U]],   P = I

Token j attends to token j + 1 alone. What it gets replaces its code: p_j + J c_{j+1} - U p_{j+1} = J c_{j+1}, with J
writing the content into the last entries of the code. The shift printed in the paper goes the other way and copies the
*previous* token; ``copies="previous"`` is that one. It is cyclic here too: without the cycle one token has no target,
which linear attention forgives, while softmax then averages over all tokens.

Linear attention copies exactly. Softmax does so up to `copying_error`, which falls like exp(-logit_factor). In both, a
token whose neighbour is the query, which is no key, has no target: linear attention leaves it alone.

Below Proposition 1, with slots (x, 0) and (0, y), token x_j becomes (x_j, 0; .., 0, y_j): gradient descent reads keys
from the content's x and keeps targets in the token's last entries (`alternating_descent_transformer`).
"""

import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.checks import finite_number, one_of, positive_int
from innerloop.constructions.gradient_descent import gradient_descent_weights
from innerloop.models import AttentionKind, AttentionWeights, StackConfig, StackWeights, Transformer
from innerloop.tokens import AlternatingTokens, Positions

Neighbour = Literal["next", "previous"]


def copying_weights(
    *,
    content_size: int,
    num_tokens: int,
    code_size: int | None = None,
    copies: Neighbour = "next",
    logit_factor: float | None = None,
) -> StackWeights:
    """Writes Proposition 3 down, for tokens (content; one-hot code).

    Args:
        content_size: entries of a token without its code.
        num_tokens: T, the query included.
        code_size: entries of a code; None means as many as needed, the larger of the two above.
        copies: which neighbour a token copies; the shift printed in the paper gives ``previous``.
        logit_factor: for softmax attention, the logit of the target; the others' are 0. None is for linear attention.

    Returns:
        One layer with one head and the token's width as key size.

    Raises:
        ValueError: if the codes are too short to hold a content or to be one-hot.
    """
    for name, value in (("content_size", content_size), ("num_tokens", num_tokens)):
        positive_int(name, value)
    one_of("copies", copies, get_args(Neighbour))
    needed = max(content_size, num_tokens)
    width = needed if code_size is None else code_size
    if width < needed:
        raise ValueError(
            f"code_size must be at least {needed}, to hold {num_tokens} positions or a content of {content_size}, "
            f"got {width}"
        )
    if logit_factor is not None:
        finite_number("logit_factor", logit_factor)

    shift = np.eye(num_tokens, width, k=1)  # U p_{j+1} = p_j
    shift[-1, 0] = 1.0
    if copies == "previous":
        shift = np.eye(num_tokens, width, k=-1)
        shift[0, num_tokens - 1] = 1.0
    shift = np.pad(shift, ((0, width - num_tokens), (0, 0)))
    size = content_size + width
    W_K, W_Q, W_V = np.zeros((3, size, size))
    W_K[content_size:, content_size:] = np.eye(width)
    W_Q[content_size:, content_size:] = shift.T
    if logit_factor is not None:
        W_Q *= logit_factor * math.sqrt(size)  # softmax divides by the root of the key size
    W_V[size - content_size :, :content_size] = np.eye(content_size)
    W_V[content_size:, content_size:] -= shift
    return StackWeights(
        AttentionWeights(
            *(jnp.asarray(one, jnp.result_type(float))[None, None] for one in (W_K, W_Q, W_V, np.eye(size)))
        )
    )


def copying_error(num_keys: int, logit_factor: float) -> float:
    """How far softmax attention of `copying_weights` is from one-hot: the sum of absolute differences over keys.

    2 (n - 1) / (e^f + n - 1) with n keys and logit factor f. No entry of a copied token is further off than this times
    the largest absolute entry of a value, 1 or an entry of the content.

    >>> f"{copying_error(20, 50.0):.1e}"
    '7.3e-21'
    """
    return 2 * (num_keys - 1) / (math.exp(logit_factor) + num_keys - 1)


def alternating_descent_transformer(
    *,
    input_size: int,
    output_size: int = 1,
    context_length: int,
    learning_rate: float | Float[Array, ""] | Float[Array, " steps"],
    logit_factor: float | None = None,
) -> Transformer:
    """Gradient descent on alternating tokens: a layer of Proposition 3, then one of Proposition 1 per step.

    Args:
        input_size: n_i.
        output_size: n_o.
        context_length: N.
        learning_rate: eta; a number for one step, or one per step.
        logit_factor: makes the first layer softmax attention with this factor on its logits; None makes it linear.

    Returns:
        A transformer with its tokeniser; row k + 1 of its trajectory is the prediction after k steps (row 0 is the
        query's code).
    """
    tokens = AlternatingTokens(separate_slots=True)
    content_size = tokens.content_size(input_size, output_size)
    num_tokens = 2 * context_length + 1
    width = max(num_tokens, content_size)
    copying = copying_weights(
        content_size=content_size, num_tokens=num_tokens, code_size=width, logit_factor=logit_factor
    ).attention
    # The same as descent on pairs, with everything between x and the copied y left out of account.
    size = content_size + width
    descent = gradient_descent_weights(
        input_size=size - output_size,
        output_size=output_size,
        context_length=context_length,
        learning_rate=jnp.atleast_1d(learning_rate),
    ).attention
    is_input = (jnp.arange(size) < input_size).astype(descent.W_K.dtype)
    layers = AttentionWeights(
        W_K=jnp.concatenate([copying.W_K, descent.W_K * is_input]),
        W_Q=jnp.concatenate([copying.W_Q, descent.W_Q * is_input]),
        W_V=jnp.concatenate([copying.W_V, descent.W_V]),
        P=jnp.concatenate([copying.P, descent.P]),
    )
    num_layers = layers.W_K.shape[0]
    kinds: list[AttentionKind] = ["linear"] * num_layers
    if logit_factor is not None:
        kinds[0] = "softmax"
    config = StackConfig(num_layers=num_layers, tied=False, attention=tuple(kinds))
    positions = Positions("one-hot", width=width)
    return Transformer(config, StackWeights(layers), AlternatingTokens(positions, separate_slots=True))
