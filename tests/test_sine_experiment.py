"""The sine experiment: its recipes, and its figure where variants train for different numbers of steps."""

import numpy as np
import xarray as xr

from innerloop.experiments import EXPERIMENTS
from innerloop.experiments.sine.figures import draw
from innerloop.experiments.sine.measure import MOMENTS
from innerloop.experiments.sine.setting import LEARNERS
from innerloop.plots import MEASURES


def test_the_published_variant_trains_the_published_steps():
    recipes = EXPERIMENTS["sine"].recipes("paper", None)
    steps = {name: recipe.num_steps for name, recipe in recipes.items()}
    assert steps == {
        "trained, reference": 20_000,
        "mlp and gd, reference": 20_000,
        "trained, independent": 10_000,
        "mlp and gd, independent": 10_000,
    }


def variant(steps: list[int]) -> xr.Dataset:
    """What is drawn of one variant, measured after these steps."""
    curve, learners, seeds = np.linspace(1.0, 0.1, len(steps)), len(LEARNERS), 2
    over_queries = ("learner", "task", "moment", "query")
    return xr.Dataset(
        {"loss": (("learner", "step", "seed"), np.tile(curve[:, None], (learners, 1, seeds)))}
        | {measure: (("curve_step", "seed"), np.tile(curve[:, None], seeds)) for measure in MEASURES}
        | {
            "prediction": (over_queries, np.zeros((learners, 2, 2, 3))),
            "wave": (("task", "query"), np.zeros((2, 3))),
            "context_input": (("task", "context"), np.zeros((2, 2))),
            "context_target": (("task", "context"), np.zeros((2, 2))),
        },
        {
            "learner": list(LEARNERS),
            "step": steps,
            "curve_step": steps,
            "seed": np.arange(seeds),
            "moment": list(MOMENTS),
            "task": np.arange(2),
            "query": np.arange(3.0),
            "context": np.arange(2),
        },
    )


def test_curves_are_whole_where_variants_differ_in_their_steps():
    steps = {"reference": [0, 100, 200, 300], "independent": [0, 50, 150]}
    parts = [variant(one).assign_coords(variant=name) for name, one in steps.items()]
    figure = draw(xr.concat(parts, "variant", join="outer"))["figure-4"]
    panels = figure.axes[:4]  # loss and differences of the one, then of the other; the cosines' axes follow
    for panel, expected in zip(panels, [one for one in steps.values() for _ in range(2)], strict=True):
        curves = [line for line in panel.get_lines() if len(line.get_xdata()) > 2]
        assert curves
        for line in curves:
            assert list(line.get_xdata()) == expected
            assert np.isfinite(line.get_ydata()).all()
