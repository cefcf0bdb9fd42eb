"""Applying a trained layer again and again, damped (Fig 1 right, Fig 10, A.6)."""

import dataclasses

from innerloop.checks import positive_int
from innerloop.models import Transformer


def roll_out(transformer: Transformer, *, num_layers: int, damping: float) -> Transformer:
    """The same layer applied ``num_layers`` times, with damped updates of the target entries only.

    A layer was trained to be applied once; what it writes into the inputs' entries would be noise to the next
    application, so only targets move, as in the published code. The prediction's trajectory then has the loss after
    every application.

    Args:
        transformer: tied, so that there is one layer to apply.
        num_layers: applications.
        damping: factor on each update.

    Raises:
        ValueError: if the stack is not tied.
    """
    positive_int("num_layers", num_layers)
    if not transformer.config.tied:
        raise ValueError("roll_out needs a tied stack, got an untied one: which of its layers should be repeated?")
    config = dataclasses.replace(transformer.config, num_layers=num_layers, damping=damping, update="targets")
    return Transformer(config, transformer.weights, transformer.tokens)
