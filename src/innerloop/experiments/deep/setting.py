"""A trained deep stack together with the algorithms that it is compared with."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.algorithms import GradientDescent, GradientDescentPlusPlus
from innerloop.analysis import interpolate, over_learners, read_layers
from innerloop.constructions import gradient_descent_plus_plus_weights
from innerloop.exact import Tuned, tune, tuning_spectra
from innerloop.experiments.lineup import Lineup
from innerloop.models import StackConfig, Transformer, products
from innerloop.problem import Learner
from innerloop.runs import Run
from innerloop.tasks import LinearRegression, Sample
from innerloop.training import held_out_batch

NEAR_MISS = 0.9
"""Controls use GD++ with its curvature correction multiplied by this: gamma 10 % too small."""


class DeepSetting(NamedTuple):
    """A run with the learners that it is compared with.

    Attributes:
        task: of the run.
        config: the stack's architecture; constructions run under it too, token clip included.
        exact: tuned numbers of "gradient descent" (one learning rate for all steps, as the paper's baseline), of
            "gradient descent, per step", and of "gd++" (per layer for untied stacks).
        numbers: learning rates and corrections per step of the GD++ that the stack is compared with first: tuned by
            the published protocol, or exactly.
        trained: the trained transformers, stacked over seeds.
        held_out: the run's held-out tasks.
    """

    task: LinearRegression
    config: StackConfig
    exact: dict[str, Tuned]
    numbers: tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]
    trained: Transformer
    held_out: Sample

    def descent(self, *, per_step: bool = False) -> GradientDescent:
        """Tuned gradient descent; with a learning rate per step it is a better algorithm than the paper's baseline."""
        if not per_step:
            rate = self.exact["gradient descent"].learning_rates[0]
            return GradientDescent(jnp.asarray(rate, dtype=jnp.float32), self.config.num_layers)
        rates = self.exact["gradient descent, per step"].learning_rates
        return GradientDescent(jnp.asarray(rates, dtype=jnp.float32), self.config.num_layers)

    def constructed(self, *, gamma_factor: float = 1.0) -> Transformer:
        """GD++ as weights, with its corrections multiplied by a factor."""
        rates, corrections = self.numbers
        return Transformer(self.config, self._weights(rates, gamma_factor * corrections))

    def _weights(self, learning_rates: Float[np.ndarray, " steps"], corrections: Float[np.ndarray, " steps"]):
        return gradient_descent_plus_plus_weights(
            input_size=self.task.input_size,
            context_length=self.task.context_length,
            learning_rate=_of_layers(learning_rates, self.config),
            curvature_correction=_of_layers(corrections, self.config),
        )

    def descent_stack(self) -> Transformer:
        """Tuned gradient descent as weights of the same architecture, with which it shares compiled programs."""
        rates = self.exact["gradient descent"].learning_rates
        return Transformer(self.config, self._weights(rates, np.zeros_like(rates)))

    def tuned_exactly(self, *, gamma_factor: float = 1.0) -> GradientDescentPlusPlus:
        """The algorithm with exactly tuned numbers, its corrections multiplied by a factor; nothing is clipped."""
        exact = self.exact["gd++"]
        return GradientDescentPlusPlus(
            _of_layers(exact.learning_rates, self.config),
            _of_layers(gamma_factor * exact.curvature_corrections, self.config),
            self.config.num_layers,
        )

    def algorithms(self) -> tuple[Transformer, Transformer]:
        """Gradient descent and GD++, with which alignment is measured, as weights."""
        return self.descent_stack(), self.constructed()

    def lineup(self) -> Lineup:
        """Everyone, by name."""
        plain = {
            "gradient descent": self.descent(),
            "gradient descent, per step": self.descent(per_step=True),
            "gd++": self.constructed(),
            "gd++, tuned exactly": self.tuned_exactly(),
            "control, tuned exactly": self.tuned_exactly(gamma_factor=NEAR_MISS),
            "control": self.constructed(gamma_factor=NEAR_MISS),
        }
        seeded = {"trained": self.trained, "interpolated": self.interpolated(self.constructed())}
        return Lineup(plain, seeded, self.num_seeds)

    def stacks(self) -> Lineup:
        """Those that sweeps are run on, all as stacks of one architecture, so that each sweep is compiled once."""
        plain: dict[str, Learner] = {
            "gradient descent": self.descent_stack(),
            "gd++": self.constructed(),
            "control": self.constructed(gamma_factor=NEAR_MISS),
        }
        seeded = {"trained": self.trained, "interpolated": self.interpolated(self.constructed())}
        return Lineup(plain, seeded, self.num_seeds)

    @property
    def num_seeds(self) -> int:
        """How many trained stacks there are."""
        return self.trained.weights.attention.W_K.shape[0]

    def interpolated(self, constructed: Transformer) -> Transformer:
        """Every seed's transformer half-way to a construction, after the gauge is fixed."""
        return over_learners(lambda one: interpolate(one, constructed, input_size=self.task.input_size), self.trained)


def deep_setting(run: Run, tuning: Run | None = None, *, num_contexts: int) -> DeepSetting:
    """Prepares a run for measurement.

    Args:
        run: the trained stacks.
        tuning: a run of the published tuning protocol, whose GD++ the stacks are compared with; without it GD++ is
            tuned exactly.
        num_contexts: in each of the three sets on which algorithms are tuned.
    """
    task, config = run.recipe.linear_task(), run.recipe.model
    spectra = tuning_spectra(task, num_contexts=num_contexts)
    exact = {
        "gradient descent": tune(task, config.num_layers, algorithm="gd", spectra=spectra),
        "gradient descent, per step": tune(task, config.num_layers, algorithm="gd", per_step=True, spectra=spectra),
        "gd++": tune(task, config.num_layers, algorithm="gd++", per_step=not config.tied, spectra=spectra),
    }
    if tuning is None:
        numbers = exact["gd++"].learning_rates, exact["gd++"].curvature_corrections
    else:
        numbers = tuned_by_training(tuning)
    return DeepSetting(task, config, exact, numbers, run.transformers(), held_out_batch(run.recipe).samples())


def tuned_by_training(run: Run) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Learning rates and corrections per step that a run of the published tuning protocol found (its first seed)."""
    reading = read_layers(products(run.weights), run.recipe.task.input_size)
    steps = run.recipe.model.num_layers
    rates = np.asarray(reading.step_size)[0, :, 0] * run.recipe.task.context_length
    corrections = np.asarray(reading.curvature_correction)[0, :, 0]
    return np.broadcast_to(rates, (steps,)), np.broadcast_to(corrections, (steps,))


def _of_layers(values: Float[np.ndarray, " steps"], config: StackConfig) -> Float[Array, "*layers"]:
    """A number where layers are tied, one per layer otherwise; arrays, so that programs are compiled once."""
    return jnp.asarray(values[0] if config.tied else values, dtype=jnp.float32)
