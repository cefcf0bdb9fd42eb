"""Recipe to stored run: the one place that joins training and store.

    >>> import tempfile
    >>> from innerloop.training import Recipe
    >>> recipe = Recipe(num_steps=2, evaluation_interval=1, batch_size=8, evaluation_tasks=8, seeds=(0,))
    >>> with tempfile.TemporaryDirectory() as store:
    ...     run = obtain_run(recipe, store)           # trains
    ...     again = obtain_run(recipe, store)         # loads
    >>> run.metrics.sizes["step"], bool((run.metrics.evaluation_loss == again.metrics.evaluation_loss).all())
    (3, True)

A run that was killed goes on from its last checkpoint, to the same bits as one that was not.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from innerloop.kernels import path_instruction_set
from innerloop.models import StackWeights, Transformer
from innerloop.store import (
    CHECKPOINT,
    ENVIRONMENT,
    METRICS,
    RECIPE,
    WEIGHTS,
    RunFolder,
    StoreError,
    damaged,
    differences,
    ensure_writable,
    environment,
    read_json,
    read_tensors,
    run_name,
    write_atomically,
    write_json,
    write_tensors,
)
from innerloop.tasks import LinearRegression, family_name, loss_unit
from innerloop.training import (
    Measurement,
    Recipe,
    TrainingState,
    initial_state,
    numerics,
    recipe_from_json,
    recipe_path,
    recipe_to_json,
    stack_weights,
    train,
)

_SECONDS_BETWEEN_CHECKPOINTS = 2.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a caller is told while a run trains.

    Attributes:
        name: the run's name.
        step: steps taken.
        num_steps: steps to take.
        loss: held-out loss, mean over seeds that have not diverged.
        is_waiting: another process trains this run, and this one waits for it.
    """

    name: str
    step: int
    num_steps: int
    loss: float
    is_waiting: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        name: its name in the store.
        recipe: what was trained.
        metrics: ``train_loss``, ``evaluation_loss``, ``gradient_norm`` by step and seed, ``diverged_at`` by seed.
        weights: final weights, every leaf with a leading seed axis.
        snapshots: weights at every measurement, leaves (measurement, seed, ...).
        environment: what it was computed with.
        environment_differences: what is different here, one line each.
    """

    name: str
    recipe: Recipe
    metrics: xr.Dataset
    weights: StackWeights
    snapshots: StackWeights
    environment: dict[str, str]
    environment_differences: list[str]

    def transformers(self, weights: StackWeights | None = None) -> Transformer:
        """The trained learners of all seeds as one pytree with a leading seed axis (final weights by default)."""
        return Transformer(self.recipe.model, self.weights if weights is None else weights, self.recipe.tokens())

    def transformer(self, seed_index: int) -> Transformer:
        """The trained learner of one seed."""
        return self.transformers(jax.tree.map(lambda leaf: leaf[seed_index], self.weights))

    def diverged(self) -> dict[int, int]:
        """Seeds that diverged, with the step at which they did."""
        steps = self.metrics["diverged_at"].values
        return {seed: int(step) for seed, step in zip(self.recipe.seeds, steps, strict=True) if step >= 0}


def name_of(recipe: Recipe) -> str:
    """The name under which a recipe's run is stored on this backend."""
    task, model = recipe.task, recipe.model
    family = "" if type(task) is LinearRegression else f"{family_name(task)}-"
    kind = "tied" if model.tied else "untied"
    trained = "" if recipe.gd_plus_plus_from is None else "-gd++"
    trained += "-expected" if recipe.loss == "expected" else ""
    trained += "" if recipe.gd_on_features is None else "-gd"
    trained += "" if recipe.training_tasks is None else f"-of{recipe.training_tasks}"
    layout = "-alternating" if recipe.token_layout == "alternating" else ""
    label = f"{family}{model.num_layers}-{kind}-N{task.context_length}-d{task.input_size}{layout}{trained}"
    with numerics(recipe):
        kernel_path = recipe_path(recipe)
    return run_name(label, recipe_to_json(recipe), kernel_path=kernel_path, backend=jax.default_backend())


def obtain_run(recipe: Recipe, store: str | Path, report: Callable[[Progress], Any] | None = None) -> Run:
    """Loads a recipe's run from the store, or trains it there first.

    Args:
        recipe: what to train.
        store: folder that holds runs.
        report: called with the progress at every measurement.

    Raises:
        StoreError: if the store cannot be written to, or a file of the run is damaged.
    """
    store = Path(store)
    folder = RunFolder(store / name_of(recipe))
    if not folder.is_complete():
        ensure_writable(store)
        waiting = Progress(folder.path.name, 0, recipe.num_steps, float("nan"), is_waiting=True)
        with folder.locked(on_wait=lambda: report(waiting) if report else None):
            if not folder.is_complete():
                _train_into(folder, recipe, report)
    return load_run(folder)


def load_run(folder: RunFolder) -> Run:
    """Reads a complete run, verifying every file.

    Raises:
        StoreError: if the run is not complete or a file is damaged.
    """
    folder.verify()
    recipe = _read_recipe(folder)
    tensors = read_tensors(folder.file(WEIGHTS))
    recorded = read_json(folder.file(ENVIRONMENT))
    with numerics(recipe):
        template = _weights_template(recipe)
        weights = _from_tensors("weights", template, tensors, folder.file(WEIGHTS))
        snapshots = _from_tensors("snapshots", template, tensors, folder.file(WEIGHTS))
    try:
        metrics = xr.load_dataset(folder.file(METRICS), engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise damaged(folder.file(METRICS), str(error)) from None
    changes = differences(recorded, _environment(recipe))
    return Run(folder.path.name, recipe, metrics, weights, snapshots, recorded, changes)


def _environment(recipe: Recipe) -> dict[str, str]:
    """What a recipe would be trained with here, down to the instruction set, since bits are promised per set."""
    with numerics(recipe):
        instruction_set = path_instruction_set(recipe_path(recipe))
    return {**environment(), "instruction set": instruction_set}


def _train_into(folder: RunFolder, recipe: Recipe, report) -> None:
    """Trains, from the checkpoint if there is one, and completes the folder."""
    if folder.file(CHECKPOINT).exists():
        if _read_recipe(folder) != recipe:
            raise damaged(folder.file(RECIPE), "it is not the recipe that the folder is named after")
        stored, history = _read_checkpoint(folder, recipe)
        recorded = read_json(folder.file(ENVIRONMENT))
        if changes := differences(recorded, _environment(recipe)):
            # Bits are promised per environment: a run begun in one and finished in another says so for ever.
            write_json(folder.file(ENVIRONMENT), {**recorded, "finished elsewhere": "; ".join(changes)})
    else:
        write_atomically(folder.file(RECIPE), recipe_to_json(recipe).encode())
        write_json(folder.file(ENVIRONMENT), _environment(recipe))
        stored, history = None, []
    written = time.monotonic()
    state = stored
    for state, measurement in train(recipe, stored):
        history.append(_on_host(measurement))
        if report is not None:
            report(_progress(folder, recipe, history[-1]))
        if time.monotonic() - written > _SECONDS_BETWEEN_CHECKPOINTS:
            _write_checkpoint(folder, state, history)
            written = time.monotonic()
    assert state is not None  # train yields at least once, or there was a checkpoint
    _write_results(folder, recipe, state, history)
    folder.mark_complete()


def _progress(folder: RunFolder, recipe: Recipe, measurement: Measurement) -> Progress:
    losses = np.asarray(measurement.evaluation_loss)
    finite = losses[np.isfinite(losses)]
    mean = float(finite.mean()) if finite.size else float("nan")
    return Progress(folder.path.name, int(measurement.step), recipe.num_steps, mean)


def _write_results(folder: RunFolder, recipe: Recipe, state: TrainingState, history: list[Measurement]) -> None:
    stacked = _stack(history)
    final = jax.tree.map(lambda leaf: leaf[-1], stacked.weights)
    tensors = {**_to_tensors("weights", final), **_to_tensors("snapshots", stacked.weights)}
    write_tensors(folder.file(WEIGHTS), tensors)
    unit = loss_unit(recipe.task.prediction_loss)
    by_step = {
        "train_loss": (stacked.train_loss, f"{unit}, mean over the chunk's steps"),
        "gradient_norm": (stacked.gradient_norm, "global norm before clipping, mean over the chunk"),
        "evaluation_loss": (stacked.evaluation_loss, f"{unit} on the held-out tasks"),
    }
    variables: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {
        name: (("step", "seed"), np.asarray(values), {"units": units}) for name, (values, units) in by_step.items()
    }
    variables["diverged_at"] = (("seed",), np.asarray(state.diverged_at), {"units": "step; -1 for never"})
    coordinates = {"step": np.asarray(stacked.step), "seed": np.asarray(recipe.seeds)}
    dataset = xr.Dataset(variables, coordinates, attrs={"run": folder.path.name})
    write_atomically(folder.file(METRICS), bytes(dataset.to_netcdf(engine="h5netcdf")))


def _write_checkpoint(folder: RunFolder, state: TrainingState, history: list[Measurement]) -> None:
    tensors = {**_to_tensors("state", state), **_to_tensors("history", _stack(history))}
    write_tensors(folder.file(CHECKPOINT), tensors)


def _read_checkpoint(folder: RunFolder, recipe: Recipe) -> tuple[TrainingState, list[Measurement]]:
    path = folder.file(CHECKPOINT)
    tensors = read_tensors(path)
    with numerics(recipe):
        state_template = jax.eval_shape(lambda: initial_state(recipe))
        # Only the structure counts: shapes and dtypes come from the file.
        step = state_template.step
        history_template = Measurement(step, step, step, step, _weights_template(recipe))
        state = _from_tensors("state", state_template, tensors, path)
    history = _from_tensors("history", history_template, tensors, path, convert=np.asarray)
    return state, [jax.tree.map(lambda leaf, i=i: leaf[i], history) for i in range(history.step.shape[0])]


def _read_recipe(folder: RunFolder) -> Recipe:
    path = folder.file(RECIPE)
    try:
        return recipe_from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None


def _weights_template(recipe: Recipe) -> StackWeights:
    return jax.eval_shape(lambda: jax.vmap(partial(stack_weights, recipe))(initial_state(recipe).parameters))


def _on_host(measurement: Measurement) -> Measurement:
    return jax.tree.map(np.asarray, measurement)


def _stack(history: list[Measurement]) -> Measurement:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *history)


def _to_tensors(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {f"{prefix}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def _from_tensors(prefix: str, template: Any, tensors: dict[str, np.ndarray], path: Path, convert=jnp.asarray) -> Any:
    """Fills a pytree's structure with the tensors stored under its leaves' names."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [f"{prefix}{jax.tree_util.keystr(leaf_path)}" for leaf_path, _ in leaves]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}; remove the folder {path.parent} to compute it again")
    return jax.tree.unflatten(structure, [convert(tensors[name]) for name in names])
