"""What is measured of sine waves: losses, alignment before and after the step, and some functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from innerloop.analysis import Alignment, align, over_learners, task_losses
from innerloop.experiments.along_training import curve_points, snapshot
from innerloop.experiments.experiment import Variables
from innerloop.experiments.sine.setting import LEARNERS
from innerloop.keys import named_key, root_key
from innerloop.models import Transformer
from innerloop.plots import MEASURES
from innerloop.problem import Problem
from innerloop.runs import Run
from innerloop.tasks import Sample, SineWaves
from innerloop.training import held_out_batch

EARLY = 0.05
"""The control of losses is the transformer after this share of its training; that of functions, the wrong moment."""
MOMENTS = ("before", "after")
_CURVE_TASKS = 2000
_SHOWN_TASKS, _GRID = 4, np.linspace(-5, 5, 201)
_LOSS_UNITS = {"units": "half squared error, mean over tasks"}


def measure_variant(trained: Run, control: Run) -> xr.Dataset:
    """One variant: losses and alignment along training, at the end, and of the early transformers; some functions."""
    samples = held_out_batch(trained.recipe).samples()
    few = jax.tree.map(lambda leaf: leaf[:_CURVE_TASKS], samples)
    steps = trained.metrics["step"].values
    points = curve_points(trained)
    early_point = max(1, round(EARLY * (len(steps) - 1)))
    learners = trained.transformers(), control.transformers()
    early = snapshot(trained, early_point)
    curves = []
    for point in map(int, points):
        pair = snapshot(trained, point), snapshot(control, point)
        curves.append(_alignment(pair, few, step=1, other_step=1))
    variables: Variables = {
        "loss": (
            ("learner", "step", "seed"),
            np.stack([run.metrics["evaluation_loss"].values for run in (trained, control)]),
            _LOSS_UNITS,
        ),
        "final_loss": (("learner", "seed"), np.stack([_losses(one, samples) for one in learners]), _LOSS_UNITS),
        "early_loss": (("seed",), np.asarray(_losses(early, samples)), _LOSS_UNITS),
        "early_step": ((), np.asarray(steps[early_point]), {"units": "training step"}),
    }
    for measure in MEASURES:
        units = {"units": f"{measure}, mean over tasks"}
        variables[measure] = (("curve_step", "seed"), np.stack([one[measure] for one in curves]), units)
    for prefix, other_steps in (("final", (0, 1)), ("crossed", (1, 0))):
        measured = [
            _alignment(learners, samples, step=step, other_step=other) for step, other in enumerate(other_steps)
        ]
        for measure in MEASURES:
            values = np.stack([one[measure] for one in measured])
            variables[f"{prefix}_{measure}"] = (("moment", "seed"), values, {"units": f"{measure}, mean over tasks"})
    coordinates = {
        "learner": list(LEARNERS),
        "step": steps,
        "curve_step": steps[points],
        "seed": np.asarray(trained.recipe.seeds),
        "moment": list(MOMENTS),
        "task": np.arange(_SHOWN_TASKS),
        "query": _GRID,
        "context": np.arange(trained.recipe.task.context_length),
    }
    assert isinstance(trained.recipe.task, SineWaves)
    return xr.Dataset(variables | _functions(learners, trained.recipe.task), coordinates)


@eqx.filter_jit
def _losses(learners: Transformer, samples: Sample) -> Float[Array, " seeds"]:
    return over_learners(lambda one: jnp.mean(task_losses(one, samples)), learners)


@eqx.filter_jit
def _aligned(pairs: tuple[Transformer, Transformer], samples: Sample, step: int, other_step: int) -> Alignment:
    def one_pair(pair: tuple[Transformer, Transformer]) -> Alignment:
        trained, control = pair
        return align(trained, control, samples, step=step, other_step=other_step)

    return over_learners(one_pair, pairs)


def _alignment(
    pairs: tuple[Transformer, Transformer], samples: Sample, *, step: int, other_step: int
) -> dict[str, np.ndarray]:
    """Measures by name, one value per seed: transformer against MLP and GD of the same seed."""
    aligned = _aligned(pairs, samples, step, other_step)
    return {measure: np.asarray(getattr(aligned, measure)) for measure in MEASURES}


def _functions(learners: tuple[Transformer, Transformer], task: SineWaves) -> Variables:
    """The first seed's predictions on a grid of queries for a few tasks, before and after the step; and the waves."""
    draw = task.draw(named_key(root_key(0), "functions"), _SHOWN_TASKS)
    problems = task.assemble(draw).samples().problem
    grid = jnp.asarray(_GRID, dtype=draw.inputs.dtype)
    on_grid = jnp.broadcast_to(grid[None, :, None] / task.input_range, (1, len(_GRID), _SHOWN_TASKS))
    waves = task.assemble(draw._replace(inputs=on_grid)).targets[0].T  # (task, query)
    first_seeds = jax.tree.map(lambda leaf: leaf[0], learners)
    curves = [np.asarray(_curves(learner, problems, grid)) for learner in first_seeds]
    return {
        "prediction": (("learner", "task", "moment", "query"), np.stack(curves), {"units": "y"}),
        "wave": (("task", "query"), np.asarray(waves), {"units": "y"}),
        "context_input": (("task", "context"), np.asarray(problems.context_inputs)[..., 0], {"units": "x"}),
        "context_target": (("task", "context"), np.asarray(problems.context_targets)[..., 0], {"units": "y"}),
    }


@eqx.filter_jit
def _curves(learner: Transformer, problems: Problem, grid: Float[Array, " query"]) -> Float[Array, "task moment query"]:
    def prediction(problem: Problem, query: Float[Array, ""]):
        return learner(Problem(problem.context_inputs, problem.context_targets, query[None])).trajectory[:, 0]

    over_grid = jax.vmap(prediction, in_axes=(None, 0), out_axes=-1)
    return jax.vmap(over_grid, in_axes=(0, None))(problems, grid)
