"""Comparing any two learners, and reading algorithms off weights."""

from innerloop.analysis.alignment import (
    Alignment,
    Linearisation,
    align,
    align_with,
    compare,
    linearisations,
    linearise,
    sensitivity,
)
from innerloop.analysis.conditioning import condition_gamma, condition_numbers, corrected_eigenvalues
from innerloop.analysis.copying import (
    Neighbours,
    jacobian_norms,
    mean_attention,
    neighbours,
    strongest_neighbour,
    summed_sensitivities,
)
from innerloop.analysis.evaluation import over_learners, over_tasks, task_accuracies, task_losses, trajectory_losses
from innerloop.analysis.heads import (
    ExpansionError,
    FirstOrderSoftmax,
    combined_key_query,
    expansion_error,
    first_order_softmax,
    head_steps,
    off_diagonal_share,
)
from innerloop.analysis.identifiability import LayerComparison, compare_layers, match_gauge, read_entries
from innerloop.analysis.interpolation import fix_gauge, interpolate
from innerloop.analysis.out_of_distribution import draw_tasks, scale_sweep, scaled_samples
from innerloop.analysis.plateaus import Drop, find_drop
from innerloop.analysis.rise_and_fall import RiseAndFall, find_rise_and_fall
from innerloop.analysis.rollout import roll_out
from innerloop.analysis.tuning import best_numbers
from innerloop.analysis.weights import LayerReading, key_query_scale, read_layers

__all__ = [
    "Alignment",
    "Drop",
    "ExpansionError",
    "FirstOrderSoftmax",
    "LayerComparison",
    "LayerReading",
    "Linearisation",
    "Neighbours",
    "RiseAndFall",
    "align",
    "align_with",
    "best_numbers",
    "combined_key_query",
    "compare",
    "compare_layers",
    "condition_gamma",
    "condition_numbers",
    "corrected_eigenvalues",
    "draw_tasks",
    "expansion_error",
    "find_drop",
    "find_rise_and_fall",
    "first_order_softmax",
    "fix_gauge",
    "head_steps",
    "interpolate",
    "jacobian_norms",
    "key_query_scale",
    "linearisations",
    "linearise",
    "match_gauge",
    "mean_attention",
    "neighbours",
    "off_diagonal_share",
    "over_learners",
    "over_tasks",
    "read_entries",
    "read_layers",
    "roll_out",
    "scale_sweep",
    "scaled_samples",
    "sensitivity",
    "strongest_neighbour",
    "summed_sensitivities",
    "task_accuracies",
    "task_losses",
    "trajectory_losses",
]
