"""One trained linear self-attention layer performs one step of gradient descent (Prop 1, Fig 1 right, 2, 6a, 9, 10)."""

from collections.abc import Mapping

from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.one_layer.figures import draw
from innerloop.experiments.one_layer.judge import equal_loss, judge, stable_tasks_note
from innerloop.experiments.one_layer.measure import measure
from innerloop.experiments.one_layer.proofs import proof_claims
from innerloop.experiments.one_layer.setting import MAIN, MAIN_LENGTH, SIZES, recipes
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Checks the proofs, measures the runs, judges both."""
    stage("proofs")
    claims = proof_claims()
    sizes = SIZES[preset]
    data = measure(runs, curve_tasks=sizes.curve_tasks, sweep_tasks=sizes.sweep_tasks, stage=stage)
    return Results(data, [*claims, *judge(data)], [stable_tasks_note(data)])


ONE_LAYER = Experiment(
    name="one-layer",
    question="Does a single trained linear self-attention layer perform one step of gradient descent?",
    source="Eq. 1-4, Prop 1, Fig 1 right, Fig 2, Fig 6a, Fig 9 (one layer), Fig 10, A.3, A.6",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=(
        "proofs",
        "alignment along training",
        "trained against constructed",
        "out of distribution",
        "repeated application",
        "context lengths",
    ),
    analysis_seconds={"smoke": 35.0, "quick": 65.0, "paper": 65.0},
)

__all__ = ["MAIN", "MAIN_LENGTH", "ONE_LAYER", "equal_loss", "recipes"]
