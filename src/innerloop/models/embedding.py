"""What happens to tokens before the first layer: a linear embedding, then a residual MLP; both optional.

With a token (x, y), an embedding and an MLP below attention give the features on which attention does gradient descent
(Proposition 2): the last output_size entries of an embedded token take the targets' place.
"""

import equinox as eqx
from jaxtyping import Array, Float

from innerloop.models.mlp import MLPWeights, mlp


class EmbeddingWeights(eqx.Module):
    """Weights of the embedding.

    Attributes:
        W_E: linear embedding without bias; None leaves tokens as they are.
        mlp: the residual MLP on the input; None means there is none.
    """

    W_E: Float[Array, "*seeds embedding_size token_size"] | None = None
    mlp: MLPWeights | None = None


def embed(
    weights: EmbeddingWeights | None, tokens: Float[Array, "*tokens token_size"]
) -> Float[Array, "*tokens embedding_size"]:
    """Embedded tokens; tokens as they are where there is no embedding."""
    if weights is None:
        return tokens
    if weights.W_E is not None:
        tokens = tokens @ weights.W_E.T
    return tokens if weights.mlp is None else tokens + mlp(weights.mlp, tokens)
