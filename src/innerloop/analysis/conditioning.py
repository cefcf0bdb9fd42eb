"""How GD++ improves the conditioning of its problem (A.10, Fig 13).

One correction maps every eigenvalue l of X X^T to f(l) = l (1 - gamma l)^2. On [0, 1 / gamma] that has its maximum
4 / (27 gamma) at l = 1 / (3 gamma): the large eigenvalues come down, the small ones hardly move, and the next gradient
step can be larger.

    >>> round(float(corrected_eigenvalues(jnp.asarray(2.0), gamma=1 / 6)), 4)     # at the maximum: 4 / (27 gamma)
    0.8889

A.10 chooses gamma by the condition number after the step. Its mean over contexts is governed by the few contexts with
an eigenvalue near zero, so ours is the *median* over contexts of max_i f(l_i) / min_i f(l_i) (see `condition_gamma`).
The gamma of lowest loss is smaller: the loss cares about all directions, the condition number about the two extremes.
"""

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from innerloop.exact import Spectra


def corrected_eigenvalues(
    eigenvalues: Float[Array, "*shape"], gamma: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """f(l) = l (1 - gamma l)^2: eigenvalues of X X^T after one correction."""
    return eigenvalues * (1 - gamma * eigenvalues) ** 2


def condition_numbers(eigenvalues: Float[Array, "tasks input_size"]) -> Float[Array, " tasks"]:
    """Largest over smallest eigenvalue of every context; infinite where the smallest is zero."""
    smallest, largest = jnp.min(eigenvalues, axis=-1), jnp.max(eigenvalues, axis=-1)
    return jnp.where(smallest > 0, largest / jnp.where(smallest > 0, smallest, jnp.ones_like(smallest)), jnp.inf)


def condition_gamma(spectra: Spectra) -> float:
    """The gamma whose correction gives the smallest median condition number.

    Searched below 1 / (median largest eigenvalue), where f has its zero: beyond it large eigenvalues become the small
    ones, and the minimum in between is the one that A.10 speaks of.
    """
    eigenvalues = np.asarray(spectra.eigenvalues, dtype=np.float64)

    def median_log(gamma: float) -> float:
        moved = eigenvalues * (1 - gamma * eigenvalues) ** 2
        with np.errstate(divide="ignore"):
            return float(np.median(np.log(moved.max(axis=-1)) - np.log(moved.min(axis=-1))))

    largest = float(np.median(eigenvalues.max(axis=-1)))
    grid = np.linspace(0.0, 1 / largest, 41)
    values = [median_log(gamma) for gamma in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found: scipy.optimize.OptimizeResult = scipy.optimize.minimize_scalar(
        median_log, bounds=(low, high), method="bounded"
    )
    return float(found["x"])
