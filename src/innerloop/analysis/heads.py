"""What heads of softmax attention do together (Fig 12, A.9): their steps, their sum, and the first order of softmax.

With logits l_ij = s_ij / sqrt(key_size), softmax over N keys is to first order in the logits

    a_ij = (1 + l_ij - mean over j of l_ij) / N.

A head h whose P W_V keeps the target entry alone, times eta_h, then adds eta_h / N sum_j y_j (1 + l_ij - mean l_i) to
the query's target entry. Where the eta_h of all heads sum to zero only the logits are left, and the layer is the linear
one with sum_h eta_h W_{h,KQ} / (N sqrt(key_size)) on centred inputs, since the mean logit is that of the mean token: a
step of gradient descent on centred inputs, if that sum is a multiple of the identity.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.analysis.evaluation import over_tasks
from innerloop.models import Products, Transformer, attention_scores, attention_update
from innerloop.problem import Prediction, Problem
from innerloop.tasks import Sample


def head_steps(stack: Products) -> Float[Array, "*layers heads"]:
    """eta_h: the last diagonal entry of P W_V."""
    return stack.W_PV[..., -1, -1]


def combined_key_query(stack: Products) -> Float[Array, "*layers token_size token_size"]:
    """The sum over heads of eta_h W_{h,KQ}."""
    return jnp.einsum("...h,...hde->...de", head_steps(stack), stack.W_KQ)


def off_diagonal_share(matrix: Float[Array, "*batch token_size token_size"], input_size: int) -> Float[Array, "*batch"]:
    """Frobenius norm of the entries off the diagonal over that of the diagonal, in the columns that inputs meet.

    The columns of the query's target entries meet zeros (W0 = 0) and are left out.
    """
    read = matrix[..., :, :input_size]
    is_diagonal = jnp.eye(matrix.shape[-1], dtype=bool)[:, :input_size]
    squares = read**2
    diagonal = jnp.sum(jnp.where(is_diagonal, squares, jnp.zeros_like(squares)), axis=(-2, -1))
    return jnp.sqrt((jnp.sum(squares, axis=(-2, -1)) - diagonal) / diagonal)


def first_order_softmax(
    logits: Float[Array, "*heads tokens keys"], *, is_centred: bool = True
) -> Float[Array, "*heads tokens keys"]:
    """Softmax over keys to first order in the logits; without the mean logit, it no longer sums to one."""
    deviation = logits - jnp.mean(logits, axis=-1, keepdims=True) if is_centred else logits
    return (1 + deviation) / logits.shape[-1]


class FirstOrderSoftmax(eqx.Module):
    """A one-layer softmax transformer with its attention expanded to first order: a learner.

    Attributes:
        transformer: one layer of softmax attention alone.
        is_centred: keep the mean logit; without it, attention is linear but for a constant.
    """

    transformer: Transformer
    is_centred: bool = eqx.field(static=True, default=True)

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target."""
        tokens = self.transformer.tokens.encode(problem)
        update = attention_update(self._layer(), tokens, self.attention(problem))
        both = jnp.stack([tokens, tokens + self.transformer.config.damping * update])
        trajectory = self.transformer.tokens.query_prediction(both, problem)
        return Prediction(trajectory[-1], trajectory, None)

    def attention(self, problem: Problem) -> Float[Array, "heads tokens keys"]:
        """The expanded attention."""
        layer, tokens = self._layer(), self.transformer.tokens.encode(problem)
        scores = attention_scores(layer, tokens, self.transformer.config.num_keys(tokens.shape[0]))
        return first_order_softmax(scores / layer.W_K.shape[-2] ** 0.5, is_centred=self.is_centred)

    def _layer(self):
        config = self.transformer.config
        if config.num_layers != 1 or config.attention != ("softmax",) or config.layer_norm != "none":
            raise ValueError(
                f"the first order is of one layer of softmax attention without LayerNorm, got "
                f"num_layers={config.num_layers}, attention={config.attention}, layer_norm={config.layer_norm!r}"
            )
        attention = self.transformer.weights.attention
        return eqx.tree_at(
            lambda one: (one.W_K, one.W_Q, one.W_V, one.P),
            attention,
            (attention.W_K[0], attention.W_Q[0], attention.W_V[0], attention.P[0]),
        )


class ExpansionError(eqx.Module):
    """How far the first order is from softmax, as roots of ratios of means over tasks.

    Attributes:
        attention: of the query's attention, relative to its deviation from uniform attention; per head.
        prediction: of the prediction, relative to the prediction.
    """

    attention: Float[Array, " heads"]
    prediction: Float[Array, ""]


@eqx.filter_jit
def expansion_error(expansion: FirstOrderSoftmax, samples: Sample) -> ExpansionError:
    """Compares an expanded transformer with the transformer itself.

    Args:
        expansion: of a transformer.
        samples: the tasks, along the leading axis.
    """
    transformer = expansion.transformer

    def squares(sample: Sample):
        problem = sample.problem
        exact = transformer.attention_maps(problem)[0, :, -1]  # (heads, keys), as the query reads
        expanded = expansion.attention(problem)[:, -1]
        values = transformer(problem).value, expansion(problem).value
        attention = [jnp.sum(part**2, axis=-1) for part in (exact - expanded, exact - 1 / exact.shape[-1])]
        return attention, [jnp.sum(part**2) for part in (values[0] - values[1], values[0])]

    (missed, deviation), (difference, prediction) = jax.tree.map(
        lambda leaf: jnp.mean(leaf, axis=0), over_tasks(squares, samples)
    )
    return ExpansionError(jnp.sqrt(missed / deviation), jnp.sqrt(difference / prediction))
