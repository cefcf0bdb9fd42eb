"""Who copies whom: what the first layer's output tokens depend on, and whom attention reads (Fig 5, A.5).

Everything is first a matrix over (output token, input token), from which `neighbours` takes the shares of the own, the
next, the previous and the other tokens. There are two measures of dependence, both of the mean over tasks of
derivatives with respect to a token's *content* (its code is left alone):

- `summed_sensitivities`, the published one: the norm of the gradient of the *sum* of an output token's entries. Entries
  of opposite sign cancel in the sum, so the number depends on the basis that a seed happens to write its copies in.
- `jacobian_norms`: the Frobenius norm of the whole derivative, which does not depend on it.

One backward pass serves all output tokens: each reads copies of the context that are its own, so that their gradients
do not mix (a pass per output token, which the definition suggests, costs as many times as much).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.analysis.evaluation import over_tasks
from innerloop.models import Transformer, attention_of_scores, embed, products
from innerloop.problem import Problem
from innerloop.tasks import Sample
from innerloop.tokens import AlternatingTokens

_TASKS_AT_ONCE = 100


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Means over a sequence's tokens of an (output token, input token) matrix's entries.

    Attributes:
        own: what a token has of itself.
        next: of the token after it.
        previous: of the token before it.
        other: of a context token other than itself; includes the next one, as published.
        other_than_next: of a context token that is neither itself nor the next.
        other_than_previous: of one that is neither itself nor the previous.
    """

    own: Float[np.ndarray, "*learners"]
    next: Float[np.ndarray, "*learners"]
    previous: Float[np.ndarray, "*learners"]
    other: Float[np.ndarray, "*learners"]
    other_than_next: Float[np.ndarray, "*learners"]
    other_than_previous: Float[np.ndarray, "*learners"]


@eqx.filter_jit
def summed_sensitivities(transformer: Transformer, samples: Sample) -> Float[Array, "tokens keys"]:
    """Norm of the task-mean gradient of the sum of every output token's entries (the published measure).

    Args:
        transformer: attention alone, on alternating tokens.
        samples: tasks, along the leading axis.

    Raises:
        TypeError: if its tokens do not alternate.
        ValueError: if its first layer has more than attention.
    """
    return jnp.linalg.norm(_mean_derivatives(transformer, samples, jnp.sum), axis=-1)


@eqx.filter_jit
def jacobian_norms(transformer: Transformer, samples: Sample) -> Float[Array, "tokens keys"]:
    """Frobenius norm of the task-mean derivative of every output token; the rest as `summed_sensitivities`."""
    derivatives = _mean_derivatives(transformer, samples, lambda entries: entries)  # (entries, tokens, keys, content)
    return jnp.sqrt(jnp.sum(derivatives**2, axis=(0, 3)))


@eqx.filter_jit
def mean_attention(transformer: Transformer, samples: Sample) -> Float[Array, "layers heads tokens keys"]:
    """Attention maps, mean over tasks."""
    maps = over_tasks(lambda sample: transformer.attention_maps(sample.problem), samples)
    return jnp.mean(maps, axis=0)


def neighbours(matrix: Float[np.ndarray | Array, "*learners tokens input_tokens"]) -> Neighbours:
    """Averages a matrix along its diagonals, as the published code does.

    Rows are all context tokens that have the neighbour in question in the context; the query's row and column are left
    out, since it is no key.

    Args:
        matrix: rows for the reading token, columns for the token that is read, the query last among the rows.
    """
    num_context = matrix.shape[-2] - 1
    entries = np.asarray(matrix)[..., :num_context, :num_context]
    rows = np.arange(num_context)
    own = entries[..., rows, rows]
    after, before = entries[..., rows[:-1], rows[1:]], entries[..., rows[1:], rows[:-1]]
    others = entries.sum(axis=-1) - own

    def mean(values, count=1):
        return np.asarray(values.mean(axis=-1) / count)

    return Neighbours(
        own=mean(own[..., :-1]),
        next=mean(after),
        previous=mean(before),
        other=mean(others[..., :-1], num_context - 1),
        other_than_next=mean(others[..., :-1] - after, num_context - 2),
        other_than_previous=mean(others[..., 1:] - before, num_context - 2),
    )


def strongest_neighbour(attention: Float[np.ndarray, "tokens keys"]) -> Literal["next", "previous"]:
    """The neighbour that a layer attends to more."""
    found = neighbours(attention)
    return "next" if found.next >= found.previous else "previous"


def _mean_derivatives(
    transformer: Transformer, samples: Sample, reduce: Callable[[Array], Array]
) -> Float[Array, "*reduced tokens keys content_size"]:
    """Mean over tasks of the derivative of ``reduce`` of a token after the first layer by every token's content."""
    tokens, config = transformer.tokens, transformer.config
    if not isinstance(tokens, AlternatingTokens):
        raise TypeError(f"transformer must read AlternatingTokens, got {type(tokens).__name__}")
    if config.mlp != "none" or config.layer_norm == "before":
        raise ValueError(
            "transformer must have attention alone in its first layer, "
            f"got mlp={config.mlp!r}, layer_norm={config.layer_norm!r}"
        )
    num_tasks, output_size = samples.query_target.shape
    input_size = samples.problem.query_input.shape[-1]
    content_size = tokens.content_size(input_size, output_size)
    num_tokens = 2 * samples.problem.context_inputs.shape[1] + 1
    num_keys = config.num_keys(num_tokens)
    dtype = samples.query_target.dtype
    # What is added to every task's content: the derivative of a mean by it is the mean of the derivatives.
    no_change = jnp.zeros((num_tokens, content_size), dtype), jnp.zeros((num_tokens, num_keys, content_size), dtype)

    def derivatives(problems: Problem):
        def mean_over_tasks(*changes):
            moved = jax.vmap(lambda problem: _first_layer(transformer, problem, *changes))(problems)
            # Rows do not mix, so the derivative of their sum holds each row's own.
            return reduce(jnp.mean(jnp.sum(moved, axis=1), axis=0))

        return jax.jacrev(mean_over_tasks, argnums=(0, 1))(*no_change)

    block = math.gcd(num_tasks, _TASKS_AT_ONCE)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), samples.problem)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(derivatives, _first(blocks)))
    total, _ = jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, derivatives(one)), None), zeros, blocks)
    by_own, by_read = jax.tree.map(lambda leaf: leaf * block / num_tasks, total)
    rows = jnp.arange(num_keys)
    return by_read.at[..., rows, rows, :].add(by_own[..., :num_keys, :])


def _first(blocks):
    return jax.tree.map(lambda leaf: leaf[0], blocks)


def _first_layer(
    transformer: Transformer,
    problem: Problem,
    own_change: Float[Array, "tokens content_size"],
    read_change: Float[Array, "tokens keys content_size"],
) -> Float[Array, "tokens token_size"]:
    """All tokens after the first layer.

    Args:
        transformer: of which only the first layer is used.
        problem: the task.
        own_change: added to the content of the tokens that read.
        read_change: added to the content of the tokens that they read, apart for every reader.
    """
    config, weights = transformer.config, transformer.weights
    encoded = transformer.tokens.encode(problem)
    content_size = own_change.shape[-1]

    def changed(tokens, change):
        rest = jnp.zeros((*change.shape[:-1], tokens.shape[-1] - content_size), change.dtype)
        return embed(weights.embedding, tokens + jnp.concatenate([change, rest], axis=-1))

    own = changed(encoded, own_change)
    keys = changed(encoded[: read_change.shape[1]], read_change)
    layer = jax.tree.map(lambda leaf: leaf[0], (products(weights), weights.attention.mixing))
    W_KQ, W_PV, mixing = layer[0].W_KQ, layer[0].W_PV, layer[1]
    attention = attention_of_scores(
        config.attention_kind(0),
        jnp.einsum("tnd,htd->htn", keys, jnp.einsum("hde,te->htd", W_KQ, own)),
        key_size=weights.attention.W_K.shape[-2],
        causal=config.causal,
        mixing=mixing,
    )
    update = jnp.einsum("hde,hte->td", W_PV, jnp.einsum("htn,tnd->htd", attention, keys))
    if config.update == "targets":
        update = update.at[:, : -problem.context_targets.shape[-1]].set(0.0)
    moved = own + config.damping * update
    return moved if config.token_clip is None else jnp.clip(moved, -config.token_clip, config.token_clip)
