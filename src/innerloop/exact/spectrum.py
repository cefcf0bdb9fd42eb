"""Gradient descent's loss after K steps, from eigenvalues.

For one context, with X X^T = sum_i l_i v_i v_i^T and q_i = v_i^T E[x_q x_q^T] v_i, K steps with c_k = eta_k / N leave
the fraction r_i = prod_k (1 - c_k l_i) of each direction unlearned, and the expectation of the loss over W, the noise
and the query is

    n_o / 2 sum_i q_i [ s^2 r_i^2 + sigma^2 (1 - r_i)^2 / l_i ].

Averaging this over contexts estimates the loss with none of the scatter of W and x_q; it also tells on which contexts
descent diverges: where some |1 - c l_i| exceeds 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
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


def sample_spectra(task: LinearRegression, key: Key[Array, ""], num_tasks: int) -> Spectra:
    """Spectra of freshly drawn contexts of a task."""
    problems = task.samples(key, num_tasks).problem
    return context_spectra(problems.context_inputs, jnp.asarray(task.input_moments().second))


def gradient_descent_losses(
    task: LinearRegression,
    spectra: Spectra,
    learning_rates: Float[Array, " steps"],
    *,
    damping: float = 1.0,
) -> Float[Array, "steps_plus_1 tasks"]:
    """Expected half squared error (summed over outputs) per context, before the first and after every step.

    Args:
        task: gives noise, target scale, context length and number of outputs.
        spectra: of the contexts.
        learning_rates: eta per step.
        damping: factor on every step.
    """
    eigenvalues, moments = spectra.eigenvalues, spectra.query_moments
    step_sizes = damping * jnp.asarray(learning_rates, dtype=eigenvalues.dtype) / task.context_length

    def step(unlearned, step_size):
        unlearned = unlearned * (1 - step_size * eigenvalues)
        return unlearned, unlearned

    ones = jnp.ones_like(eigenvalues)
    _, unlearned = jax.lax.scan(step, ones, step_sizes)
    unlearned = jnp.concatenate([ones[None], unlearned])  # (steps + 1, tasks, input_size)
    error = task.target_scale**2 * unlearned**2
    if task.noise_std > 0:
        # (1 - r)^2 / l vanishes with l, because 1 - r is proportional to l there.
        safe = jnp.where(eigenvalues > 0, eigenvalues, ones)
        fitted_noise = jnp.where(eigenvalues > 0, (1 - unlearned) ** 2 / safe, jnp.zeros_like(unlearned))
        error = error + task.noise_std**2 * fitted_noise
    return task.output_size / 2 * jnp.sum(moments * error, axis=-1)
