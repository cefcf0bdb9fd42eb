"""The training loss of a whole batch for one linear layer on embedded tokens (the sine model of Fig 4), in JAX.

Same mathematics as `innerloop.models.run_stack` under ``vmap``. With an embedding W_E and an MLP, a token t becomes

    e = B t + W_2 g + b_2,    g = gelu(W_1 B t + b_1),    B = W_E or I

and all that the query's prediction needs of a context token are its dot products with two vectors: W_KQ e_q, one per
task, and the target's row of W_PV, one for all. So W_1 B is formed once, and context tokens are never embedded: their
hidden units g are enough (measured at the sizes of Fig 4: .3 of the time of embedding all tokens).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import EmbeddingWeights, MLPWeights, StackConfig, StackWeights, embed, hidden_units, products


def serves_embedded_layer(config: StackConfig) -> bool:
    """Whether an architecture is one linear layer on embedded tokens."""
    return (
        config.num_layers == 1
        and config.attention == ("linear",)
        and not config.causal
        and config.layer_norm == "none"
        and config.mlp != "block"
    )


def embedded_layer_entries(
    config: StackConfig,
    weights: StackWeights,
    tokens: Float[Array, "token_size tokens batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the layer; arguments as for `query_target_entries`."""
    assert weights.embedding is not None
    W_KQ, W_PV = (leaf[0] for leaf in (products(weights).W_KQ, products(weights).W_PV))
    rows = jnp.moveaxis(tokens, -1, 0).mT  # (batch, tokens, token_size)
    context = _context(weights.embedding, rows[:, : config.num_keys(rows.shape[1])])
    query = embed(weights.embedding, rows[:, -1])  # (batch, width)
    entries = []
    for target in range(-num_targets, 0):
        entry = query[:, target]
        for head in range(config.num_heads):
            scores = _dot_per_task(context, query @ W_KQ[head].T)
            values = _dot_shared(context, W_PV[head, target])
            entry = entry + config.damping * jnp.sum(scores * values, axis=-1)
        entries.append(entry)
    entries = jnp.stack(entries)
    return entries if config.token_clip is None else jnp.clip(entries, -config.token_clip, config.token_clip)


class _Context(NamedTuple):
    """Context tokens before the embedding's last linear maps: e = W_E t + W_2 g + b_2.

    Attributes:
        tokens: t.
        hidden: g; None without an MLP.
        W_E: None for the identity.
        mlp: where W_2 and b_2 are.
    """

    tokens: Float[Array, "batch keys token_size"]
    hidden: Float[Array, "batch keys hidden_size"] | None
    W_E: Float[Array, "width token_size"] | None
    mlp: MLPWeights | None


def _context(embedding: EmbeddingWeights, tokens: Float[Array, "batch keys token_size"]) -> _Context:
    hidden = None
    if embedding.mlp is not None:
        into_hidden = embedding.mlp.W_1 if embedding.W_E is None else embedding.mlp.W_1 @ embedding.W_E
        hidden = hidden_units(embedding.mlp, tokens @ into_hidden.T)
    return _Context(tokens, hidden, embedding.W_E, embedding.mlp)


def _dot_per_task(context: _Context, vectors: Float[Array, "batch width"]) -> Float[Array, "batch keys"]:
    """<e_j, v> for every context token, with a vector per task."""
    on_tokens = vectors if context.W_E is None else vectors @ context.W_E
    dots = jnp.einsum("bnt,bt->bn", context.tokens, on_tokens)
    if context.mlp is not None:
        dots = dots + jnp.einsum("bnh,bh->bn", context.hidden, vectors @ context.mlp.W_2)
        if context.mlp.b_2 is not None:
            dots = dots + (vectors @ context.mlp.b_2)[:, None]
    return dots


def _dot_shared(context: _Context, vector: Float[Array, " width"]) -> Float[Array, "batch keys"]:
    """<e_j, v> for every context token, with one vector for all tasks."""
    dots = context.tokens @ (vector if context.W_E is None else vector @ context.W_E)
    if context.mlp is not None:
        assert context.hidden is not None
        dots = dots + context.hidden @ (vector @ context.mlp.W_2)
        if context.mlp.b_2 is not None:
            dots = dots + vector @ context.mlp.b_2
    return dots
