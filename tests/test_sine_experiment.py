"""The sine experiment's recipes: what `paper` says that it trains."""

import pytest

from innerloop.experiments import EXPERIMENTS


@pytest.mark.parametrize(("preset", "num_steps", "num_seeds"), [("paper", 20_000, 5), ("quick", 3000, 3)])
def test_both_variants_train_equally_long(preset, num_steps, num_seeds):
    recipes = EXPERIMENTS["sine"].recipes(preset, None)
    assert set(recipes) == {
        f"{learner}, {variant}" for learner in ("trained", "mlp and gd") for variant in ("reference", "independent")
    }
    assert {recipe.num_steps for recipe in recipes.values()} == {num_steps}
    assert {recipe.seeds for recipe in recipes.values()} == {tuple(range(num_seeds))}
