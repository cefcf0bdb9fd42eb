"""Logistic regression per task: the regularised fit, and the Bayes-optimal probabilities around it.

With W ~ N(0, s^2) per entry and labels drawn from softmax(W x), the posterior of W given a context is proportional to

    exp(-E(W)),    E(W) = -sum_j log softmax(W x_j)_{class of j} + |W|^2 / (2 s^2).

`LogisticRegression` predicts with the W of smallest E, the maximum a posteriori. `BayesianLogisticRegression` averages
probabilities over the posterior, which is the best that any learner can do for the expected cross-entropy. Its integral
has no closed form. It is taken by importance sampling: from a Student t distribution with the mode and, as its shape,
the curvature of E there, whose heavy tails cover the posterior's (`effective_sample_size` says how well).

Where sources disagree: scikit-learn's C is s^2 here, with the un-normalised sum of losses, as in its code.
"""

from numbers import Real
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from innerloop.checks import finite_number, positive_int
from innerloop.problem import Prediction, Problem
from innerloop.tasks import LinearClassification

# E is strictly convex. A dozen steps bring the gradient below single precision; the limit only ends hopeless cases.
_MOST_STEPS = 100
_DEGREES_OF_FREEDOM = 8.0


class LogisticRegression(eqx.Module):
    """A learner that minimises sum_j cross-entropy_j + penalty |W|^2 / 2 by L-BFGS and predicts logits W x_q.

    Attributes:
        penalty: weight of |W|^2 / 2, above 0 (separable classes have no optimum without); 1 / s^2 for the prior's.

    Example:
        >>> problem = Problem(jnp.array([[1.0], [-1.0]]), jnp.eye(2), jnp.array([1.0]))
        >>> logits = LogisticRegression(penalty=1.0)(problem).value     # w = +-v with v = 2 / (1 + exp(2 v))
        >>> round(float(logits[0]), 4), round(float(2 / (1 + jnp.exp(2 * logits[0]))), 4)
        (0.5213, 0.5213)
    """

    penalty: float | Float[Array, ""]

    def __check_init__(self):
        _check_penalty(self.penalty)

    def __call__(self, problem: Problem) -> Prediction:
        """Predicts with the fit; the trajectory starts at zero, the prior mean."""
        weights = fitted_weights(problem, self.penalty)
        value, context = weights @ problem.query_input, problem.context_inputs @ weights.T
        return Prediction(
            value, jnp.stack([jnp.zeros_like(value), value]), jnp.stack([jnp.zeros_like(context), context])
        )


class BayesianLogisticRegression(eqx.Module):
    """The Bayes-optimal learner of linear classification: log-probabilities averaged over the posterior of W.

    Attributes:
        penalty: 1 / s^2.
        key: of the samples; the same for all problems, so that predictions depend smoothly on the problem.
        num_samples: how many; the error of a probability falls with the root of `effective_sample_size`.
    """

    penalty: float | Float[Array, ""]
    key: Key[Array, ""]
    num_samples: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        _check_penalty(self.penalty)
        positive_int("num_samples", self.num_samples)

    def __call__(self, problem: Problem) -> Prediction:
        """Log-probabilities of the query's classes: the trajectory has the prior's, the fit's and the average's."""
        mode = fitted_weights(problem, self.penalty)
        samples = self._around(mode, problem)
        log_probabilities = jax.nn.log_softmax(samples.weights @ problem.query_input, axis=-1)
        value = jax.nn.logsumexp(log_probabilities + samples.log_shares[:, None], axis=0)
        prior = jnp.full_like(value, -jnp.log(jnp.asarray(value.size, value.dtype)))
        fit = jax.nn.log_softmax(mode @ problem.query_input)
        return Prediction(value, jnp.stack([prior, fit, value]), None)

    def effective_sample_size(self, problem: Problem) -> Float[Array, ""]:
        """1 / sum of squared shares: how many equal samples would do as well."""
        return 1 / jnp.sum(jnp.exp(2 * self.posterior(problem).log_shares))

    def posterior(self, problem: Problem) -> "WeightedSamples":
        """Weights W with shares that sum to 1."""
        return self._around(fitted_weights(problem, self.penalty), problem)

    def _around(self, mode: Float[Array, "output_size input_size"], problem: Problem) -> "WeightedSamples":
        energy = eqx.Partial(_energy, problem, self.penalty)
        factor = jnp.linalg.cholesky(_curvature(energy, mode))
        normal_key, square_key = jax.random.split(self.key)
        normal = jax.random.normal(normal_key, (self.num_samples, mode.size), mode.dtype)
        half = jnp.asarray(_DEGREES_OF_FREEDOM / 2, mode.dtype)
        square = jax.random.gamma(square_key, half, (self.num_samples,), mode.dtype) / half
        white = normal / jnp.sqrt(square)[:, None]  # Student t
        offsets = jax.scipy.linalg.solve_triangular(factor, white.T, lower=True, trans=1).T
        weights = mode + offsets.reshape(-1, *mode.shape)
        # The density of the proposal, up to a constant that all samples share.
        log_proposal = -(half + mode.size / 2) * jnp.log1p(jnp.sum(white**2, axis=-1) / (2 * half))
        return WeightedSamples(weights, jax.nn.log_softmax(-jax.vmap(energy)(weights) - log_proposal))


class WeightedSamples(NamedTuple):
    """Samples that stand for a distribution.

    Attributes:
        weights: W.
        log_shares: logarithms of what each counts; they sum to 1.
    """

    weights: Float[Array, "samples output_size input_size"]
    log_shares: Float[Array, " samples"]


def prior_penalty(task: LinearClassification) -> float:
    """The penalty that is the task's own prior: 1 / target_scale^2."""
    return 1 / float(task.target_scale) ** 2


def fitted_weights(problem: Problem, penalty: float | Float[Array, ""]) -> Float[Array, "output_size input_size"]:
    """The W of smallest E, by L-BFGS from zero and one last step of Newton's method.

    That step starts where the gradient vanishes as far as L-BFGS could bring it. It mends the last digits, and its
    derivative by the problem and the penalty is that of the minimum (the implicit function theorem), so that no
    derivative has to go through L-BFGS.
    """
    energy = eqx.Partial(_energy, problem, penalty)
    fitted = _by_lbfgs(jax.lax.stop_gradient(problem), jax.lax.stop_gradient(penalty))
    curvature = jax.lax.stop_gradient(_curvature(energy, fitted))
    step = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(curvature), True), jax.grad(energy)(fitted).ravel())
    return fitted - step.reshape(fitted.shape)


def _by_lbfgs(problem: Problem, penalty) -> Float[Array, "output_size input_size"]:
    """The W of smallest E from zero, until the gradient is as small as the precision allows."""
    shape = problem.context_targets.shape[-1], problem.context_inputs.shape[-1]
    dtype = problem.context_inputs.dtype
    energy = eqx.Partial(_energy, problem, penalty)
    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(energy)
    tolerance = 100 * jnp.finfo(dtype).eps * problem.context_inputs.shape[0]

    def goes_on(carry):
        _, state = carry
        count, gradient = optax.tree.get(state, "count"), optax.tree.get(state, "grad")
        return (count == 0) | ((count < _MOST_STEPS) & (jnp.linalg.norm(gradient) > tolerance))

    def step(carry):
        weights, state = carry
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes in its scalars
            value, gradient = value_and_gradient(weights, state=state)
            updates, state = solver.update(gradient, state, weights, value=value, grad=gradient, value_fn=energy)
            return weights + updates, state

    initial = jnp.zeros(shape, dtype)
    return jax.lax.while_loop(goes_on, step, (initial, solver.init(initial)))[0]


def _curvature(energy, weights: Float[Array, "output_size input_size"]) -> Float[Array, "entries entries"]:
    """Second derivatives of E by the entries of W, row after row."""
    return jax.hessian(lambda flat: energy(flat.reshape(weights.shape)))(weights.ravel())


def _energy(problem: Problem, penalty, weights: Float[Array, "output_size input_size"]) -> Float[Array, ""]:
    """E(W), the negative logarithm of the posterior up to a constant."""
    log_probabilities = jax.nn.log_softmax(problem.context_inputs @ weights.T, axis=-1)
    return -jnp.sum(problem.context_targets * log_probabilities) + 0.5 * penalty * jnp.sum(weights**2)


def _check_penalty(penalty) -> None:
    if isinstance(penalty, Real):  # inside a transformation it may be traced
        finite_number("penalty", penalty, above=0.0)
