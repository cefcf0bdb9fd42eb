"""What a recipe trains: every weight of the stack, or those numbers from which its weights follow.

The paper tunes its controls as it trains transformers, by Adam on batches of tasks. Here that is the same loop: a
recipe with ``gd_plus_plus_from`` trains step sizes and corrections, and the stack's weights are the construction with
them; one with ``gd_on_features`` trains an embedding, below the constructed gradient step of Proposition 2.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from innerloop.constructions import feature_descent_weights, gradient_descent_plus_plus_weights
from innerloop.keys import named_key
from innerloop.models import EmbeddingWeights, MLPWeights, StackWeights, initialise
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens
from innerloop.training.recipe import Recipe


class GradientDescentPlusPlusNumbers(eqx.Module):
    """The trained numbers of GD++, one per distinct layer.

    Attributes:
        step_size: c = eta / N, as it stands in the weights.
        curvature_correction: gamma.
    """

    step_size: Float[Array, "*seeds layers"]
    curvature_correction: Float[Array, "*seeds layers"]


Parameters = StackWeights | GradientDescentPlusPlusNumbers | EmbeddingWeights


def initial_parameters(recipe: Recipe, key: Key[Array, ""]) -> Parameters:
    """What training starts from; GD++ starts at the recipe's numbers, the same for every seed."""
    if recipe.gd_plus_plus_from is None:
        weights = initialise(
            recipe.model,
            recipe.token_size,
            key,
            scale=recipe.init_scale,
            dtype=recipe.dtype,
            learned_codes=_learned_codes(recipe),
            placement=recipe.positions.placement,
        )
        if recipe.gd_on_features is None:
            return weights
        assert weights.embedding is not None
        return _redrawn(weights.embedding, named_key(key, "features"), recipe)
    learning_rate, correction = recipe.gd_plus_plus_from
    layers = recipe.model.num_distinct_layers
    return GradientDescentPlusPlusNumbers(
        jnp.full(layers, learning_rate / recipe.task.context_length, dtype=recipe.dtype),
        jnp.full(layers, correction, dtype=recipe.dtype),
    )


def _redrawn(embedding: EmbeddingWeights, key: Key[Array, ""], recipe: Recipe) -> EmbeddingWeights:
    """An embedding drawn as the published code draws the control's: wider than a transformer's.

    Normal entries of variance ``init_scale`` over the raw token's size for W_E and W_1, over the
    embedded token's for W_2.
    """

    def draw(name: str, like: Float[Array, "rows columns"], fan_in: int) -> Float[Array, "rows columns"]:
        scale = (recipe.init_scale / fan_in) ** 0.5
        return scale * jax.random.normal(named_key(key, name), like.shape, like.dtype)

    mlp, W_E = embedding.mlp, embedding.W_E
    if mlp is not None:
        width = mlp.W_2.shape[0]
        W_1, W_2 = draw("W_1", mlp.W_1, recipe.token_size), draw("W_2", mlp.W_2, width)
        mlp = MLPWeights(W_1, W_2, mlp.b_1, mlp.b_2)
    return EmbeddingWeights(None if W_E is None else draw("W_E", W_E, recipe.token_size), mlp)


def stack_weights(recipe: Recipe, parameters: Parameters) -> StackWeights:
    """The weights that the parameters stand for; call it under `innerloop.training.numerics`."""
    if isinstance(parameters, StackWeights):
        return parameters
    if isinstance(parameters, EmbeddingWeights):
        assert recipe.gd_on_features is not None
        return feature_descent_weights(
            parameters,
            output_size=recipe.task.output_size,
            context_length=recipe.task.context_length,
            learning_rate=recipe.gd_on_features,
        )
    tokens = recipe.tokens()
    assert isinstance(tokens, ConcatenatedTokens)
    return gradient_descent_plus_plus_weights(
        input_size=recipe.task.input_size,
        output_size=recipe.task.output_size,
        context_length=recipe.task.context_length,
        learning_rate=parameters.step_size * recipe.task.context_length,
        curvature_correction=parameters.curvature_correction,
        initial_weights=tokens.initial_weights,
    )


def _learned_codes(recipe: Recipe) -> tuple[int, int] | None:
    """Number and size of the positional codes to train; None where there are none."""
    tokens = recipe.tokens()
    if not isinstance(tokens, AlternatingTokens) or recipe.positions.kind != "learned":
        return None
    content_size = tokens.content_size(recipe.task.input_size, recipe.task.output_size)
    return recipe.num_tokens, recipe.positions.code_size(recipe.num_tokens, content_size)
