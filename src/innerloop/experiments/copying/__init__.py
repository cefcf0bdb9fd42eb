"""Alternating tokens: a softmax layer copies a neighbouring token before a linear layer can descend (Fig 5, A.5)."""

from collections.abc import Mapping

from innerloop.experiments.copying.figures import draw
from innerloop.experiments.copying.judge import judge, reached_note, sensitivity_note
from innerloop.experiments.copying.measure import SIZES, STAGES, measure
from innerloop.experiments.copying.proofs import proof_claims
from innerloop.experiments.copying.setting import MAIN, recipes
from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(runs, sizes=SIZES[preset], stage=stage)
    notes = [reached_note(data), sensitivity_note(data)]
    if preset != "paper":
        recipe = runs[MAIN].recipe
        notes.append(
            f"{preset} trains a smaller problem, N = n_i = {recipe.task.context_length}, for {recipe.num_steps} steps "
            f"of {recipe.batch_size} tasks at learning rate {recipe.optimizer.learning_rate:g}; --preset paper trains "
            "the published one."
        )
    stage(STAGES[-1])
    return Results(data, [*proof_claims(), *judge(data)], notes)


COPYING = Experiment(
    name="copying",
    question="Can attention bring x and y together, if they come as tokens of their own?",
    source="Fig 5, Prop 3, A.5",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=STAGES,
    analysis_seconds={"smoke": 10.0, "quick": 40.0, "paper": 55.0},
)

__all__ = ["COPYING", "analyse", "draw", "recipes"]
