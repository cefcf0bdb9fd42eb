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
from innerloop.tasks import PredictionLoss, Sample


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
        # Learners of one structure (all stacks of one architecture, say) are measured by one program.
        stacked = {
            name: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learner) for name, learner in self.plain.items()
        }
        by_structure: dict[Any, dict[str, Any]] = {}
        for name, learners in {**stacked, **self.seeded}.items():
            shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(learners))
            by_structure.setdefault((jax.tree.structure(learners), shapes), {})[name] = learners
        measured = {}
        for group in by_structure.values():
            together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *group.values())
            results = jax.tree.map(np.asarray, _apply_to_all(function, together, *arguments))
            first = 0
            for name in group:
                last = first + (1 if name in self.plain else self.num_seeds)
                measured[name] = jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], results)
                first = last

        def stack(*leaves):
            return np.stack([np.broadcast_to(leaf, (self.num_seeds, *leaf.shape[1:])) for leaf in leaves])

        return jax.tree.map(stack, *(measured[name] for name in self.names()))


@eqx.filter_jit
def mean_loss(learner: Learner, samples: Sample, loss: PredictionLoss = "half_squared_error") -> Float[Array, ""]:
    """Mean loss over the samples."""
    return jnp.mean(task_losses(learner, samples, loss))


@eqx.filter_jit
def _apply_to_all(function, learners, *arguments):
    return over_learners(lambda one: function(one, *arguments), learners)
