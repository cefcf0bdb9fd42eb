"""A trained stack beside as many steps of tuned gradient descent: what softmax, LayerNorm and finite data share.

``algorithm`` runs over what alignment is measured with, ``learner`` over everyone whose loss is measured, ``swept``
over those that are taken out of distribution. Gradient descent comes first, its near miss is the control.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus, Trivial
from innerloop.exact import optimal_learning_rate, trivial_loss, tune, tuning_spectra
from innerloop.experiments.along_training import MEASURES, align_seeds, alignments, curve_points, training_curves
from innerloop.experiments.lineup import Lineup, mean_loss
from innerloop.experiments.shifts import INPUT_SCALES, input_losses
from innerloop.models import Transformer
from innerloop.plots import learner_style, line_with_band
from innerloop.problem import Learner, Prediction, Problem
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import held_out_batch

DESCENT, PLUS_PLUS, CONTROL = "gradient descent", "gd++", "control"
NEAR_MISS = 0.9
"""The control's learning rate, relative to the best: 10 % off."""

_LOSS = {"units": "half squared error, mean over tasks"}


class Rivals(NamedTuple):
    """A run with the algorithms that it is compared with.

    Attributes:
        task: of the run.
        algorithms: tuned, by name; gradient descent first.
        control: gradient descent with its learning rate 10 % off.
        trained: the trained transformers, stacked over seeds.
        held_out: the run's held-out tasks.
    """

    task: LinearRegression
    algorithms: dict[str, Learner]
    control: Learner
    trained: Transformer
    held_out: Sample

    @property
    def num_seeds(self) -> int:
        """How many trained stacks there are."""
        return self.trained.weights.attention.W_K.shape[0]

    def lineup(self, *names: str) -> Lineup:
        """The named algorithms (all by default), the control and the trained stacks."""
        chosen = {name: self.algorithms[name] for name in names or self.algorithms}
        return Lineup({**chosen, CONTROL: self.control}, {"trained": self.trained}, self.num_seeds)


def descend(learning_rate: float, num_steps: int = 1) -> GradientDescent:
    """Gradient descent whose learning rate is an array, so that programs are compiled once for all of them."""
    return GradientDescent(jnp.asarray(learning_rate, dtype=jnp.float32), num_steps)


class FirstPairs(eqx.Module):
    """A learner that sees the first pairs of the context only."""

    learner: Learner
    num_pairs: int = eqx.field(static=True)

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts the query's target."""
        inputs, targets = (part[: self.num_pairs] for part in (problem.context_inputs, problem.context_targets))
        return self.learner(Problem(inputs, targets, problem.query_input))


def rivals(run: Run, *, num_contexts: int = 20_000, others: dict[str, Learner] | None = None) -> Rivals:
    """Tunes gradient descent, and GD++ for several layers, with as many steps as the run's stack has layers.

    Args:
        run: the trained stacks.
        num_contexts: in each set on which several steps are tuned; one step has a closed form.
        others: further algorithms to compare with.
    """
    task, num_steps = run.recipe.linear_task(), run.recipe.model.num_layers
    algorithms: dict[str, Learner] = {}
    if num_steps == 1:
        learning_rate = optimal_learning_rate(task)
    else:
        learning_rate, plus_plus = _tuned(task, num_steps, num_contexts)
        algorithms[PLUS_PLUS] = plus_plus
    algorithms = {DESCENT: descend(learning_rate, num_steps), **algorithms, **(others or {})}
    control = descend(NEAR_MISS * learning_rate, num_steps)
    return Rivals(task, algorithms, control, run.transformers(), held_out_batch(run.recipe).samples())


@lru_cache(maxsize=8)
def _tuned(task: LinearRegression, num_steps: int, num_contexts: int) -> tuple[float, GradientDescentPlusPlus]:
    """The best shared learning rate of gradient descent, and tuned GD++; stacks of one depth share them."""
    spectra = tuning_spectra(task, num_contexts=num_contexts)
    descent = tune(task, num_steps, algorithm="gd", spectra=spectra)
    tuned = tune(task, num_steps, algorithm="gd++", spectra=spectra)
    eta, gamma = (
        jnp.asarray(numbers[0], dtype=jnp.float32) for numbers in (tuned.learning_rates, tuned.curvature_corrections)
    )
    return float(descent.learning_rates[0]), GradientDescentPlusPlus(eta, gamma, num_steps)


def measure(run: Run, here: Rivals, *, curve_tasks: int, sweep_tasks: int = 0) -> xr.Dataset:
    """Losses and alignment along training and in the end, and losses on scaled inputs.

    Args:
        run: the trained stacks.
        here: whom they are compared with.
        curve_tasks: tasks per point of the alignment curves.
        sweep_tasks: tasks per point of the sweep of input scales, by gradient descent, GD++, control and stacks; 0
            leaves it out.
    """
    tasks = jax.tree.map(lambda leaf: leaf[:curve_tasks], here.held_out)
    algorithms = list(here.algorithms.values())
    variables = training_curves(run, algorithms, tasks)
    variables["train_loss"] = (("step", "seed"), run.metrics["train_loss"].values, {"units": "mean over the interval"})
    final = alignments(here.trained, algorithms, here.held_out)
    control = [align_seeds(_stacked(here.control), other, here.held_out) for other in algorithms]
    lineup = here.lineup()
    variables["final_loss"] = (("learner", "seed"), lineup.measure(mean_loss, here.held_out), _LOSS)
    variables["zero_loss"] = ((), np.asarray(mean_loss(Trivial(), here.held_out)), _LOSS)
    for name in MEASURES:
        variables[f"final_{name}"] = (("algorithm", "seed"), final[name], {})
        values = np.array([np.asarray(getattr(one, name))[0] for one in control])
        variables[f"control_{name}"] = (("algorithm",), values, {"of": "learning rate 10 % off"})
    coordinates: dict[str, Any] = {
        "step": run.metrics["step"].values,
        "curve_step": run.metrics["step"].values[curve_points(run)],
        "seed": np.asarray(run.recipe.seeds),
        "algorithm": list(here.algorithms),
        "learner": lineup.names(),
    }
    if sweep_tasks:
        swept = here.lineup(*(name for name in (DESCENT, PLUS_PLUS) if name in here.algorithms))
        variables |= input_losses(swept, here.task, num_tasks=sweep_tasks)
        trivial = trivial_loss(here.task) * INPUT_SCALES**2
        variables["input_scale_zero_loss"] = (("input_scale",), trivial, {"units": "expected half squared error"})
        coordinates |= {"swept": swept.names(), "input_scale": INPUT_SCALES}
    return xr.Dataset(variables, coordinates)


def relative_loss(data: xr.Dataset, learner: str = "trained", *, to: str = DESCENT) -> np.ndarray:
    """Difference of losses on the same tasks, relative, by seed."""
    loss = data["final_loss"]
    return (loss.sel(learner=learner) / loss.sel(learner=to) - 1).dropna("seed").values


def loss_panel(
    axes: Axes, data: xr.Dataset, *, title: str, learners: Sequence[str] = (DESCENT,), yscale: str = "linear"
) -> None:
    """Loss along training: every seed, their mean with its band, and learners' losses as lines."""
    style: dict[str, Any] = learner_style("trained") | {"marker": ""}
    curves = data["loss"].dropna("step", how="all")
    for seed in curves["seed"].values:
        axes.plot(curves["step"], curves.sel(seed=seed), color=style["color"], alpha=0.3, linewidth=0.8)
    line_with_band(axes, curves, x="step", over="seed", **style)
    for name in learners:
        line: dict[str, Any] = learner_style(name) | {"marker": "", "linewidth": 2}
        axes.axhline(float(data["final_loss"].sel(learner=name).isel(seed=0)), **line)
    axes.axhline(float(data["zero_loss"]), linewidth=1.2, **learner_style("trivial"))
    # Where seeds differ by the length of a plateau, the band of their mean goes far beyond all of them.
    shown = [curves.min(), curves.max(), *(data["final_loss"].sel(learner=name).min() for name in learners)]
    limits = 0.85 * float(min(shown)), 1.1 * float(max(shown))
    axes.set(title=title, xlabel="training steps", ylabel="half squared error", yscale=yscale, ylim=limits)
    axes.legend()


def _stacked(learner: Learner) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learner)
