"""Runs the training loop of the published code, from a checkout that the user names.

Nothing of that code is here: the checkout is imported as it is, configured for a recipe, and driven by the same calls
that its notebooks for concatenated tokens (`constructed_token_setup.ipynb`), sine waves
(`non_linear_regression.ipynb`) and alternating tokens (`normal_token_construct.ipynb`) make in each step.
"""

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from innerloop.tasks import SineWaves
from innerloop.training import Recipe

_NEEDED_FILES = ("attn.py", "config.py", "data.py", "train.py", "transformer.py")
_WARM_UP_STEPS = 3  # the first two calls of its update compile: the state's types change once


class UnsuitableReferenceError(Exception):
    """The path holds no reference that can run; the message is one line and says what to do."""


class ReferenceLoop:
    """The published loop for one recipe and one seed; every `run` goes on from the state that the last one left.

    Attributes:
        start_up_seconds: time of the first steps, nearly all of it compilation.
        start_up_steps: how many steps that were.
    """

    def __init__(self, path: Path, recipe: Recipe):
        """Imports the code anew and takes the first steps.

        Args:
            path: the checkout's folder, which contains ``src``.
            recipe: what to train.

        Raises:
            UnsuitableReferenceError: if the folder is not the published one, or its code does not run here.
        """
        check_files(path)
        try:
            self._train = _import_afresh(path)
            self._config = self._train.config
            self._config.update(reference_settings(recipe))
            self._train.change_dataloader()
            self._optimiser, self._state, _, key = self._train.init()
            _, self._data_key = jax.random.split(key)
            self.start_up_seconds, self.start_up_steps = self.run(_WARM_UP_STEPS), _WARM_UP_STEPS
        except Exception as error:  # whatever foreign code raises, the user needs one line about it
            raise UnsuitableReferenceError(_advice(path, error)) from error

    def run(self, steps: int) -> float:
        """Trains for ``steps`` steps, fresh tasks each, and returns the seconds until the weights are there."""
        config = self._config
        start = time.perf_counter()
        for _ in range(steps):
            key, self._data_key = jax.random.split(self._data_key)
            tasks = self._train.data_creator(
                jax.random.split(key, num=config.bs),
                config.input_size,
                config.dataset_size,
                config.size_distract,
                config.input_range,
                config.weight_scale,
            )
            self._state, _ = self._train.update(self._state, tasks, self._optimiser)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def check_files(path: Path) -> None:
    """Raises `UnsuitableReferenceError` unless the published files are there."""
    missing = [name for name in _NEEDED_FILES if not (path / "src" / name).is_file()]
    if missing:
        raise UnsuitableReferenceError(
            f"{path} has no src/{missing[0]}; pass the folder transformers_learn_icl_by_gd of a checkout of "
            "google-research/self-organising-systems"
        )


def reference_settings(recipe: Recipe) -> dict[str, Any]:
    """The published configuration's entries for a recipe: pairs (stacks or blocks), sine waves, alternating tokens."""
    task, model, optimizer = recipe.task, recipe.model, recipe.optimizer
    alternates, width = recipe.token_layout == "alternating", model.embedding_size or recipe.token_size
    if isinstance(task, SineWaves):
        # Its wave takes amplitude and phase from the code; its input size is that of the embedded tokens.
        data = {
            "non_linear_reg_task": True,
            "input_size": width - 1,
            "input_range": task.input_range,
            "weight_scale": 1,
        }
    else:
        task = recipe.linear_task()
        data = {
            "input_size": task.input_size,
            "input_range": float(task.input_scale),
            "weight_scale": int(task.target_scale),
        }
    return {
        **data,
        "seed": recipe.seeds[0],
        "bs": recipe.batch_size,
        "dataset_size": task.context_length,
        "size_distract": 0,
        "num_layers": model.num_layers,
        "deq": model.tied,
        "gd_deq": model.tied,
        "num_heads": model.num_heads,
        "key_size": width,
        "emb_size": width,
        "in_proj": model.embedding_size is not None,
        "input_mlp": model.mlp == "input",
        "input_mlp_out_dim": width,
        "widening_factor": model.mlp_widening,
        "init_scale": recipe.init_scale / model.num_layers,
        "dampening": float(model.damping),
        "clip": 0.0 if model.token_clip is None else float(model.token_clip),
        "adam": True,
        "lr": optimizer.learning_rate,
        "b1": optimizer.b1,
        "b2": optimizer.b2,
        "wd": optimizer.weight_decay,
        "grad_clip_value": optimizer.gradient_clip,
        "att_only_trans": model.mlp != "block",
        "use_softmax": False,
        "first_layer_sm": model.attention_kind(0) == "softmax",
        "classic_token_const": alternates,
        "ana_copy": alternates,
        "use_bias": False,
        "layer_norm": False,
        "include_query": False,
        "pos_enc": alternates,
        "pos_enc_size": width - task.input_size if alternates else 20,
        "concat_pos_enc": alternates,
        "dropout_rate": 0.0,
        "y_update": False,
        "analyse": not alternates,
        "local_usage": True,
    }


def _import_afresh(path: Path) -> Any:
    """Imports ``src.train`` from ``path`` with nothing left of an earlier import.

    Its compiled functions read a global configuration while they are traced, and JAX would reuse the trace of an
    earlier recipe whose weights have the same shapes.
    """
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]
    folder = str(path.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    module: ModuleType = importlib.import_module("src.train")
    return module


def _advice(path: Path, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the reference needs the module {error.name!r}; install dm-haiku, ml_collections, absl-py and pytz"
    summary = next(iter(str(error).splitlines()), "")
    return (
        f"the code in {path} does not run on jax {jax.__version__} ({type(error).__name__}: {summary}); "
        "patch it as benchmarks/README.md says"
    )
