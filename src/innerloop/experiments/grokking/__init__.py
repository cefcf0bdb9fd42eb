"""Grokking: one block on 8192 fixed tasks, whose held-out loss rises far and falls to gradient descent's (Fig 15)."""

from collections.abc import Mapping

from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.grokking.figures import draw
from innerloop.experiments.grokking.judge import curve_note, judge, proportion_note
from innerloop.experiments.grokking.measure import STAGES, measure
from innerloop.experiments.grokking.setting import CHOSEN, recipes
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(runs, stage=stage)
    searched = f"The recipe is the candidate {CHOSEN.name!r} of the search; docs/experiments/grokking.md has them all."
    return Results(data, judge(data), [searched, curve_note(data), proportion_note(data)])


GROKKING = Experiment(
    name="grokking",
    question="Does a block on fixed tasks memorise them first and find gradient descent afterwards?",
    source="Fig 15 right",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=STAGES,
    analysis_seconds={"smoke": 3.0, "quick": 4.0, "paper": 4.0},
)

__all__ = ["GROKKING", "analyse", "draw", "recipes"]
