"""What a recipe trains: every weight of the stack, or the few numbers from which its weights follow.

The paper tunes GD++ as it trains transformers, by Adam on batches of tasks. Here that is the same loop: a recipe with
``gd_plus_plus_from`` trains step sizes and corrections, and the stack's weights are the construction with them.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from innerloop.constructions import gradient_descent_plus_plus_weights
from innerloop.models import StackWeights, initialise
from innerloop.training.recipe import Recipe


class GradientDescentPlusPlusNumbers(eqx.Module):
    """The trained numbers of GD++, one per distinct layer.

    Attributes:
        step_size: c = eta / N, as it stands in the weights.
        curvature_correction: gamma.
    """

    step_size: Float[Array, "*seeds layers"]
    curvature_correction: Float[Array, "*seeds layers"]


Parameters = StackWeights | GradientDescentPlusPlusNumbers


def initial_parameters(recipe: Recipe, key: Key[Array, ""]) -> Parameters:
    """What training starts from; GD++ starts at the recipe's numbers, the same for every seed."""
    if recipe.gd_plus_plus_from is None:
        return initialise(recipe.model, recipe.token_size, key, scale=recipe.init_scale, dtype=recipe.dtype)
    learning_rate, correction = recipe.gd_plus_plus_from
    layers = recipe.model.num_distinct_layers
    return GradientDescentPlusPlusNumbers(
        jnp.full(layers, learning_rate / recipe.task.context_length, dtype=recipe.dtype),
        jnp.full(layers, correction, dtype=recipe.dtype),
    )


def stack_weights(recipe: Recipe, parameters: Parameters) -> StackWeights:
    """The weights that the parameters stand for; call it under `innerloop.training.numerics`."""
    if isinstance(parameters, StackWeights):
        return parameters
    return gradient_descent_plus_plus_weights(
        input_size=recipe.task.input_size,
        output_size=recipe.task.output_size,
        context_length=recipe.task.context_length,
        learning_rate=parameters.step_size * recipe.task.context_length,
        curvature_correction=parameters.curvature_correction,
        initial_weights=recipe.tokens().initial_weights,
    )
