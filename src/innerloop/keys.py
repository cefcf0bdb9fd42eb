"""Random keys derived from names.

Adding a new consumer of randomness never reshuffles the others, and evaluation data can never coincide with training
data, because every stream has a name of its own:

    >>> import jax
    >>> key = jax.random.key(0)
    >>> training, evaluation = named_key(key, "training"), named_key(key, "evaluation")
"""

import zlib

import jax
from jaxtyping import Array, Key


def named_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Returns the key of the stream called ``name`` under ``key``: ``fold_in`` of the name's CRC-32."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
