"""The training loss of a whole batch for stacks of linear attention, in JAX.

Same mathematics as `innerloop.models.run_stack` under ``vmap``, arranged for speed; in the last layer only the query's
target entries are computed. Three forms, chosen by the architecture:

- *One layer* keeps the tasks along the last axis: sums over tokens are unrolled into elementwise products, which become
  vector code, and products with weights are single matrix products over all tasks. S is never formed.
- *Several layers* go through S = sum_j e_j e_j^T, tasks first. Linear attention moves all tokens by one matrix,
  e <- M e with M = I + damping * sum over heads of W_PV S W_KQ, hence S <- M S M^T (*Gram form*): once S is formed, the
  cost no longer depends on the context's length.
- *A token clip* is not linear, so there every layer moves all tokens (*token form*), with tasks first and tokens as
  rows: E <- clip(E + damping * sum over heads of Q K^T K W_PV^T), where Q = E W_KQ^T and K holds the keys. The order of
  these products depends on the sizes, so that the cost grows with the context's length and not with its square.

In the Gram form, S is moved as a matrix only while more than two layers follow. The last layers need S applied to a few
vectors, and M S M^T v costs products of S with three vectors in place of products of matrices (measured at the paper's
sizes: 3.7 against 13 ms a step for two layers).

In the token form at the paper's sizes, products of two matrices per task are unrolled as well, and the layers are a
loop of the program: XLA's CPU backend fuses unrolled products into their readers and computes them again and again, but
not from one turn of a loop to the next, nor into a product with weights. (A step of five layers: 25 ms; with XLA's own
products 36, unrolled without the loop 60, with tasks last more than 100.)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.models import Products, StackConfig

# Longer sums are left to XLA's reduction, so that the program's size does not grow with the context.
_LONGEST_UNROLLED_SUM = 64

# Products of two matrices per task are unrolled up to this size: 2048 of size 11 take 0.2 ms, XLA's own 0.7 ms. From
# 14 on, XLA's own are faster.
_LARGEST_UNROLLED_PRODUCT = 12

# So many layers at the end are applied to vectors; the cost of that grows threefold with each.
_LAYERS_ON_VECTORS = 2


def linear_stack_entries(
    config: StackConfig,
    products: Products,
    tokens: Float[Array, "token_size tokens batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """Target entries of the query token after the last layer (minus the prediction).

    Args:
        config: architecture of the stack.
        products: W_KQ and W_PV per distinct layer and head.
        tokens: the tokens of every task, the query last.
        num_targets: number of target entries at the end of a token.
    """
    layers = [_layer(products, config, layer, num_targets) for layer in range(config.num_layers)]
    if config.num_layers == 1:
        return _single_layer(config, layers[0], tokens, num_targets)
    form = _gram_form if config.token_clip is None else _token_form
    return form(config, layers, jnp.moveaxis(tokens, -1, 0), num_targets)


def linear_stack_entries_beside_context(
    config: StackConfig,
    products: Products,
    context: Float[Array, "token_size context batch"],
    query: Float[Array, "token_size batch"],
    num_targets: int,
) -> Float[Array, "num_targets batch"]:
    """The same for stacks whose keys are the context tokens, which move on their own, and the query beside them.

    Nothing of the context then depends on the query, so that derivatives by the query are as cheap as its own path.

    Args:
        config: architecture of the stack, without ``query_in_keys``.
        products: W_KQ and W_PV per distinct layer and head.
        context: the context's tokens of every task.
        query: the query's token of every task.
        num_targets: number of target entries at the end of a token.
    """
    layers = [_layer(products, config, layer, num_targets) for layer in range(config.num_layers)]
    passed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[:-1])

    def move(moved, layer: Products):
        context, query = moved
        moved_query = _query_entries(config, layer, context, query, query.shape[-1])
        return (_full_layer(config, layer, context, context), moved_query), None

    start = jnp.moveaxis(context, -1, 0).mT, query.T  # (batch, context, token_size) and (batch, token_size)
    (keys, query), _ = jax.lax.scan(move, start, passed)
    return _query_entries(config, layers[-1], keys, query, num_targets).T


def _gram_form(config, layers, tokens, num_targets):
    """The query's target entries of several layers without a clip; tasks first in, last out."""
    keys, query = tokens if config.query_in_keys else tokens[..., :-1], tokens[..., -1]
    gram = keys @ keys.mT
    num_as_matrix = max(len(layers) - 1 - _LAYERS_ON_VECTORS, 0)
    for layer in layers[:num_as_matrix]:
        query = _move(config, layer, [], gram, query)
        gram = _move_gram(config, layer, gram)
    moved_by = []
    for layer in layers[num_as_matrix:-1]:
        query = _move(config, layer, moved_by, gram, query)
        moved_by = [*moved_by, layer]
    entries = query[:, -num_targets:]
    for W_KQ, W_PV in zip(layers[-1].W_KQ, layers[-1].W_PV, strict=True):
        read = _apply_gram(config, moved_by, gram, query @ W_KQ.T)
        entries = entries + config.damping * read @ W_PV[-num_targets:].T
    return entries.T


def _apply_gram(config, moved_by: Sequence[Products], gram, vectors):
    """S v for every task, with S as it is after the layers that have moved it: M S M^T v, outermost layer last."""
    if not moved_by:
        return jnp.einsum("bde,be->bd", gram, vectors)
    *before, layer = moved_by
    transposed = Products(layer.W_PV.mT, layer.W_KQ.mT)  # M^T has these in each other's place
    vectors = _move(config, transposed, before, gram, vectors)
    return _move(config, layer, before, gram, _apply_gram(config, before, gram, vectors))


def _move(config, layer: Products, moved_by: Sequence[Products], gram, vectors):
    """M v for every task."""
    moved = vectors
    for W_KQ, W_PV in zip(layer.W_KQ, layer.W_PV, strict=True):
        moved = moved + config.damping * _apply_gram(config, moved_by, gram, vectors @ W_KQ.T) @ W_PV.T
    return moved


def _move_gram(config, layer: Products, gram):
    """M S M^T for every task."""
    by = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    for W_KQ, W_PV in zip(layer.W_KQ, layer.W_PV, strict=True):
        queried = jnp.einsum("bde,ef->bdf", gram, W_KQ)
        by = by + config.damping * jnp.einsum("de,bef->bdf", W_PV, queried)
    return (by @ gram) @ by.mT


def _layer(products: Products, config: StackConfig, layer: int, num_targets: int) -> Products:
    """One layer's products, by head; where only targets are updated, nothing is written into the inputs."""
    index = 0 if config.tied else layer
    W_PV = products.W_PV[index]
    if config.update == "targets":
        W_PV = W_PV.at[:, :-num_targets].set(0.0)
    return Products(products.W_KQ[index], W_PV)


def _token_form(config, layers: Sequence[Products], tokens, num_targets):
    """The query's target entries of several layers with a clip; tasks first in, last out."""
    tokens = tokens.mT
    if _is_small(_keys(config, tokens)):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[:-1])

        def move(tokens, layer: Products):
            return _full_layer(config, layer, tokens, _keys(config, tokens)), None

        tokens, _ = jax.lax.scan(move, tokens, stacked)
    else:
        for layer in layers[:-1]:
            tokens = _full_layer(config, layer, tokens, _keys(config, tokens))
    return _query_entries(config, layers[-1], _keys(config, tokens), tokens[:, -1], num_targets).T


def _full_layer(
    config,
    layer: Products,
    tokens: Float[Array, "batch tokens token_size"],
    keys: Float[Array, "batch keys token_size"],
):
    """Updates all tokens of all tasks."""
    update = jnp.zeros_like(tokens)
    for W_KQ, W_PV in zip(layer.W_KQ, layer.W_PV, strict=True):
        update = update + _attend(tokens @ W_KQ.T, keys, W_PV)
    return _clip(config, tokens + config.damping * update)


def _attend(
    queries: Float[Array, "batch tokens token_size"],
    keys: Float[Array, "batch keys token_size"],
    W_PV: Float[Array, "token_size token_size"],
) -> Float[Array, "batch tokens token_size"]:
    """Q K^T K W_PV^T for every task, multiplied in the order that is fastest at these sizes."""
    num_keys, token_size = keys.shape[1:]
    if _is_small(keys):
        return _unrolled_product(queries, _unrolled_product(keys.mT, keys) @ W_PV.T)
    if num_keys <= token_size:
        return (queries @ keys.mT) @ keys @ W_PV.T
    return queries @ (keys.mT @ keys @ W_PV.T)


def _is_small(keys: Float[Array, "batch keys token_size"]) -> bool:
    """Whether products of these keys and of their Gram matrix are unrolled."""
    return max(keys.shape[1:]) <= _LARGEST_UNROLLED_PRODUCT


def _query_entries(
    config,
    layer: Products,
    keys: Float[Array, "batch keys token_size"],
    query: Float[Array, "batch token_size"],
    num_entries: int,
) -> Float[Array, "batch num_entries"]:
    """The query's last entries after a layer: its targets, or all that it has."""
    entries = query[:, -num_entries:]
    for W_KQ, W_PV in zip(layer.W_KQ, layer.W_PV, strict=True):
        scores = jnp.einsum("bnd,bd->bn", keys, query @ W_KQ.T)
        read = jnp.einsum("bnd,bn->bd", keys, scores)
        entries = entries + config.damping * read @ W_PV[-num_entries:].T
    return _clip(config, entries)


def _keys(config, tokens: Float[Array, "batch tokens token_size"]):
    """The tokens that are keys."""
    return tokens if config.query_in_keys else tokens[:, :-1]


@jax.custom_vjp
def _unrolled_product(
    left: Float[Array, "batch rows inner"], right: Float[Array, "batch inner columns"]
) -> Float[Array, "batch rows columns"]:
    """The matrix product of every task; its derivative is again two such products."""
    product = left[:, :, 0, None] * right[:, 0, None]
    for index in range(1, left.shape[-1]):
        product = product + left[:, :, index, None] * right[:, index, None]
    return product


_unrolled_product.defvjp(
    lambda left, right: (_unrolled_product(left, right), (left, right)),
    lambda factors, by: (_unrolled_product(by, factors[1].mT), _unrolled_product(factors[0].mT, by)),
)


def _single_layer(config, products, tokens, num_targets):
    """Updates the query's target entries of a one-layer stack, tasks last."""
    query = tokens[:, -1]  # (token_size, batch)
    keys = tokens if config.query_in_keys else tokens[:, :-1]
    entries = []
    for target in range(-num_targets, 0):
        entry = query[target]
        for W_KQ, W_PV in zip(products.W_KQ, products.W_PV, strict=True):
            values = W_PV[target] @ keys.reshape(keys.shape[0], -1)
            read = _sum_over_tokens(keys, values.reshape(keys.shape[1:]))  # (token_size, batch)
            entry = entry + config.damping * jnp.sum(read * (W_KQ @ query), axis=0)
        entries.append(entry)
    return _clip(config, jnp.stack(entries))


def _clip(config, entries):
    return entries if config.token_clip is None else jnp.clip(entries, -config.token_clip, config.token_clip)


def _sum_over_tokens(
    tokens: Float[Array, "token_size tokens batch"], weights: Float[Array, "tokens batch"]
) -> Float[Array, "token_size batch"]:
    """Sums tokens with a weight each, tasks last."""
    num_tokens = tokens.shape[1]
    if num_tokens > _LONGEST_UNROLLED_SUM:
        return jnp.sum(tokens * weights, axis=1)
    total = tokens[:, 0] * weights[0]
    for index in range(1, num_tokens):
        total = total + tokens[:, index] * weights[index]
    return total
