"""What a stack predicts in many tasks at once, and how that changes with their queries: the code of analyses.

Predictions are those of `innerloop.kernels.kernel.query_target_entries`. Tasks are independent, so one pass back from
the predictions of all tasks gives the derivatives by all queries.

That pass is cheap where only what depends on a query is differentiated. In several layers of linear attention whose
keys are context tokens, the context moves by itself, and beside it the query by vectors alone; the training kernel
moves all tokens as one array (measured at the paper's sizes, per task and core: 4 against 13 us for five layers with a
token clip, of which the prediction takes 3.5; 21 us for `innerloop.models.run_stack` under ``vmap``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from innerloop.kernels.kernel import query_target_entries
from innerloop.kernels.linear_stack import linear_stack_entries_beside_context
from innerloop.models import StackConfig, StackWeights, products
from innerloop.problem import Problem
from innerloop.tasks import Batch
from innerloop.tokens import Tokens


class Responses(NamedTuple):
    """Predictions, and their derivatives by the queries.

    Attributes:
        predictions: yhat.
        sensitivities: d yhat / d x_q.
    """

    predictions: Float[Array, "tasks output_size"]
    sensitivities: Float[Array, "tasks output_size input_size"]


def stack_predictions(
    config: StackConfig, weights: StackWeights, tokens: Tokens, problems: Problem
) -> Float[Array, "tasks output_size"]:
    """Predictions after the last layer.

    Args:
        config: the architecture.
        weights: its parameters.
        tokens: the tokeniser.
        problems: the tasks' problems, along the leading axis.
    """
    encoded = _encode(tokens, problems, problems.query_input)
    return -query_target_entries(config, weights, encoded, problems.context_targets.shape[-1]).T


def stack_responses(config: StackConfig, weights: StackWeights, tokens: Tokens, problems: Problem) -> Responses:
    """Predictions after the last layer, and their derivatives by the queries; arguments as `stack_predictions`."""
    num_targets = problems.context_targets.shape[-1]

    def predict(queries: Float[Array, "tasks input_size"]) -> Float[Array, "tasks output_size"]:
        encoded = _encode(tokens, problems, queries)
        if _moves_context_alone(config, weights):
            context = _encode(tokens, problems, jax.lax.stop_gradient(queries))[:, :-1]
            entries = linear_stack_entries_beside_context(
                config, products(weights), context, encoded[:, -1], num_targets
            )
        else:
            entries = query_target_entries(config, weights, encoded, num_targets)
        return -entries.T

    predictions, pull_back = jax.vjp(predict, problems.query_input)
    of_output = jnp.eye(num_targets, dtype=predictions.dtype)
    sensitivities = [pull_back(jnp.broadcast_to(one, predictions.shape))[0] for one in of_output]
    return Responses(predictions, jnp.stack(sensitivities, axis=1))


def _moves_context_alone(config: StackConfig, weights: StackWeights) -> bool:
    """Whether several layers of linear attention alone move context tokens as if there were no query."""
    return config.is_linear and weights.embedding is None and config.num_layers > 1 and not config.query_in_keys


def _encode(
    tokens: Tokens, problems: Problem, queries: Float[Array, "tasks input_size"]
) -> Float[Array, "token_size tokens tasks"]:
    inputs = jnp.concatenate([problems.context_inputs, queries[:, None]], axis=1)
    unknown = jnp.zeros_like(problems.context_targets[:, :1])
    targets = jnp.concatenate([problems.context_targets, unknown], axis=1)
    return tokens.encode_batch(Batch(*(jnp.moveaxis(part, 0, -1).swapaxes(0, 1) for part in (inputs, targets))))
