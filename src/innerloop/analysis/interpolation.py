"""The mean of two transformers' weights (A.3): if it has the same loss as both, they sit in one valley.

Only products can be compared: each layer's W_KQ and W_PV are defined up to the gauge (s, 1/s). It is fixed first, by
dividing W_KQ by b, the mean of its first n_i diagonal entries, and multiplying W_PV by b.
"""

import jax

from innerloop.analysis.weights import key_query_scale
from innerloop.models import Products, Transformer, products


def interpolate(
    transformer: Transformer, other: Transformer, *, input_size: int, weight: float = 0.5, rescale: bool = True
) -> Transformer:
    """The transformer whose products lie between two others'.

    Args:
        transformer: gives the architecture.
        other: of the same depth and tying.
        input_size: n_i, for the gauge.
        weight: of ``other``; 0 gives the first transformer's products back, 1 the second's (the rest is the first's).
        rescale: fix the gauge first; without it the mean of two equal functions is a third one.

    Raises:
        ValueError: for several heads, whose pairing is not defined, or different depths or tyings.
    """
    if transformer.config.num_heads != 1 or other.config.num_heads != 1:
        raise ValueError(
            f"interpolation needs one head per layer, got {transformer.config.num_heads} and "
            f"{other.config.num_heads}; heads of two models have no pairing"
        )
    ours, theirs = ((one.config.num_layers, one.config.tied) for one in (transformer, other))
    if ours != theirs:
        raise ValueError(f"both transformers must have one depth and tying, got (num_layers, tied) {ours} and {theirs}")
    first, second = products(transformer.weights), products(other.weights)
    if rescale:
        first, second = fix_gauge(first, input_size), fix_gauge(second, input_size)
    mean: Products = jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, first, second)
    return Transformer(transformer.config, mean.as_weights(), transformer.tokens)


def fix_gauge(stack: Products, input_size: int) -> Products:
    """Rescales every layer and head so that its `key_query_scale` is 1."""
    return stack.rescaled(key_query_scale(stack, input_size))
