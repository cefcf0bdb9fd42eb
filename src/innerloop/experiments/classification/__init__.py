"""Classification in context: does a layer that is trained on cross-entropy take a gradient step on it?"""

from collections.abc import Mapping

from innerloop.experiments.classification.figures import draw
from innerloop.experiments.classification.judge import judge, notes
from innerloop.experiments.classification.measure import SIZES, measure
from innerloop.experiments.classification.proofs import proof_claims
from innerloop.experiments.classification.setting import LINEAR, SOFTMAX, recipes
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.runs import Run

_PROOFS = "constructions"


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(runs, sizes=SIZES[preset], stage=stage)
    stage(_PROOFS)
    return Results(data, [*proof_claims(), *judge(data)], notes(data))


CLASSIFICATION = Experiment(
    name="classification",
    question="Does a layer trained on cross-entropy take a step of gradient descent on it?",
    source="discussion (open in the paper)",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=(*LINEAR, *SOFTMAX, _PROOFS),
    analysis_seconds={"smoke": 25.0, "quick": 60.0, "paper": 85.0},
)

__all__ = ["CLASSIFICATION", "analyse", "draw", "recipes"]
