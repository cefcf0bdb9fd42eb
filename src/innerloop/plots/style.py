"""One look for every figure: one colour and marker per learner everywhere, from a colour-blind safe palette."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

# Okabe and Ito's palette.
_LEARNERS: dict[str, dict[str, Any]] = {
    # Equal learners lie on one another: the widest line is drawn first, then dots, then thin crosses.
    "gradient descent": {
        "color": "#D55E00",
        "marker": "v",
        "label": "gradient descent",
        "linewidth": 3.5,
        "markersize": 9,
    },
    "gradient descent, per step": {
        "color": "#E69F00",
        "marker": "^",
        "label": "gradient descent, a rate per step",
        "linewidth": 2,
    },
    "gd++": {"color": "#CC79A7", "marker": "s", "label": "GD++", "linewidth": 3.5, "markersize": 7},
    "gd++, per step": {"color": "#56B4E9", "marker": "D", "label": "GD++, numbers per step", "linewidth": 2},
    "gd++, tuned exactly": {
        "color": "#56B4E9",
        "marker": "D",
        "label": "GD++, tuned exactly",
        "linewidth": 2,
        "linestyle": "-.",
    },
    "centred gd": {
        "color": "#E69F00",
        "marker": "^",
        "label": "gradient descent, inputs centred",
        "linewidth": 2,
        "linestyle": "-.",
    },
    "interpolated": {
        "color": "#009E73",
        "marker": "o",
        "label": "interpolated",
        "linestyle": "",
        "markersize": 11,
        "fillstyle": "none",
    },
    "trained": {
        "color": "#0072B2",
        "marker": "+",
        "label": "trained transformer",
        "linewidth": 1.3,
        "markersize": 13,
        "markeredgewidth": 2,
    },
    "two steps": {"color": "#E69F00", "marker": "^", "label": "two tuned steps", "linewidth": 2},
    "five steps": {"color": "#56B4E9", "marker": "D", "label": "five tuned steps", "linewidth": 2},
    "kernel smoothing": {"color": "#009E73", "marker": "o", "label": "kernel smoothing", "linewidth": 2},
    "logistic regression": {"color": "#CC79A7", "marker": "s", "label": "logistic regression", "linewidth": 2},
    "mlp and gd": {"color": "#D55E00", "marker": "v", "label": "MLP + one GD step", "linewidth": 2.5},
    "control": {"color": "#999999", "marker": "x", "label": "control"},
    "trivial": {"color": "#777777", "linestyle": "--", "label": "predicting zero"},
    "bayes": {"color": "#000000", "linestyle": ":", "label": "Bayes-optimal"},
}
MEASURES: dict[str, dict[str, Any]] = {
    "cosine": {"color": "#0072B2", "label": "cosine"},
    "model_difference": {"color": "#E69F00", "label": "model difference"},
    "prediction_difference": {"color": "#CC79A7", "label": "prediction difference"},
}


def learner_style(name: str) -> dict[str, Any]:
    """Colour, marker and label of a learner, as keyword arguments for matplotlib.

    Raises:
        ValueError: for a learner without a style.
    """
    if name not in _LEARNERS:
        raise ValueError(f"no style for learner {name!r}; known are {', '.join(_LEARNERS)}; add it to plots/style.py")
    return dict(_LEARNERS[name])


@contextmanager
def house_style() -> Iterator[None]:
    """Draws what is inside in the house style."""
    import matplotlib.style

    with (
        resources.as_file(resources.files("innerloop.plots") / "innerloop.mplstyle") as path,
        matplotlib.style.context(path),
    ):
        yield
