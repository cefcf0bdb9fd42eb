"""What the sine experiment trains: transformer and meta-learned MLP, on both variants of the waves."""

import dataclasses
from typing import Any

from innerloop.experiments.experiment import Preset
from innerloop.tasks import SineWaves
from innerloop.training import Recipe, published_sine, published_sine_control

VARIANTS = ("reference", "independent")
LEARNERS = ("trained", "mlp and gd")
STEPS: dict[Preset, int] = {"smoke": 100, "quick": 3000, "paper": 20_000}
"""Of the published variant."""
_INDEPENDENT_STEPS: dict[Preset, int] = {"smoke": 60, "quick": 3000, "paper": 10_000}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """Transformer and control for both variants, as published; half the steps for the variant that nobody published."""
    seeds = tuple(range(num_seeds or (2 if preset == "smoke" else 3)))
    built = {}
    for variant, steps in zip(VARIANTS, (STEPS, _INDEPENDENT_STEPS), strict=True):
        task = SineWaves(variant=variant)
        settings: dict[str, Any] = {"num_steps": steps[preset], "seeds": seeds}
        built[f"trained, {variant}"] = published_sine(task=task, **settings)
        built[f"mlp and gd, {variant}"] = published_sine_control(task=task, **settings)
    if preset == "smoke":
        return {
            name: dataclasses.replace(recipe, batch_size=64, evaluation_tasks=200, evaluation_interval=20)
            for name, recipe in built.items()
        }
    return built
