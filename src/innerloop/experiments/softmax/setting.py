"""What the softmax experiment trains: the published one-layer recipe with one and two heads of softmax."""

import dataclasses

from innerloop.experiments.experiment import Preset
from innerloop.models import StackConfig
from innerloop.training import Recipe, published

ONE, TWO = "one head", "two heads"


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """The published one-layer recipe with softmax: one head for 5000 steps, two for 10 000.

    `plateaus` looks at the same runs.
    """
    recipe = published(seeds=tuple(range(num_seeds or (2 if preset == "smoke" else 20))))
    recipe = dataclasses.replace(recipe, model=StackConfig(attention=("softmax",)), evaluation_interval=50)
    if preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=100, batch_size=64, evaluation_tasks=200)
    two = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_heads=2))
    if preset == "quick":
        recipe, two = (dataclasses.replace(one, num_steps=3000) for one in (recipe, two))
    elif preset == "paper":
        two = dataclasses.replace(two, num_steps=10_000)
    return {ONE: recipe, TWO: two}
