"""The loss of gradient descent and GD++ after K steps, from eigenvalues.

For one context, with X X^T = sum_i l_i v_i v_i^T and q_i = v_i^T E[x_q x_q^T] v_i, a step with c = eta / N leaves the
fraction 1 - c l_i of what was left in each direction, and GD++ then moves the eigenvalue:

    r_i <- r_i (1 - c l_i),    l_i <- l_i (1 - gamma l_i)^2,    r_i = 1 before the first step.

The expectation of the loss over W, the noise and the query is, with the original l_i,

    n_o / 2 sum_i q_i [ s^2 r_i^2 + sigma^2 (1 - r_i)^2 / l_i ].

Averaging this over contexts estimates the loss with none of the scatter of W and x_q; it also tells on which contexts
descent diverges: where some |1 - c l_i| exceeds 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from innerloop.tasks import LinearRegression


class Spectra(eqx.Module):
    """Eigenvalues of many contexts.

    Attributes:
        eigenvalues: l, of the un-normalised sum over the context X X^T, ascending.
        query_moments: q, the query's second moment along each eigenvector.
    """

    eigenvalues: Float[Array, "tasks input_size"]
    query_moments: Float[Array, "tasks input_size"]


@jax.jit
def context_spectra(
    context_inputs: Float[Array, "tasks context input_size"],
    second_moment: Float[Array, "input_size input_size"],
) -> Spectra:
    """Spectra of given contexts, for queries with the given (not centred) second moment."""
    gram = jnp.einsum("tni,tnj->tij", context_inputs, context_inputs)
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    moments = jnp.einsum("tik,ij,tjk->tk", vectors, second_moment.astype(vectors.dtype), vectors)
    return Spectra(jnp.maximum(eigenvalues, 0.0), moments)


def pool(spectra: Spectra, num_nodes: int = 4096, *, with_tail: bool = False) -> Spectra:
    """One pseudo-context whose expected losses are the mean over all contexts, up to binning.

    Expected losses are sums of q_i times a smooth function of l_i, so the eigenvalues of all contexts are collected in
    bins (equal in sqrt(l), where their density is nearly flat), each represented by its mean eigenvalue and its total
    q, divided by the number of contexts. Empty bins have weight zero.

    Args:
        spectra: of many contexts.
        num_nodes: number of bins.
        with_tail: go on beyond the largest eigenvalue, where the distribution goes on though the sample does not, with
            256 nodes of an exponential tail that has the mean excess of the largest thousandth. All of it weighs less
            than one context: nothing in the mean of anything tame, but enough to forbid a fit to be enormous just
            outside its sample.
    """
    eigenvalues = np.asarray(spectra.eigenvalues, dtype=np.float64)
    weights = np.asarray(spectra.query_moments, dtype=np.float64).ravel() / eigenvalues.shape[0]
    edges = np.linspace(0.0, np.sqrt(eigenvalues.max()) * (1 + 1e-9), num_nodes + 1) ** 2
    bins = np.clip(np.searchsorted(edges, eigenvalues.ravel(), side="right") - 1, 0, num_nodes - 1)
    total = np.bincount(bins, weights, num_nodes)
    moment = np.bincount(bins, weights * eigenvalues.ravel(), num_nodes)
    nodes = np.divide(moment, total, out=(edges[1:] + edges[:-1]) / 2, where=total > 0)
    if with_tail:
        tail_nodes, tail_weights = _exponential_tail(eigenvalues, weights)
        nodes, total = np.concatenate([nodes, tail_nodes]), np.concatenate([total, tail_weights])
    dtype = spectra.eigenvalues.dtype
    return Spectra(jnp.asarray(nodes[None], dtype=dtype), jnp.asarray(total[None], dtype=dtype))


def _exponential_tail(eigenvalues: np.ndarray, weights: np.ndarray, num_nodes: int = 256):
    """Nodes beyond the largest of each context's largest eigenvalues, with the weights of an exponential tail."""
    largest = np.sort(eigenvalues[:, -1])
    exceeding = max(min(20, largest.size - 1), largest.size // 1000)
    threshold = largest[-exceeding - 1] if exceeding else largest[-1]
    excess = float(np.mean(largest[-exceeding:] - threshold)) if exceeding else 0.0
    edges = largest[-1] + excess * np.linspace(0.0, 20.0, num_nodes + 1)
    if excess == 0.0:
        return edges[1:], np.zeros(num_nodes)
    survival = exceeding / largest.size * np.exp(-(edges - threshold) / excess)
    mean_weight = weights.mean() * largest.size  # q of one eigenvalue
    return (edges[1:] + edges[:-1]) / 2, mean_weight * (survival[:-1] - survival[1:])


def sample_spectra(task: LinearRegression, key: Key[Array, ""], num_tasks: int) -> Spectra:
    """Spectra of freshly drawn contexts of a task."""
    inputs = _context_inputs(task, key, num_tasks)
    second = task.input_moments().second
    if np.array_equal(second, second[0, 0] * np.eye(task.input_size)):
        # The query's moment is the same along every direction, and eigenvectors would be half of the work.
        eigenvalues = _eigenvalues(inputs)
        return Spectra(eigenvalues, jnp.full_like(eigenvalues, second[0, 0]))
    return context_spectra(inputs, jnp.asarray(second))


@eqx.filter_jit  # one program, in which nothing is drawn but the inputs
def _context_inputs(task: LinearRegression, key: Key[Array, ""], num_tasks: int):
    return task.samples(key, num_tasks).problem.context_inputs


@jax.jit
def _eigenvalues(context_inputs: Float[Array, "tasks context input_size"]) -> Float[Array, "tasks input_size"]:
    return jnp.maximum(jnp.linalg.eigvalsh(jnp.einsum("tni,tnj->tij", context_inputs, context_inputs)), 0.0)


@eqx.filter_jit
def gradient_descent_losses(
    task: LinearRegression,
    spectra: Spectra,
    learning_rates: Float[Array, " steps"],
    *,
    curvature_corrections: Float[Array, " steps"] | None = None,
    damping: float = 1.0,
) -> Float[Array, "steps_plus_1 tasks"]:
    """Expected half squared error (summed over outputs) per context, before the first and after every step.

    Args:
        task: gives noise, target scale, context length and number of outputs.
        spectra: of the contexts.
        learning_rates: eta per step.
        curvature_corrections: gamma per step; None is plain gradient descent.
        damping: factor on every step, corrections included.
    """
    eigenvalues, moments = spectra.eigenvalues, spectra.query_moments
    step_sizes = damping * jnp.asarray(learning_rates, dtype=eigenvalues.dtype) / task.context_length
    if curvature_corrections is None:
        corrections = jnp.zeros_like(step_sizes)
    else:
        corrections = damping * jnp.asarray(curvature_corrections, dtype=eigenvalues.dtype)

    def losses(unlearned: Unlearned):
        error = task.target_scale**2 * unlearned.left**2 + task.noise_std**2 * unlearned.noise(eigenvalues) ** 2
        return task.output_size / 2 * jnp.sum(moments * error, axis=-1)

    def step(unlearned: Unlearned, numbers):
        unlearned = unlearned.after_step(eigenvalues, *numbers)
        return unlearned, losses(unlearned)

    # Reduced inside the scan: XLA's CPU backend (jaxlib 0.10.2) was seen to compile the reduction of the whole
    # trajectory of r, put behind the initial ones, into a program that returned the initial loss for every step.
    start = Unlearned.everything(eigenvalues)
    _, later = jax.lax.scan(step, start, (step_sizes, corrections))
    return jnp.concatenate([losses(start)[None], later])


class Unlearned(eqx.Module):
    """What is left to learn along each eigenvector.

    Attributes:
        left: r.
        shrunk: the product of all 1 - gamma l so far; the eigenvalue is l shrunk^2 now.
        learned_per_eigenvalue: (1 - r) / l, summed up step by step: as a difference it would be rounding at small l.
    """

    left: Float[Array, "*shape"]
    shrunk: Float[Array, "*shape"]
    learned_per_eigenvalue: Float[Array, "*shape"]

    @classmethod
    def everything(cls, eigenvalues: Float[Array, "*shape"]) -> "Unlearned":
        """Before the first step."""
        ones = jnp.ones_like(eigenvalues)
        return cls(ones, ones, jnp.zeros_like(eigenvalues))

    def after_step(self, eigenvalues: Float[Array, "*shape"], step_size, correction) -> "Unlearned":
        """After a step with c and gamma; ``eigenvalues`` are the original ones."""
        moved = eigenvalues * self.shrunk**2
        return Unlearned(
            self.left * (1 - step_size * moved),
            self.shrunk * (1 - correction * moved),
            self.learned_per_eigenvalue + self.left * step_size * self.shrunk**2,
        )

    def noise(self, eigenvalues: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """(1 - r) / sqrt(l): how much of unit noise on the targets has been learned."""
        return self.learned_per_eigenvalue * jnp.sqrt(eigenvalues)
