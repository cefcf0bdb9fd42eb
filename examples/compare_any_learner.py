"""Is scikit-learn's ridge regression more like a trained transformer than gradient descent is?

Trains the paper's one-layer transformer for 1000 steps (a few seconds), then compares three learners with it on the
same tasks. Run: python examples/compare_any_learner.py (needs scikit-learn).
"""

from sklearn.linear_model import Ridge

import innerloop as il


def ridge(context_inputs, context_targets, query_input):
    """A learner from another library: fit on the context, predict the query."""
    model = Ridge(alpha=0.5, fit_intercept=False).fit(context_inputs, context_targets)
    return model.predict(query_input[None])[0]


def main() -> None:
    """Prints the alignment of three learners with the trained transformer."""
    recipe = il.published(seeds=(0,), num_steps=1000)
    transformer = il.obtain_run(recipe, "results/runs").transformer(0)
    samples = recipe.task.samples(il.root_key(7), 500)
    learners = {
        "one step of gradient descent": il.GradientDescent(il.optimal_learning_rate(recipe.task)),
        "two steps of gradient descent": il.GradientDescent(il.optimal_learning_rate(recipe.task), num_steps=2),
        "scikit-learn's ridge regression": il.from_callable(ridge),
    }
    for name, learner in learners.items():
        alignment = il.align(learner, transformer, samples)
        print(f"{name:32}  cosine {alignment.cosine:.4f}  prediction difference {alignment.prediction_difference:.4f}")


if __name__ == "__main__":
    main()
