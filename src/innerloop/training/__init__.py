"""Training: the recipe, its canonical JSON, and the compiled loop that yields states. No disk here."""

from innerloop.training.loop import (
    Measurement,
    TrainingState,
    held_out_batch,
    initial_state,
    numerics,
    recipe_held_out_loss,
    recipe_kernel,
    recipe_path,
    train,
)
from innerloop.training.optimizer import make_optimizer
from innerloop.training.parameters import Parameters, stack_weights
from innerloop.training.published import (
    expected,
    published,
    published_alternating,
    published_blocks,
    published_sine,
    published_sine_control,
    published_tuning,
)
from innerloop.training.recipe import OptimizerConfig, Recipe
from innerloop.training.serialise import recipe_from_json, recipe_to_json, structure

__all__ = [
    "Measurement",
    "OptimizerConfig",
    "Parameters",
    "Recipe",
    "TrainingState",
    "expected",
    "held_out_batch",
    "initial_state",
    "make_optimizer",
    "numerics",
    "published",
    "published_alternating",
    "published_blocks",
    "published_sine",
    "published_sine_control",
    "published_tuning",
    "recipe_from_json",
    "recipe_held_out_loss",
    "recipe_kernel",
    "recipe_path",
    "recipe_to_json",
    "stack_weights",
    "structure",
    "train",
]
