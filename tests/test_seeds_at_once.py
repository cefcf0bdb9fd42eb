"""On an accelerator all seeds run under one ``vmap``; the results are those of the CPU's loop, up to rounding."""

import dataclasses

import jax
import numpy as np

from innerloop.tasks import LinearRegression
from innerloop.training import Recipe, train
from innerloop.training import loop as training_loop

RECIPE = Recipe(
    task=LinearRegression(input_size=3, context_length=5),
    num_steps=20,
    evaluation_interval=10,
    batch_size=16,
    evaluation_tasks=32,
    seeds=(0, 1, 2),
)


def final_weights(recipe):
    *_, (state, _) = train(recipe)
    return jax.tree.leaves(state.parameters)


def test_seeds_under_one_vmap_train_the_same_weights(monkeypatch):
    one_by_one = final_weights(RECIPE)
    # Another recipe in name only, so that no compiled program is used again.
    monkeypatch.setattr(training_loop.jax, "default_backend", lambda: "gpu")
    together = final_weights(dataclasses.replace(RECIPE, evaluation_tasks=31))
    for ours, theirs in zip(one_by_one, together, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
