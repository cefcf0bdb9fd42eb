"""What the experiments on deep stacks share: whom a stack is compared with, what is measured, claims and figures."""

from innerloop.experiments.deep.figures import training_figure, weights_figure
from innerloop.experiments.deep.judge import alignment_claims, loss_claims, order_claims, reading_claims, shift_claims
from innerloop.experiments.deep.measure import SIZES, STAGES, measure

__all__ = [
    "SIZES",
    "STAGES",
    "alignment_claims",
    "loss_claims",
    "measure",
    "order_claims",
    "reading_claims",
    "shift_claims",
    "training_figure",
    "weights_figure",
]
