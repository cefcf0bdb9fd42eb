"""Noise inside the hypothesis: what do layers do about noisy targets, and what does weight decay do to layers?"""

from collections.abc import Mapping

from innerloop.experiments.experiment import Experiment, Preset, Results, Stage
from innerloop.experiments.noise.figures import draw
from innerloop.experiments.noise.judge import judge, loss_note, nearest_note
from innerloop.experiments.noise.measure import STAGES, measure
from innerloop.experiments.noise.proofs import proof_claims
from innerloop.experiments.noise.setting import FIVE, NOISE_LEVELS, label, recipes
from innerloop.runs import Run


def analyse(preset: Preset, runs: Mapping[str, Run], stage: Stage) -> Results:
    """Measures and judges."""
    data = measure(preset, runs, stage=stage)
    notes = [nearest_note(data), loss_note(data)]
    if preset == "quick":
        batch_size = runs[label(FIVE, NOISE_LEVELS[0])].recipe.batch_size
        notes.append(f"quick trains five layers on batches of {batch_size} tasks, --preset paper on 2048.")
    stage(STAGES[-1])
    return Results(data, [*proof_claims(), *judge(data)], notes)


NOISE = Experiment(
    name="noise",
    question="What do layers do about noisy targets: which algorithm, and does weight decay belong to it?",
    source="discussion, published code",
    recipes=recipes,
    analyse=analyse,
    draw=draw,
    stages=STAGES,
    analysis_seconds={"smoke": 30.0, "quick": 70.0, "paper": 70.0},
)

__all__ = ["NOISE", "analyse", "draw", "recipes"]
