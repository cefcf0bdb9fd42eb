"""One and two heads of softmax attention against one step of gradient descent (Fig 11, 12, A.9)."""

from collections.abc import Mapping

from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.softmax.figures import draw
from innerloop.experiments.softmax.judge import judge, notes
from innerloop.experiments.softmax.measure import measure_runs
from innerloop.experiments.softmax.setting import ONE, TWO, recipes
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure_runs(preset, runs, stage)
    return Results(data, judge(data), notes(preset, data))


SOFTMAX = Experiment(
    name="softmax",
    question="Do heads of softmax attention perform a step of gradient descent?",
    source="Fig 11, Fig 12, A.9",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=(ONE, TWO, "controls"),
    analysis_seconds={"smoke": 15.0, "quick": 35.0, "paper": 35.0},
)

__all__ = ["SOFTMAX", "analyse", "draw", "recipes"]
