"""What the experiments on deep stacks share: whom a stack is compared with, what is measured, claims and figures."""

from innerloop.experiments.deep.figures import training_figure, weights_figure
from innerloop.experiments.deep.judge import (
    alignment_claims,
    exact_claims,
    loss_claims,
    loss_note,
    order_claims,
    reading_claims,
    shift_claims,
    shortened_note,
)
from innerloop.experiments.deep.measure import SIZES, STAGES, measure

__all__ = [
    "SIZES",
    "STAGES",
    "alignment_claims",
    "exact_claims",
    "loss_claims",
    "loss_note",
    "measure",
    "order_claims",
    "reading_claims",
    "shift_claims",
    "shortened_note",
    "training_figure",
    "weights_figure",
]
