"""A recipe: everything that determines a training run, and nothing else.

The defaults are the paper's one-layer recipe as its code runs it (see `innerloop.training.published`). Recipes check
their own ranges when they are built, whether the values come from the command line, a file or Python.

    >>> recipe = Recipe(model=StackConfig(num_layers=2), seeds=(0, 1, 2))
    >>> recipe.optimizer.gradient_clip, recipe.token_size
    (0.001, 11)
"""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp

from innerloop.checks import finite_number, one_of, positive_int
from innerloop.exact import check_one_layer
from innerloop.keys import LARGEST_SEED
from innerloop.models import StackConfig
from innerloop.tasks import LinearRegression, Task
from innerloop.tokens import AlternatingTokens, ConcatenatedTokens, Positions, Tokens

Dtype = Literal["float32", "float64"]
MatmulPrecision = Literal["default", "high", "highest"]
Loss = Literal["sampled", "expected"]
TokenLayout = Literal["concatenated", "alternating"]
Method = Literal["adamw", "lbfgs"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind a clip of the gradient's global norm, or L-BFGS, which has none of AdamW's numbers."""

    method: Method = "adamw"
    """AdamW, or L-BFGS with a line search (only for loss="expected", without clip and weight decay)."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.98
    """Decay of Adam's second moment (the published code's value; the text reports Adam's default)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    gradient_clip: float | None = 0.001
    """Largest global norm of a seed's gradient; None means no clip."""

    def __post_init__(self):
        one_of("optimizer.method", self.method, get_args(Method))
        finite_number("optimizer.learning_rate", self.learning_rate, above=0.0)
        for name in ("b1", "b2"):
            finite_number(f"optimizer.{name}", getattr(self, name), minimum=0.0)
            if getattr(self, name) >= 1:
                raise ValueError(f"optimizer.{name} must be below 1, got {getattr(self, name)!r}; choose e.g. 0.9")
        finite_number("optimizer.eps", self.eps, minimum=0.0)
        finite_number("optimizer.weight_decay", self.weight_decay, minimum=0.0)
        if self.gradient_clip is not None:
            finite_number("optimizer.gradient_clip", self.gradient_clip, above=0.0)
        if self.method == "lbfgs" and (self.gradient_clip is not None or self.weight_decay != 0):
            raise ValueError(
                'optimizer.method="lbfgs" needs gradient_clip None and weight_decay 0, since its line search is on the '
                f"loss alone, got {self.gradient_clip!r} and {self.weight_decay!r}; set optimizer.gradient_clip to None"
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to train, on what, how, and with which seeds."""

    task: Task = dataclasses.field(default_factory=LinearRegression)
    """Distribution of the training and held-out problems."""
    model: StackConfig = dataclasses.field(default_factory=StackConfig)
    """Architecture of the attention stack."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How weights are updated."""
    token_layout: TokenLayout = "concatenated"
    """A token per pair (x, y), or tokens that alternate x and y."""
    positions: Positions = dataclasses.field(default_factory=Positions)
    """Positional codes of alternating tokens; concatenated ones have none."""
    loss: Loss = "sampled"
    """Loss of a fresh batch per step, or the exact expectation over all tasks (one layer; batch_size plays no part)."""
    initial_weights: tuple[tuple[float, ...], ...] | None = None
    """W0, rows per output: the query token is (x_q, -W0 x_q). None means zero."""
    gd_plus_plus_from: tuple[float, float] | None = None
    """Train only the numbers of GD++, per distinct layer, from this (eta, gamma) on; None trains all weights."""
    gd_on_features: float | None = None
    """Train only the embedding, below one constructed gradient step with this eta; None trains all weights."""
    init_scale: float = 0.002
    """Variance scale of the weights' initialisation, divided by the number of layers."""
    num_steps: int = 5000
    """Optimiser steps, each on fresh tasks (or on the expected loss)."""
    batch_size: int = 2048
    """Tasks per step."""
    training_tasks: int | None = None
    """Train every seed on this many tasks of its own, all of them in each step (then batch_size plays no part)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Independent repetitions; all are trained by one compiled program."""
    evaluation_interval: int = 100
    """Steps between measurements on held-out tasks; also the length of a compiled chunk and of a checkpoint's grid."""
    evaluation_tasks: int = 10_000
    """Number of held-out tasks, the same for all seeds and steps."""
    evaluation_seed: int = 0
    """Seed of the held-out tasks; their stream is disjoint from every training stream."""
    dtype: Dtype = "float32"
    """Precision of weights, data and arithmetic."""
    matmul_precision: MatmulPrecision = "highest"
    """Precision of matrix products on accelerators (CPUs always use full precision)."""

    def __post_init__(self):
        finite_number("init_scale", self.init_scale, above=0.0)
        self._check_tokens()
        width = self.model.embedding_size
        if width is not None and width < self.task.output_size:
            raise ValueError(
                f"model.embedding_size must be at least task.output_size = {self.task.output_size}, got {width}; "
                "predictions are read off that many entries of an embedded token"
            )
        if self.gd_plus_plus_from is not None:
            for value in self.gd_plus_plus_from:
                finite_number("gd_plus_plus_from", value)
            self._check_room_for_construction("gd_plus_plus_from")
            if not self.model.is_linear:
                raise ValueError(
                    "gd_plus_plus_from needs linear attention alone (no softmax, mask, embedding, MLP or LayerNorm); "
                    "leave those at their defaults"
                )
        if self.gd_on_features is not None:
            self._check_gd_on_features(self.gd_on_features)
        for name in ("num_steps", "batch_size", "evaluation_interval", "evaluation_tasks"):
            positive_int(name, getattr(self, name))
        if self.training_tasks is not None:
            positive_int("training_tasks", self.training_tasks)
        positive_int("evaluation_seed", self.evaluation_seed, minimum=0, maximum=LARGEST_SEED)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds!r}; use e.g. 0 1 2")
        for seed in self.seeds:
            positive_int("seeds", seed, minimum=0, maximum=LARGEST_SEED)
        one_of("dtype", self.dtype, get_args(Dtype))
        one_of("matmul_precision", self.matmul_precision, get_args(MatmulPrecision))
        one_of("loss", self.loss, get_args(Loss))
        if self.loss == "expected":
            if self.training_tasks is not None:
                raise ValueError(
                    f'training_tasks has no meaning with loss="expected", which is over all tasks, got '
                    f"{self.training_tasks!r}; set one of them back to its default"
                )
            check_one_layer(self.task, self.model, has_initial_weights=self.initial_weights is not None)
        elif self.optimizer.method == "lbfgs":
            raise ValueError(
                'optimizer.method="lbfgs" needs loss="expected", since a line search on fresh samples means nothing; '
                "set loss or use adamw"
            )
        if self.initial_weights is not None:
            shape = (self.task.output_size, self.task.input_size)
            if len(self.initial_weights) != shape[0] or {len(row) for row in self.initial_weights} != {shape[1]}:
                raise ValueError(
                    f"initial_weights must have {shape[0]} row(s) of {shape[1]} numbers (output_size x input_size), "
                    f"got rows of lengths {[len(row) for row in self.initial_weights]}"
                )
            for row in self.initial_weights:
                for value in row:
                    finite_number("initial_weights", value)

    def _check_tokens(self) -> None:
        one_of("token_layout", self.token_layout, get_args(TokenLayout))
        if self.token_layout == "concatenated":
            if self.positions != Positions():
                raise ValueError(
                    f"positions must be left alone for concatenated tokens, which have no codes, got {self.positions}; "
                    "set token_layout to alternating"
                )
            return
        only_concatenated = {
            "initial_weights": self.initial_weights,
            "gd_plus_plus_from": self.gd_plus_plus_from,
            "gd_on_features": self.gd_on_features,
            'loss="expected"': True if self.loss == "expected" else None,
        }
        for name, value in only_concatenated.items():
            if value is not None:
                raise ValueError(
                    f'{name} needs token_layout="concatenated", whose tokens hold pairs, got "{self.token_layout}"; '
                    "change one of them"
                )
        _ = self.token_size  # one-hot codes need as many entries as there are tokens

    def _check_room_for_construction(self, name: str) -> None:
        if self.model.num_heads != 1 or self.model.key_size is not None:
            raise ValueError(
                f"{name} needs one head of the token's width, got num_heads={self.model.num_heads}, "
                f"key_size={self.model.key_size}; leave both at their defaults"
            )

    def _check_gd_on_features(self, learning_rate: float) -> None:
        finite_number("gd_on_features", learning_rate)
        self._check_room_for_construction("gd_on_features")
        model = self.model
        plain = dataclasses.replace(model, embedding_size=None, mlp="none")
        if model.num_layers != 1 or not plain.is_linear or model.mlp == "block":
            raise ValueError(
                "gd_on_features needs one layer of linear attention without mask, block MLP and LayerNorm; "
                "leave those at their defaults"
            )
        if model.embedding_size is None and model.mlp == "none":
            raise ValueError("gd_on_features needs model.embedding_size or model.mlp='input' to train; set one")
        if model.embedding_size is not None and model.embedding_size == self.task.output_size:
            raise ValueError(
                f"model.embedding_size must be above task.output_size for gd_on_features, got {model.embedding_size}; "
                "the other entries of an embedded token are the features"
            )
        if self.gd_plus_plus_from is not None:
            raise ValueError("gd_on_features and gd_plus_plus_from exclude each other; set one of them to None")

    @property
    def num_tokens(self) -> int:
        """Length of a problem's sequence, the query included."""
        return self._sequence_shape()[0]

    @property
    def token_size(self) -> int:
        """Width of a token, its positional code included."""
        return self._sequence_shape()[1]

    def _sequence_shape(self) -> tuple[int, int]:
        task = self.task
        return self.tokens().shape(
            input_size=task.input_size, output_size=task.output_size, context_length=task.context_length
        )

    @property
    def tasks_per_step(self) -> int:
        """How many tasks a step sees: a fresh batch, or the whole fixed training set."""
        return self.batch_size if self.training_tasks is None else self.training_tasks

    def linear_task(self) -> LinearRegression:
        """The task, for code that is about linear regression alone.

        Raises:
            TypeError: if it is of another family.
        """
        if not isinstance(self.task, LinearRegression):
            raise TypeError(f"task must be LinearRegression here, got {type(self.task).__name__}")
        return self.task

    def tokens(self) -> Tokens:
        """The tokeniser, with W0 in the recipe's precision."""
        if self.token_layout == "alternating":
            return AlternatingTokens(self.positions)
        if self.initial_weights is None:
            return ConcatenatedTokens()
        return ConcatenatedTokens(jnp.asarray(self.initial_weights, dtype=self.dtype))
