"""Input distributions, each with its exact moments.

The expected loss of a gradient-descent step is a polynomial in the learning rate whose coefficients are moments of
the inputs (see `innerloop.exact`), so a distribution states them in closed form, in float64:

    >>> Uniform().second_moment(2)
    array([[0.08333333, 0.        ],
           [0.        , 0.08333333]])

A new distribution is one class and one entry of `INPUT_DISTRIBUTIONS`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


class InputDistribution(eqx.Module):
    """The law of one input vector x; all inputs of a problem are independent draws from it."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "input_size ..."]:
        """Draws inputs; the first axis of ``shape`` is the input's coordinates, the others count draws."""

    @abc.abstractmethod
    def mean(self, input_size: int) -> Float[np.ndarray, " input_size"]:
        """E x."""

    @abc.abstractmethod
    def second_moment(self, input_size: int) -> Float[np.ndarray, "input_size input_size"]:
        """L = E x x^T, not centred."""

    @abc.abstractmethod
    def fourth_moment_tensor(self, input_size: int) -> Float[np.ndarray, "input_size input_size input_size input_size"]:
        """E x_i x_j x_k x_l, which the expected loss of a layer of attention needs."""

    def fourth_moment(self, input_size: int) -> Float[np.ndarray, "input_size input_size"]:
        """Q = E |x|^2 x x^T, the only fourth moment that one gradient-descent step needs.

        A contraction of the tensor; override it where a formula spares the tensor.
        """
        return np.einsum("ijkk->ij", self.fourth_moment_tensor(input_size))


class IndependentInputs(InputDistribution):
    """Coordinates drawn independently from one scalar law, known by its raw moments."""

    @abc.abstractmethod
    def raw_moments(self) -> tuple[float, float, float, float]:
        """E z, E z^2, E z^3, E z^4 of one coordinate."""

    def mean(self, input_size: int) -> Float[np.ndarray, " input_size"]:
        """E x: the coordinate's mean, repeated."""
        return np.full(input_size, self.raw_moments()[0])

    def second_moment(self, input_size: int) -> Float[np.ndarray, "input_size input_size"]:
        """E z^2 on the diagonal, (E z)^2 off it."""
        first, second, _, _ = self.raw_moments()
        return _filled(input_size, diagonal=second, off_diagonal=first**2)

    def fourth_moment(self, input_size: int) -> Float[np.ndarray, "input_size input_size"]:
        """Sums E x_i x_j x_k^2 over k: k in {i, j} gives third and fourth moments, the others factorise."""
        first, second, third, fourth = self.raw_moments()
        return _filled(
            input_size,
            diagonal=fourth + (input_size - 1) * second**2,
            off_diagonal=2 * third * first + (input_size - 2) * second * first**2,
        )

    def fourth_moment_tensor(self, input_size: int) -> Float[np.ndarray, "input_size input_size input_size input_size"]:
        """Per coordinate, the raw moment of the power with which it occurs among i, j, k and l."""
        moments = np.array([1.0, *self.raw_moments()])
        indices = np.indices((input_size,) * 4, dtype=np.int16)
        tensor = np.ones((input_size,) * 4)
        for coordinate in range(input_size):
            tensor *= moments[np.sum(indices == coordinate, axis=0)]
        return tensor


def _filled(size: int, *, diagonal: float, off_diagonal: float) -> np.ndarray:
    return np.full((size, size), off_diagonal) + (diagonal - off_diagonal) * np.eye(size)


class Uniform(IndependentInputs):
    """U(-1/2, 1/2) per coordinate: what the published code draws (the text says U(-1, 1), twice as wide)."""

    def sample(self, key, shape):
        """Draws uniform inputs."""
        return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)

    def raw_moments(self):
        """0, 1/12, 0, 1/80."""
        return 0.0, 1 / 12, 0.0, 1 / 80


class Normal(IndependentInputs):
    """N(0, 1) per coordinate."""

    def sample(self, key, shape):
        """Draws standard normal inputs."""
        return jax.random.normal(key, shape)

    def raw_moments(self):
        """0, 1, 0, 3."""
        return 0.0, 1.0, 0.0, 3.0


class Exponential(IndependentInputs):
    """Exponential of rate 1 per coordinate: neither centred nor symmetric."""

    def sample(self, key, shape):
        """Draws exponential inputs."""
        return jax.random.exponential(key, shape)

    def raw_moments(self):
        """N! for the n-th moment."""
        return 1.0, 2.0, 6.0, 24.0


class Laplace(IndependentInputs):
    """Laplace of scale 1 per coordinate."""

    def sample(self, key, shape):
        """Draws Laplace inputs."""
        return jax.random.laplace(key, shape)

    def raw_moments(self):
        """0, 2, 0, 24."""
        return 0.0, 2.0, 0.0, 24.0


class Gaussian(InputDistribution):
    """N(0, covariance), for any given covariance.

    Attributes:
        covariance: symmetric positive semi-definite matrix as nested tuples, so that a recipe can be hashed.
    """

    covariance: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    def __check_init__(self):
        rows = {len(row) for row in self.covariance}
        if rows != {len(self.covariance)}:
            raise ValueError(
                f"covariance must be a square matrix, got {len(self.covariance)} rows of lengths {sorted(rows)}"
            )
        matrix = np.asarray(self.covariance, dtype=np.float64)
        if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
            raise ValueError("covariance must be finite and symmetric; check the matrix that you passed")
        smallest = np.linalg.eigvalsh(matrix).min()
        if smallest < -1e-10 * max(1.0, np.abs(matrix).max()):
            raise ValueError(f"covariance must have no negative eigenvalue, but its smallest is {smallest:.3g}")

    def _matrix(self, input_size: int) -> np.ndarray:
        if len(self.covariance) != input_size:
            raise ValueError(
                f"inputs.covariance is {len(self.covariance)} x {len(self.covariance)}, "
                f"but input_size is {input_size}; make them equal"
            )
        return np.asarray(self.covariance, dtype=np.float64)

    def sample(self, key, shape):
        """Draws correlated normal inputs through the covariance's symmetric square root."""
        values, vectors = np.linalg.eigh(self._matrix(shape[0]))
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        white = jax.random.normal(key, shape)
        return jnp.tensordot(jnp.asarray(root, dtype=white.dtype), white, axes=1)

    def mean(self, input_size):
        """Zero."""
        return np.zeros(input_size)

    def second_moment(self, input_size):
        """The covariance."""
        return self._matrix(input_size)

    def fourth_moment(self, input_size):
        """tr(L) L + 2 L^2, by Isserlis' theorem."""
        covariance = self._matrix(input_size)
        return np.trace(covariance) * covariance + 2 * covariance @ covariance

    def fourth_moment_tensor(self, input_size):
        """L_ij L_kl + L_ik L_jl + L_il L_jk, by Isserlis' theorem."""
        pairs = np.multiply.outer(covariance := self._matrix(input_size), covariance)
        return pairs + pairs.transpose(0, 2, 1, 3) + pairs.transpose(0, 2, 3, 1)


INPUT_DISTRIBUTIONS: dict[str, type[InputDistribution]] = {
    "uniform": Uniform,
    "normal": Normal,
    "exponential": Exponential,
    "laplace": Laplace,
    "gaussian": Gaussian,
}
