"""Training on several devices: seeds shared out among them, and the tasks of a batch where devices are left.

The devices form a grid of two axes. Along ``seeds`` every device trains its own seeds, and nothing is exchanged. Along
``tasks`` every device sees its part of each batch, and the gradient is the mean over the devices. Seeds come first,
because they cost no communication. The tasks are those of one device, and so are the numbers, up to rounding.

    >>> layout(num_devices=4, num_seeds=6, num_tasks=2048)
    Layout(seeds=2, tasks=2)
    >>> layout(num_devices=4, num_seeds=5, num_tasks=2048)
    Layout(seeds=1, tasks=4)

Several CPU devices exist only where ``XLA_FLAGS=--xla_force_host_platform_device_count`` asks for them, to try this.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from innerloop.kernels import Kernel

SEEDS, TASKS = "seeds", "tasks"


class Layout(NamedTuple):
    """How many devices share the seeds, and how many the tasks of each of these seeds."""

    seeds: int
    tasks: int


def layout(*, num_devices: int, num_seeds: int, num_tasks: int) -> Layout:
    """The grid of devices: the most that divide the seeds, then the most of the rest that divide the tasks.

    Args:
        num_devices: devices at hand; those that divide neither stay idle.
        num_seeds: seeds of the recipe.
        num_tasks: tasks per step; 1 keeps every batch on one device.
    """
    seeds = math.gcd(num_seeds, num_devices)
    return Layout(seeds, math.gcd(num_tasks, num_devices // seeds))


def over_seeds(function: Callable[..., Any], *arguments: Any) -> Any:
    """One seed after the other on a CPU, all at once elsewhere; arguments and results have a leading axis of seeds.

    On a CPU one seed's arithmetic fills the cores already, and the loop keeps a seed's bits independent of its
    company; an accelerator needs all seeds together to be filled.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda packed: function(*packed), arguments)
    return jax.vmap(function)(*arguments)


def over_devices(function: Callable[..., Any], grid: Layout, shared: Any, *arguments: Any) -> Any:
    """`over_seeds`, with the seeds on the devices of a grid.

    Args:
        function: ``(shared, *arguments of one seed) -> results of one seed``.
        grid: the devices to use; a grid of one adds nothing to the program.
        shared: what all seeds read.
        arguments: with a leading axis of seeds.
    """

    def on_device(shared, *arguments):
        return over_seeds(partial(function, shared), *arguments)

    if grid == Layout(1, 1):
        return on_device(shared, *arguments)
    mesh = Mesh(np.array(jax.devices()[: grid.seeds * grid.tasks]).reshape(grid), (SEEDS, TASKS))
    by_seed = Spec(SEEDS)
    sharded = jax.shard_map(
        on_device, mesh=mesh, in_specs=(Spec(), *[by_seed] * len(arguments)), out_specs=by_seed, check_vma=False
    )
    return sharded(shared, *arguments)


def share_tasks(kernel: Kernel, num_parts: int) -> Kernel:
    """A kernel whose devices along ``tasks`` see a part of every batch each; for use within `over_devices`.

    Every device draws the whole batch and keeps its part, so that the tasks are those of one device.

    Args:
        kernel: one whose draws are arrays with the tasks along their last axis.
        num_parts: devices that share a batch; 1 leaves the kernel as it is.
    """
    if num_parts == 1:
        return kernel

    def own_part(leaf):
        size = leaf.shape[-1] // num_parts
        return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(TASKS) * size, size, axis=-1)

    def prepare(stream, step):
        return jax.tree.map(own_part, kernel.prepare(stream, step))

    def loss_and_gradient(weights, draw):
        return jax.lax.pmean(kernel.loss_and_gradient(weights, draw), TASKS)

    return kernel._replace(prepare=prepare, loss_and_gradient=loss_and_gradient)
