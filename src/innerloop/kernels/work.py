"""How much arithmetic a batch's loss and gradient take, counted by formulas.

Additions and multiplications of the arrangement that the native kernel uses (``docs/native.md``), leading terms only,
per task, with N context tokens, tokens of width d = n_i + n_o, H heads and K layers:

    one layer                           8 H N d + 8 H d^2
    K >= 2, no clip (Gram form)         N d^2 + (K - 2)(12 H + 8) d^3 + (1 + 2 H)(16 H + 2) d^2
    K >= 2, token clip (token form)     (K - 2)(9 N d^2 + 12 H d^3) + 5 N d^2 + 4 H d^3 + (1 + 2 H)(14 H + 2) d^2
                                        + 16 H N d + 8 H d^2

(where no token reaches the clip) and 2 N n_i n_o for the targets. Random numbers are no arithmetic in this sense;
`random_words` counts them.
"""

from innerloop.models import StackConfig
from innerloop.tasks import Task


def operations_per_task(config: StackConfig, task: Task) -> int:
    """Floating-point operations of loss and gradient, per task.

    >>> from innerloop.tasks import LinearRegression
    >>> operations_per_task(StackConfig(), LinearRegression())  # 8 * 10 * 11 + 8 * 11 * 11 + 2 * 10 * 10
    2048
    """
    context, heads = task.context_length, config.num_heads
    width = task.input_size + task.output_size
    targets = 2 * context * task.input_size * task.output_size
    last_layer = 8 * heads * context * width + 8 * heads * width**2
    if config.num_layers == 1:
        return targets + last_layer
    if config.token_clip is not None:
        full_layer = 9 * context * width**2 + 12 * heads * width**3
        moved = 5 * context * width**2 + 4 * heads * width**3
        differentiated = (1 + 2 * heads) * (14 * heads + 2) * width**2 + 8 * heads * context * width
        return targets + (config.num_layers - 2) * full_layer + moved + differentiated + last_layer
    full_layer = (12 * heads + 8) * width**3
    last_two = (1 + 2 * heads) * (16 * heads + 2) * width**2
    return targets + context * width**2 + (config.num_layers - 2) * full_layer + last_two


def random_words(task: Task) -> int:
    """32-bit random words per task of linear regression without noise: inputs and the task's weights.

    >>> from innerloop.tasks import LinearRegression
    >>> random_words(LinearRegression())  # 11 * 10 + 10
    120
    """
    return (task.context_length + 1) * task.input_size + task.input_size * task.output_size
