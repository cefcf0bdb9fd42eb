"""What the sine experiment trains: transformer and meta-learned MLP, on both variants of the waves."""

import dataclasses
from typing import Any

from innerloop.experiments.experiment import Preset
from innerloop.tasks import SineWaves
from innerloop.training import Recipe, published_sine, published_sine_control

VARIANTS = ("reference", "independent")
LEARNERS = ("trained", "mlp and gd")
STEPS: dict[Preset, int] = {"smoke": 60, "quick": 3000, "paper": 20_000}
_SEEDS: dict[Preset, int] = {"smoke": 2, "quick": 3, "paper": 5}


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """Transformer and control for both variants, as published."""
    seeds = tuple(range(num_seeds or _SEEDS[preset]))
    settings: dict[str, Any] = {"num_steps": STEPS[preset], "seeds": seeds}
    built = {}
    for variant in VARIANTS:
        task = SineWaves(variant=variant)
        built[f"trained, {variant}"] = published_sine(task=task, **settings)
        built[f"mlp and gd, {variant}"] = published_sine_control(task=task, **settings)
    if preset == "smoke":
        return {
            name: dataclasses.replace(recipe, batch_size=64, evaluation_tasks=200, evaluation_interval=20)
            for name, recipe in built.items()
        }
    return built
