"""How much arithmetic a batch's loss and gradient take, counted by formulas.

For stacks of linear attention: additions and multiplications of the arrangement that the native kernel uses
(``docs/native.md``), leading terms only, per task, with N context tokens (2 N of them where
x and y alternate), tokens of width d, H heads and K layers:

    one layer                           8 H N d + 8 H d^2
    K >= 2, no clip (Gram form)         N d^2 + (K - 2)(12 H + 8) d^3 + (1 + 2 H)(16 H + 2) d^2
    K >= 2, token clip (token form)     (K - 2)(9 N d^2 + 12 H d^3) + 5 N d^2 + 4 H d^3 + (1 + 2 H)(14 H + 2) d^2
                                        + 16 H N d + 8 H d^2

(where no token reaches the clip) and 2 N n_i n_o for the targets. With h hidden units per MLP and f = 20 for a GELU or
an exponential, blocks of linear attention and an MLP take

    linear attention and MLPs           (K - 1)(9 N d^2 + 12 H d^3) + 8 H N d + 8 H d^2
                                        + ((K - 1)(N + 1) + 1)(12 d h + 3 f h)

and any other stack three times the forward pass. In `innerloop.kernels.general_stack` the last layer moves the query
alone, so that (K - 1)(N + 1) + 1 tokens are moved, or, where the last layer is linear attention on what the attention
before it leaves, (K - 2)(N + 1) + 1, and N + 1 are read by the layer before the last and left in place:

    per token moved                     6 (2 H d^2 + 2 H N d + 2 d h) + 3 f (h + H N)
    per token left in place             6 (H d^2 + H N d) + 3 f H N
    embedding and input MLP, per token  6 (d (n_i + n_o) + 2 d h) + 3 f h

and in `innerloop.kernels.embedded_layer` context tokens are read through their hidden units (N times) and the query
through its embedding (once), with t = n_i + n_o:

    per context token                   6 (t h + H (1 + n_o) (t + h)) + 3 f h
    per query                           6 (d t + 2 d h + H d (d + t + h)) + 3 f h

Random numbers are no arithmetic in this sense; `random_words` counts them.
"""

import dataclasses

import jax

from innerloop.kernels.embedded_layer import serves_embedded_layer
from innerloop.kernels.general_stack import ends_in_dot_products
from innerloop.keys import root_key
from innerloop.models import StackConfig
from innerloop.tasks import Task
from innerloop.tokens import ConcatenatedTokens, Tokens

_SPECIAL_FUNCTION = 20


def operations_per_task(config: StackConfig, task: Task, tokens: Tokens | None = None) -> int:
    """Floating-point operations of loss and gradient, per task; tokens are concatenated unless given.

    >>> from innerloop.tasks import LinearRegression
    >>> operations_per_task(StackConfig(), LinearRegression())  # 8 * 10 * 11 + 8 * 11 * 11 + 2 * 10 * 10
    2048
    """
    context, width = _context_and_width(task, tokens)
    has_mlps = config.mlp == "block"
    if not dataclasses.replace(config, mlp="none" if has_mlps else config.mlp).is_linear:
        return _general_operations(config, context, width, task.output_size)
    heads = config.num_heads
    targets = 2 * task.context_length * task.input_size * task.output_size
    last_layer = 8 * heads * context * width + 8 * heads * width**2
    full_token_layer = 9 * context * width**2 + 12 * heads * width**3
    if has_mlps:
        full_layers, hidden = config.num_layers - 1, config.mlp_widening * width
        moved = (full_layers * (context + 1) + 1) * (12 * width * hidden + 3 * _SPECIAL_FUNCTION * hidden)
        return targets + full_layers * full_token_layer + last_layer + moved
    if config.num_layers == 1:
        return targets + last_layer
    if config.token_clip is not None:
        moved = 5 * context * width**2 + 4 * heads * width**3
        differentiated = (1 + 2 * heads) * (14 * heads + 2) * width**2 + 8 * heads * context * width
        return targets + (config.num_layers - 2) * full_token_layer + moved + differentiated + last_layer
    full_layer = (12 * heads + 8) * width**3
    last_two = (1 + 2 * heads) * (16 * heads + 2) * width**2
    return targets + context * width**2 + (config.num_layers - 2) * full_layer + last_two


def random_words(task: Task) -> int:
    """Random numbers per task.

    >>> from innerloop.tasks import LinearRegression
    >>> random_words(LinearRegression())  # 11 * 10 + 10
    120
    """
    draw = jax.eval_shape(lambda: task.draw(root_key(0), 1))
    return sum(leaf.size for leaf in jax.tree.leaves(draw))


def _context_and_width(task: Task, tokens: Tokens | None) -> tuple[int, int]:
    """Number of context tokens and entries of each."""
    num_tokens, width = (ConcatenatedTokens() if tokens is None else tokens).shape(
        input_size=task.input_size, output_size=task.output_size, context_length=task.context_length
    )
    return num_tokens - 1, width


def _general_operations(config: StackConfig, context: int, token_size: int, output_size: int) -> int:
    heads = config.num_heads
    width = token_size if config.embedding_size is None else config.embedding_size
    hidden = 0 if config.mlp == "none" else config.mlp_widening * width
    in_block, in_input = (hidden if config.mlp == place else 0 for place in ("block", "input"))
    embedded = 6 * (width * token_size * (config.embedding_size is not None) + 2 * width * in_input)
    embedded += 3 * _SPECIAL_FUNCTION * in_input
    if serves_embedded_layer(config):
        read = 6 * (token_size * in_input + heads * (1 + output_size) * (token_size + in_input))
        read += 3 * _SPECIAL_FUNCTION * in_input
        return context * read + embedded + 6 * heads * width * (width + token_size + in_input)
    moved = 6 * (2 * heads * width**2 + 2 * heads * context * width + 2 * width * in_block)
    moved += 3 * _SPECIAL_FUNCTION * (in_block + heads * context)
    left = 6 * heads * (width**2 + context * width) + 3 * _SPECIAL_FUNCTION * heads * context
    below_last = (config.num_layers - 1) * moved
    if ends_in_dot_products(config):
        below_last += left - moved
    return (context + 1) * (below_last + embedded) + moved
