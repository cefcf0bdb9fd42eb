"""The products W_K^T W_Q and P W_V: all that linear attention depends on.

Per layer and head, a linear layer is ``update_i = W_PV (sum_j e_j e_j^T) W_KQ e_i`` with W_KQ = W_K^T W_Q and
W_PV = P W_V. Multiplying one product by s and the other by 1/s changes nothing: that is the *gauge*. Kernels,
interpolation and weight analysis work on products.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models.attention import AttentionWeights
from innerloop.models.stack import StackWeights


class Products(eqx.Module):
    """The two products of every layer and head.

    Attributes:
        W_KQ: W_K^T W_Q; the attention of query i to key j is e_j^T W_KQ e_i.
        W_PV: P W_V; what a head adds per unit of attention is W_PV e_j.
    """

    W_KQ: Float[Array, "*layers heads token_size token_size"]
    W_PV: Float[Array, "*layers heads token_size token_size"]

    def rescaled(self, factor: float | Float[Array, "*layers heads"]) -> "Products":
        """Moves along the gauge: divides W_KQ by ``factor``, one for all or one per layer and head; multiplies W_PV."""
        factor = jnp.asarray(factor, dtype=self.W_KQ.dtype)[..., None, None]
        return Products(self.W_KQ / factor, self.W_PV * factor)

    def as_weights(self) -> StackWeights:
        """Weights with these products: W_Q = W_KQ, W_V = W_PV and identities for W_K and P."""
        identity = jnp.broadcast_to(jnp.eye(self.W_KQ.shape[-1], dtype=self.W_KQ.dtype), self.W_KQ.shape)
        return StackWeights(AttentionWeights(W_K=identity, W_Q=self.W_KQ, W_V=self.W_PV, P=identity))


def products(weights: StackWeights) -> Products:
    """Reduces weights to their products."""
    attention = weights.attention
    return Products(
        jnp.einsum("...kd,...ke->...de", attention.W_K, attention.W_Q),
        jnp.einsum("...dk,...ke->...de", attention.P, attention.W_V),
    )
