"""What happens to tokens before the first layer: learned positional codes, a linear embedding, a residual MLP.

All are optional and come in this order.
With a token (x, y), an embedding and an MLP below attention give the features on which attention does gradient descent
(Proposition 2): the last output_size entries of an embedded token take the targets' place.
"""

import equinox as eqx
from jaxtyping import Array, Float

from innerloop.models.mlp import MLPWeights, mlp
from innerloop.tokens import Placement, place


class EmbeddingWeights(eqx.Module):
    """Weights of the embedding.

    Attributes:
        W_E: linear embedding without bias; None leaves tokens as they are.
        mlp: the residual MLP on the input; None means there is none.
        codes: learned positional codes, in whose place tokens end with a one-hot vector per position; None means that
            tokens hold their codes already, or have none.
        placement: how tokens hold learned codes.
    """

    W_E: Float[Array, "*seeds embedding_size token_size"] | None = None
    mlp: MLPWeights | None = None
    codes: Float[Array, "*seeds positions code_size"] | None = None
    placement: Placement = eqx.field(default="concatenated", static=True)


def embed(
    weights: EmbeddingWeights | None, tokens: Float[Array, "*tokens encoded_size"]
) -> Float[Array, "*tokens embedding_size"]:
    """Embedded tokens; tokens as they are where there is no embedding."""
    if weights is None:
        return tokens
    if weights.codes is not None:
        num_positions = weights.codes.shape[-2]
        tokens = place(weights.placement, tokens[..., :-num_positions], tokens[..., -num_positions:] @ weights.codes)
    if weights.W_E is not None:
        tokens = tokens @ weights.W_E.T
    return tokens if weights.mlp is None else tokens + mlp(weights.mlp, tokens)
