"""What the classification experiment trains: one layer, linear or softmax, on two and three classes."""

import dataclasses

from innerloop.experiments.experiment import Preset
from innerloop.models import StackConfig
from innerloop.tasks import LinearClassification
from innerloop.training import OptimizerConfig, Recipe

TWO, THREE = "two classes", "three classes"
ONE_HEAD, TWO_HEADS = "one softmax head", "two softmax heads"
LINEAR, SOFTMAX = (TWO, THREE), (ONE_HEAD, TWO_HEADS)


def recipes(preset: Preset, num_seeds: int | None) -> dict[str, Recipe]:
    """One linear layer on two and on three classes; one layer of softmax with one and two heads on three.

    Numbers of the optimiser are the paper's for one layer. Softmax has three times its learning rate: pilots at the
    paper's needed three times as many steps to the same loss.
    """
    recipe = Recipe(
        task=LinearClassification(),
        seeds=tuple(range(num_seeds or (2 if preset == "smoke" else 5))),
        num_steps=5000 if preset == "paper" else 2000,
        evaluation_interval=50,
    )
    if preset == "smoke":
        recipe = dataclasses.replace(recipe, num_steps=40, batch_size=64, evaluation_interval=20, evaluation_tasks=200)
    three = dataclasses.replace(recipe, task=LinearClassification(output_size=3))
    softmax = dataclasses.replace(
        three, model=StackConfig(attention=("softmax",)), optimizer=OptimizerConfig(learning_rate=3e-3)
    )
    if preset == "quick":
        softmax = dataclasses.replace(softmax, num_steps=2500, batch_size=1024)
    heads = dataclasses.replace(softmax, model=dataclasses.replace(softmax.model, num_heads=2))
    return {TWO: recipe, THREE: three, ONE_HEAD: softmax, TWO_HEADS: heads}
