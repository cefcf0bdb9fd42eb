"""Weight decay as weights, checked in float64 on random problems; beside the same layers without their tokens."""

import jax
import jax.numpy as jnp

from innerloop.algorithms import GradientDescent
from innerloop.claims import Claim, Criterion, exact
from innerloop.constructions import weight_decay_transformer
from innerloop.keys import named_key, root_key
from innerloop.tasks import LinearRegression

EXACT = Criterion(high=1e-12)
_LEARNING_RATE, _WEIGHT_DECAY, _NUM_LAYERS = 0.7, 0.2, 3
_NUM_PROBLEMS = 16


def proof_claims() -> list[Claim]:
    """The construction against the algorithm, as an exact claim."""
    with jax.enable_x64(True):
        task = LinearRegression(input_size=5, output_size=3, context_length=7, noise_std=0.5)
        problems = task.samples(named_key(root_key(0), "proofs"), _NUM_PROBLEMS).problem
        descent = GradientDescent(_LEARNING_RATE, _NUM_LAYERS, weight_decay=_WEIGHT_DECAY)
        built = weight_decay_transformer(
            input_size=task.input_size,
            output_size=task.output_size,
            context_length=task.context_length,
            learning_rate=_LEARNING_RATE,
            weight_decay=_WEIGHT_DECAY,
            num_layers=_NUM_LAYERS,
        )
        expected = jax.vmap(descent)(problems).trajectory
        errors = [
            float(jnp.abs(jax.vmap(learner)(problems).trajectory - expected).max())
            for learner in (built, built.learner)
        ]
    return [
        exact(
            "decay-construction", f"Prop 1 with n_i constant tokens more: {_NUM_LAYERS} steps of GD with weight decay",
            "construction", errors[0], EXACT, unit="largest |difference|", control="without those tokens",
            control_measured=errors[1],
        )
    ]  # fmt: skip
