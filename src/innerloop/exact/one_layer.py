"""Expected training loss of one layer of linear attention, in closed form, and the layer that minimises it.

With tokens e = (x, y), y = W x + noise, and S = sum_j e_j e_j^T over N of them, the query's entry of target o ends up
at sum_h p_ho^T S B_h x_q: p_ho is the target's row of head h's W_PV, B_h its W_KQ without the columns that meet the
query's zeros. That entry is minus the prediction, so with V_o[a,b,i] = sum_h p_ho[a] B_h[b,i] the expected loss is

    1/2 sum_o [ s^2 tr L + 2 E[w_oi S_ab] L_ij V_o[a,b,j] + V_o[a,b,i] L_ij V_o[c,d,j] E[S_ab S_cd] ],

a polynomial of degree 8 in the weights. Its coefficients are moments of a token and of pairs of tokens that share W:
E[S_ab S_cd] = N E[e_a e_b e_c e_d] + N (N - 1) E_W[ E[e_a e_b | W] E[e_c e_d | W] ]. Exact for every input distribution
with known moments, centred or not.

    >>> from innerloop.tasks import Exponential, LinearRegression
    >>> task = LinearRegression(inputs=Exponential())
    >>> loss, best = one_layer_loss(task), optimal_layer(task)
    >>> round(float(loss(best)), 4), round(float(loss(best.rescaled(1.1))), 4)     # along the gauge nothing changes
    (4.1523, 4.1523)
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from innerloop.models import Products, StackConfig
from innerloop.tasks import LinearRegression, Task
from innerloop.tokens import ConcatenatedTokens

# E[S (x) S] has token_size^4 entries: 134 MB in double precision at this size.
LARGEST_TOKEN_SIZE = 64


class OneLayerLoss(eqx.Module):
    """The expected loss as a function of the layer's products; what `one_layer_loss` returns.

    Arrays are NumPy's in double precision. They take the precision of the products in a call, which may be traced,
    differentiated and batched.

    Attributes:
        trivial: n_o s^2 tr(L) / 2, the loss of predicting zero.
        second_moment: L = E x x^T.
        target_moment: E[w_oi S_ab] for a an input and b target o, the same for every o: N s^2 L.
        gram_moments: E[S_ab S_cd].
        damping: factor on the layer's update.
    """

    trivial: float
    second_moment: Float[np.ndarray, "input_size input_size"]
    target_moment: Float[np.ndarray, "input_size input_size"]
    gram_moments: Float[np.ndarray, "token_size token_size token_size token_size"]
    damping: float

    def __call__(self, products: Products) -> Float[Array, ""]:
        """Half squared error of the query's prediction, summed over outputs, expected over tasks.

        Args:
            products: W_KQ and W_PV of one layer, (1, heads, token_size, token_size), in any gauge.
        """
        W_KQ, W_PV = products.W_KQ, products.W_PV
        input_size, token_size = self.second_moment.shape[0], self.gram_moments.shape[0]
        if W_KQ.shape != (1, W_KQ.shape[1], token_size, token_size):
            raise ValueError(
                f"products must be of one layer with tokens of size {token_size} (input_size + output_size), "
                f"got W_KQ of shape {W_KQ.shape}; use products of a stack with num_layers=1 for this task"
            )
        second, target, gram = (
            jnp.asarray(moment, dtype=W_KQ.dtype)
            for moment in (self.second_moment, self.target_moment, self.gram_moments)
        )
        V = self.damping * jnp.einsum("hoa,hbi->oabi", W_PV[0, :, input_size:], W_KQ[0, :, :, :input_size])
        VL = V @ second
        outputs = jnp.arange(token_size - input_size)
        # Where one index of S is target o and the other an input; S is symmetric, V is not.
        with_target = VL[outputs, :input_size, input_size + outputs] + VL[outputs, input_size + outputs, :input_size]
        linear = jnp.einsum("oai,ai->", with_target, target)
        quadratic = jnp.einsum("oabi,abcd,ocdi->", VL, gram, V, optimize=True)
        return self.trivial + linear + 0.5 * quadratic


def one_layer_loss(
    task: LinearRegression, config: StackConfig | None = None, tokens: ConcatenatedTokens | None = None
) -> OneLayerLoss:
    """The expected loss of one linear self-attention layer on a task, as a function of its products.

    Args:
        task: gives the moments, N, the noise and the scales.
        config: architecture; None means one layer of the default kind.
        tokens: the tokeniser; None means W0 = 0.

    Raises:
        ValueError: for what is not covered (see `check_one_layer`).
    """
    config = StackConfig() if config is None else config
    check_one_layer(task, config, has_initial_weights=tokens is not None and tokens.initial_weights is not None)
    second = task.input_moments().second
    signal = float(task.target_scale) ** 2
    return OneLayerLoss(
        trivial=task.output_size / 2 * signal * float(np.trace(second)),
        second_moment=second,
        target_moment=task.context_length * signal * second,
        gram_moments=_gram_moments(task),
        damping=float(config.damping),
    )


def check_one_layer(task: Task, config: StackConfig, *, has_initial_weights: bool = False) -> None:
    """Raises ValueError, naming the option, where `one_layer_loss` does not cover an architecture or a task."""
    if config.num_layers != 1:
        raise ValueError(f"model.num_layers must be 1 for the expected loss, got {config.num_layers}; sample the loss")
    if not config.is_linear:
        raise ValueError(
            "model must be linear attention alone for the expected loss (no softmax, mask, embedding, MLP or "
            "LayerNorm); sample the loss"
        )
    if config.query_in_keys:
        raise ValueError("model.query_in_keys must be False for the expected loss; sample the loss")
    if config.token_clip is not None:
        raise ValueError(
            f"model.token_clip must be None for the expected loss, got {config.token_clip}; sample the loss"
        )
    if has_initial_weights:
        raise ValueError("initial_weights must be None (W0 = 0) for the expected loss; sample the loss")
    if not isinstance(task, LinearRegression):
        raise ValueError(f"task must be linear regression for the expected loss, got {type(task).__name__}")
    if task.normalise_context:
        raise ValueError("task.normalise_context must be False for the expected loss; sample the loss")
    if (token_size := task.input_size + task.output_size) > LARGEST_TOKEN_SIZE:
        raise ValueError(
            f"task.input_size + task.output_size must be at most {LARGEST_TOKEN_SIZE} for the expected loss, whose "
            f"moments have the fourth power of that many entries, got {token_size}; sample the loss"
        )


def optimal_layer(task: LinearRegression) -> Products:
    """The layer with the least expected loss among all of any number of heads, in the gauge W_PV = -I on the targets.

    The prediction y = sum_j y_j x_j^T A x_q with, for Q = E |x|^2 x x^T,

        A = [ Q + (N - 1) L^2 + (sigma / s)^2 L ]^-1 L.

    It minimises the loss over all V, of which the loss is a convex quadratic: where signs of the targets flip (all of
    them, or all of one output), so does E[w_oi S_ab], and only the entries of S that flip along can have weight; those
    are (x, y_o), and A is their regression. Any input distribution will do. A centred one of i.i.d. coordinates gives
    the optimal gradient step, A = (eta / N) I with eta of `optimal_learning_rate`; N(0, L) gives the preconditioned
    step A = [(N + 1) L + (tr L + (sigma / s)^2) I]^-1 of Ahn et al. (2023) and Zhang et al. (2023). Inputs that are not
    centred have a preconditioner though their coordinates are i.i.d.

    Where the inputs span no more than a subspace, A vanishes off it.

    Returns:
        One layer with one head, (1, 1, token_size, token_size).

    Raises:
        ValueError: with ``normalise_context``, where no closed form is known: train instead.
    """
    if task.normalise_context:
        raise ValueError("task.normalise_context must be False for an optimum in closed form; train a layer instead")
    moments, noise_ratio = task.input_moments(), task.noise_std / float(task.target_scale)
    second = moments.second
    matrix = moments.fourth + (task.context_length - 1) * second @ second + noise_ratio**2 * second
    size = task.input_size
    W_KQ, W_PV = np.zeros((2, size + task.output_size, size + task.output_size))
    W_KQ[:size, :size] = np.linalg.pinv(matrix, hermitian=True, rcond=1e-12) @ second
    W_PV[size:, size:] = -np.eye(task.output_size)
    dtype = jnp.result_type(float)
    return Products(jnp.asarray(W_KQ[None, None], dtype=dtype), jnp.asarray(W_PV[None, None], dtype=dtype))


def _gram_moments(task: LinearRegression) -> Float[np.ndarray, "token_size token_size token_size token_size"]:
    """E[S_ab S_cd]: N times a token's fourth moments, N (N - 1) times those of two tokens that share W."""
    n = task.context_length
    return n * _same_token(task) + n * (n - 1) * _two_tokens(task)


def _same_token(task: LinearRegression) -> np.ndarray:
    """E[e_a e_b e_c e_d]. Given x, targets are independent N(0, s^2 |x|^2 + sigma^2), so Isserlis' theorem applies."""
    signal, noise, size = float(task.target_scale) ** 2, task.noise_std**2, task.input_size
    moments = task.input_moments()
    x, y = slice(size), slice(size, None)
    same = np.eye(task.output_size)
    variance_and_inputs = signal * moments.fourth + noise * moments.second  # E (s^2 |x|^2 + sigma^2) x x^T
    squared_variance = (
        signal**2 * np.trace(moments.fourth) + 2 * signal * noise * np.trace(moments.second) + noise**2
    )  # tr Q = E |x|^4
    result = np.zeros((size + task.output_size,) * 4)
    result[x, x, x, x] = task.fourth_moment_tensor()
    result[x, x, y, y] = np.einsum("ij,op->ijop", variance_and_inputs, same)
    result[y, y, x, x] = np.einsum("ij,op->opij", variance_and_inputs, same)
    result[x, y, x, y] = np.einsum("ij,op->iojp", variance_and_inputs, same)
    result[x, y, y, x] = np.einsum("ij,op->iopj", variance_and_inputs, same)
    result[y, x, x, y] = np.einsum("ij,op->oijp", variance_and_inputs, same)
    result[y, x, y, x] = np.einsum("ij,op->oipj", variance_and_inputs, same)
    result[y, y, y, y] = squared_variance * sum(_pairings(same))
    return result


def _two_tokens(task: LinearRegression) -> np.ndarray:
    """E_W[ E[e_a e_b | W] E[e_c e_d | W] ]: two tokens have W in common, and nothing else."""
    signal, noise, size = float(task.target_scale) ** 2, task.noise_std**2, task.input_size
    second = task.input_moments().second
    squared = signal * second @ second
    x, y = slice(size), slice(size, None)
    same = np.eye(task.output_size)
    variance = signal * np.trace(second) + noise
    shared = signal**2 * np.trace(second @ second)
    apart, crossed, nested = _pairings(same)
    result = np.zeros((size + task.output_size,) * 4)
    result[x, x, x, x] = np.einsum("ij,kl->ijkl", second, second)
    result[x, x, y, y] = variance * np.einsum("ij,op->ijop", second, same)
    result[y, y, x, x] = variance * np.einsum("ij,op->opij", second, same)
    result[x, y, x, y] = np.einsum("ij,op->iojp", squared, same)
    result[x, y, y, x] = np.einsum("ij,op->iopj", squared, same)
    result[y, x, x, y] = np.einsum("ij,op->oijp", squared, same)
    result[y, x, y, x] = np.einsum("ij,op->oipj", squared, same)
    result[y, y, y, y] = variance**2 * apart + shared * (crossed + nested)
    return result


def _pairings(same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three ways to pair four targets: (o o')(p p'), (o p)(o' p'), (o p')(o' p)."""
    return (
        np.einsum("ab,cd->abcd", same, same),
        np.einsum("ac,bd->abcd", same, same),
        np.einsum("ad,bc->abcd", same, same),
    )
