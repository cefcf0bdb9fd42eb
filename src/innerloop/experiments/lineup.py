"""Learners that are measured side by side, with and without seeds, as one array over (learner, seed).

lineup = Lineup({"gradient descent": descent}, {"trained": run.transformers()}, num_seeds=5)
lineup.measure(mean_loss, samples)      # (learner, seed), what has no seeds repeated over them
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.analysis import over_learners, task_losses
from innerloop.problem import Learner
from innerloop.tasks import Sample


class Lineup(NamedTuple):
    """Learners by name.

    Attributes:
        plain: learners without seeds: algorithms and constructions. Their numbers should be arrays, so that programs
            are compiled once for all values.
        seeded: trained learners, stacked along a leading seed axis.
        num_seeds: length of that axis.
    """

    plain: dict[str, Learner]
    seeded: dict[str, Any]
    num_seeds: int

    def names(self) -> list[str]:
        """All names, in the order of the measured axis."""
        return [*self.plain, *self.seeded]

    def measure(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Applies ``function(learner, *arguments)`` to every learner and seed.

        Args:
            function: of one learner; returns an array or a pytree of arrays. A function of a module, not a closure,
                so that it is compiled once.
            *arguments: the same for all.

        Returns:
            Arrays (learner, seed, ...), float64 or as returned, on the host.
        """
        plain = [_apply(function, learner, *arguments) for learner in self.plain.values()]
        seeded = [_apply_to_seeds(function, learners, *arguments) for learners in self.seeded.values()]

        def stack(*leaves):
            arrays = [np.asarray(leaf) for leaf in leaves]
            repeated = [np.broadcast_to(array, (self.num_seeds, *array.shape)) for array in arrays[: len(plain)]]
            return np.stack([*repeated, *arrays[len(plain) :]])

        return jax.tree.map(stack, *plain, *seeded)


@eqx.filter_jit
def mean_loss(learner: Learner, samples: Sample) -> Float[Array, ""]:
    """Mean half squared error over the samples."""
    return jnp.mean(task_losses(learner, samples))


@eqx.filter_jit
def _apply(function, learner, *arguments):
    return function(learner, *arguments)


@eqx.filter_jit
def _apply_to_seeds(function, learners, *arguments):
    return over_learners(lambda one: function(one, *arguments), learners)
