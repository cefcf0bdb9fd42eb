"""Expected loss of one gradient-descent step, in closed form.

Starting from W = 0, one step predicts c sum_j y_j x_j . x_q with c = eta / N. With W ~ N(0, s^2) per entry, noise
sigma, L = E x x^T, Q = E |x|^2 x x^T and G = sum_j x_j x_j^T (so E G = N L, E G^2 = N Q + N (N - 1) L^2), the expected
half squared error, summed over the n_o outputs, is the parabola

    n_o / 2 [ s^2 (tr L - 2 c N tr L^2 + c^2 (N tr Q L + N (N - 1) tr L^3)) + c^2 sigma^2 N tr L^2 ].

Only independence of the inputs is used: centred or not, symmetric or not. This replaces the published line search.

    >>> from innerloop.tasks import LinearRegression
    >>> task = LinearRegression()
    >>> round(optimal_learning_rate(task), 4), round(one_step_loss(task, optimal_learning_rate(task)), 4)
    (6.0606, 0.2062)
"""

from typing import NamedTuple

import numpy as np

from innerloop.tasks import LinearRegression


class OneStepLoss(NamedTuple):
    """The parabola ``constant - slope * c + curvature / 2 * c**2`` in c = eta / N; units of half squared error."""

    constant: float
    slope: float
    curvature: float


def one_step_parabola(task: LinearRegression) -> OneStepLoss:
    """Coefficients of the expected loss of one gradient-descent step from zero weights.

    Raises:
        ValueError: where the task's moments have no closed form (``normalise_context``).
    """
    moments = task.input_moments()
    second, fourth = moments.second, moments.fourth
    n = task.context_length
    signal, noise = float(task.target_scale) ** 2, task.noise_std**2
    trace_2 = np.trace(second @ second)
    trace_3 = np.trace(second @ second @ second)
    curvature = signal * (n * np.trace(fourth @ second) + n * (n - 1) * trace_3) + noise * n * trace_2
    scale = task.output_size
    return OneStepLoss(
        constant=scale * signal * float(np.trace(second)) / 2,
        slope=scale * signal * n * float(trace_2),
        curvature=scale * float(curvature),
    )


def one_step_loss(task: LinearRegression, learning_rate: float) -> float:
    """Expected half squared error, summed over outputs, after one step with learning rate eta."""
    parabola = one_step_parabola(task)
    c = learning_rate / task.context_length
    return parabola.constant - parabola.slope * c + parabola.curvature / 2 * c**2


def optimal_learning_rate(task: LinearRegression) -> float:
    """The learning rate eta whose single step has the smallest expected loss."""
    parabola = one_step_parabola(task)
    return task.context_length * parabola.slope / parabola.curvature


def trivial_loss(task: LinearRegression) -> float:
    """Expected half squared error of predicting zero."""
    return one_step_parabola(task).constant
