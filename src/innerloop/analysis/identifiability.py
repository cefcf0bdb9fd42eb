"""What a linear stack's predictions say about its weights, and comparing two stacks on that alone.

The paper compares trained and constructed weights up to a factor per layer, and does not say whether more is
undetermined when there are several layers. For stacks of linear attention with one head per layer, and W0 = 0, the
answer is:

- Only the products W_KQ and W_PV matter, and of these only some entries are *read*. In a last layer of its own (untied,
  or the only one) nothing reads what W_PV writes into the inputs; in the only layer of a stack, the query's target
  entry is still zero, so the last columns of W_KQ meet nothing.
- The entries that are read are determined, near gradient descent and GD++, up to one factor s per distinct layer:
  (W_KQ / s, s W_PV), its sign included. The residual stream pins every other change of basis down: a layer's update is
  added to tokens whose basis the data fixes.

(With W0 not zero the query's target entry is -W0 x_q, a function of its inputs; a single layer's W_KQ is then open in
further directions, and nothing is claimed.) ``tests/test_identifiability.py`` proves both locally, in float64: the
derivative of many predictions with respect to the products has exactly these null directions (for GD++ with one to
three layers, tied and untied).

What does not depend on s is the outer product of W_KQ and W_PV, and `compare_layers` compares that.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from innerloop.models import Products, StackConfig


class LayerComparison(eqx.Module):
    """How alike two stacks are, layer by layer, in what their predictions determine.

    Attributes:
        cosine: of the outer products W_KQ x W_PV; 1 for equal functions, whatever their factors s.
        distance: Frobenius norm of the difference of the outer products, relative to the second stack's.
    """

    cosine: Float[Array, "*layers heads"]
    distance: Float[Array, "*layers heads"]


def read_entries(
    config: StackConfig, *, input_size: int, output_size: int = 1, starts_at_zero: bool = True
) -> tuple[Bool[np.ndarray, "layers token_size token_size"], Bool[np.ndarray, "layers token_size token_size"]]:
    """Which entries of W_KQ and W_PV any prediction depends on, per distinct layer.

    Args:
        config: the architecture.
        input_size: n_i.
        output_size: n_o.
        starts_at_zero: W0 = 0, so that the query's target entries are zero before the first layer.
    """
    token_size = input_size + output_size
    shape = (config.num_distinct_layers, token_size, token_size)
    is_read_KQ, is_read_PV = np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)
    is_target = np.arange(token_size) >= input_size
    if not config.tied or config.num_layers == 1:
        is_read_PV[-1, ~is_target] = False
    if config.num_layers == 1 and starts_at_zero:
        is_read_KQ[-1][:, is_target] = False
    if config.update == "targets":
        is_read_PV[:, ~is_target] = False
    return is_read_KQ, is_read_PV


def compare_layers(
    stack: Products, other: Products, config: StackConfig, *, input_size: int, output_size: int = 1
) -> LayerComparison:
    """Compares two stacks of one architecture by what their predictions determine, both starting at W0 = 0.

    Args:
        stack: products of one head per layer.
        other: what it is compared with.
        config: the architecture of both.
        input_size: n_i.
        output_size: n_o.

    Raises:
        ValueError: for several heads, which may be mixed without changing a prediction.
    """
    if config.num_heads != 1:
        raise ValueError(
            f"comparing layers needs one head per layer, got num_heads={config.num_heads}: heads can be mixed freely"
        )
    is_read_KQ, is_read_PV = read_entries(config, input_size=input_size, output_size=output_size)

    def read(one: Products) -> Products:
        keep = (
            jnp.where(is_read[:, None], part, jnp.zeros_like(part))
            for is_read, part in ((is_read_KQ, one.W_KQ), (is_read_PV, one.W_PV))
        )
        return Products(*keep)

    ours, theirs = read(stack), read(other)
    inner = _inner(ours.W_KQ, theirs.W_KQ) * _inner(ours.W_PV, theirs.W_PV)
    squared = [_inner(one.W_KQ, one.W_KQ) * _inner(one.W_PV, one.W_PV) for one in (ours, theirs)]
    difference = jnp.maximum(squared[0] + squared[1] - 2 * inner, 0.0)
    return LayerComparison(inner / jnp.sqrt(squared[0] * squared[1]), jnp.sqrt(difference / squared[1]))


def match_gauge(stack: Products, reference: Products) -> Products:
    """Gives every layer the factor s with which its W_KQ comes closest to the reference's, up to a common size.

    W_KQ is divided by its projection on the reference's. With the construction as reference, W_KQ = diag(1, .., 1, 0),
    that is the paper's b, the mean of the first n_i diagonal entries; unlike b it is defined for any reference, such as
    another trained stack.
    """
    return stack.rescaled(_inner(stack.W_KQ, reference.W_KQ) / _inner(reference.W_KQ, reference.W_KQ))


def _inner(a: Float[Array, "*batch rows columns"], b: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch"]:
    return jnp.sum(a * b, axis=(-2, -1))
