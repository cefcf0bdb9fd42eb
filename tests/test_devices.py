"""Several devices train what one trains, up to rounding.

JAX makes its devices once per process, so the runs on several CPU devices are a process of their own.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from innerloop.training.devices import layout

CASES = {
    "seeds": {"seeds": (0, 1, 2, 3), "batch_size": 25},  # a device each; the batch cannot be cut
    "tasks": {"seeds": (0, 1, 2), "batch_size": 24},  # every batch is cut into four
    "fixed tasks": {"seeds": (0, 1, 2), "training_tasks": 12},
    "both": {"seeds": (0, 1), "batch_size": 24},  # two devices each
}

TRAIN = """
import json, sys
import jax, numpy as np
from innerloop.tasks import LinearRegression
from innerloop.training import Recipe, train

arrays = {}
for name, settings in json.loads(sys.argv[2]).items():
    recipe = Recipe(
        task=LinearRegression(input_size=3, context_length=5), num_steps=20, evaluation_interval=10,
        evaluation_tasks=32, **settings | {"seeds": tuple(settings["seeds"])},
    )
    *_, (state, measurement) = train(recipe)
    weights = jax.tree.leaves(state.parameters)
    arrays[f"{name}, devices"] = len(weights[0].sharding.device_set)
    for index, array in enumerate([*weights, measurement.train_loss, measurement.evaluation_loss]):
        arrays[f"{name}, {index}"] = array
np.savez(sys.argv[1], **arrays)
"""

PARTS = """
import jax, jax.numpy as jnp
from innerloop.kernels import Kernel
from innerloop.training.devices import Layout, over_devices, share_tasks

draws = jnp.arange(2.0 * 12).reshape(2, 12)
kernel = share_tasks(Kernel("jax", lambda stream, step: draws, lambda weights, draw: (draw.sum(), weights)), 2)

def one_seed(shared, seed):
    draw = kernel.prepare(None, None)
    return draw.shape[-1] + 0 * seed, kernel.loss_and_gradient(seed, draw)[0]

size, total = jax.jit(lambda seeds: over_devices(one_seed, Layout(2, 2), (), seeds))(jnp.arange(4.0))
assert size.tolist() == [6, 6, 6, 6], size  # half of the tasks each
assert total.tolist() == [draws.sum() / 2] * 4, total  # and the mean over both halves
"""


def run(program, *arguments, num_devices):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "INNERLOOP_NATIVE": "off",
    }
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Everything that one and four devices trained and measured, and how many were used."""
    arrays = []
    for num_devices in (1, 4):
        path = tmp_path_factory.mktemp("trained") / "arrays.npz"
        run(TRAIN, str(path), json.dumps(CASES), num_devices=num_devices)
        arrays.append(dict(np.load(path)))
    return arrays


@pytest.mark.parametrize("case", CASES)
def test_four_devices_give_the_numbers_of_one(trained, case):
    alone, shared = ({name: array for name, array in of.items() if name.startswith(f"{case}, ")} for of in trained)
    assert (alone.pop(f"{case}, devices"), shared.pop(f"{case}, devices")) == (1, 4)
    assert alone
    for name, array in alone.items():
        np.testing.assert_allclose(shared[name], array, rtol=1e-4, atol=1e-6)


def test_every_device_sees_a_part_of_the_tasks():
    run(PARTS, num_devices=4)


@given(st.integers(1, 16), st.integers(1, 20), st.integers(1, 4096))
def test_a_grid_fits_and_divides(num_devices, num_seeds, num_tasks):
    grid = layout(num_devices=num_devices, num_seeds=num_seeds, num_tasks=num_tasks)
    assert grid.seeds * grid.tasks <= num_devices
    assert num_seeds % grid.seeds == 0
    assert num_tasks % grid.tasks == 0
