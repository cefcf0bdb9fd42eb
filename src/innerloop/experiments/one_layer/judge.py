"""Claims of the one-layer experiment. Criteria were fixed before the runs that they judge, but for those
logged in ``docs/deviations.md``.

Where a claim says "equal", its margin is about half of what the near miss (a learning rate 10 % off, unless the control
says otherwise) would show in the same measure: closer to the truth than to the nearest lie.
"""

import math
from typing import cast

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, exact, statistical
from innerloop.exact import one_step_loss, optimal_learning_rate
from innerloop.experiments.one_layer.measure import STABLE_FRACTION
from innerloop.experiments.one_layer.setting import MAIN_LENGTH, NEAR_MISS
from innerloop.tasks import LinearRegression

COSINE = Criterion(low=0.99)  # published: > .99; two tuned steps reach .96
MODEL_DIFFERENCE = Criterion(high=0.104)  # the near miss has .209
PREDICTION_DIFFERENCE = Criterion(high=0.025)  # the near miss has .050
SHIFTED_LOSS = Criterion(high=0.11)  # largest relative deviation along a sweep; the near miss has .21 to .23
SCALED_TARGETS = Criterion(high=0.02)  # a learning rate 20 % off has .041
STEP_SIZE = Criterion(-0.03, 0.03)  # c - c*, with c* = .606; 10 % off is .06
WEIGHT_ERROR = Criterion(high=0.15)
ROLLED_MEDIAN = Criterion(high=0.005)  # largest difference along 50 applications
FIRST_APPLICATION = Criterion(0.0080, 0.0166)  # published .217 - .2047 = .0123; .217 is read off a plot, good to 2 %
LAST_APPLICATION = Criterion(0.040, 0.052)  # published .046
DESCENT_LOSS = Criterion(0.1957, 0.2137)  # published .2047 on one set of 10 000 tasks, whose mean scatters by .003


def equal_loss(length: int) -> Criterion:
    """Half of what a learning rate 10 % off costs at N = n_i = ``length``, relative, by the closed form.

    Half of 1.0 % at N = 10.
    """
    task = LinearRegression(input_size=length, context_length=length)
    best = optimal_learning_rate(task)
    margin = (one_step_loss(task, NEAR_MISS * best) / one_step_loss(task, best) - 1) / 2
    return Criterion(-margin, margin)


def judge(data: xr.Dataset) -> list[Claim]:
    """Every claim about trained weights and closed forms, from the measured data."""
    return [
        *_closed_form(),
        *_trained_against_constructed(data),
        *_context_lengths(data),
        *_distribution_shifts(data),
        *_roll_outs(data),
        *_weights(data),
    ]


def _closed_form() -> list[Claim]:
    text = LinearRegression(input_scale=2.0)
    here = LinearRegression()
    return [
        exact(
            "gd-loss", "expected loss of one optimal gradient step, in closed form", "Fig 2a",
            one_step_loss(here, optimal_learning_rate(here)), DESCENT_LOSS, published=0.2047,
            control="inputs U(-1, 1), as the text says", unit="half squared error",
            control_measured=one_step_loss(text, optimal_learning_rate(text)),
        )
    ]  # fmt: skip


def _trained_against_constructed(data: xr.Dataset) -> list[Claim]:
    loss = data["final_loss"]
    relative = _relative(loss, "learner")
    near_miss = "learning rate 10 % off"
    descent = loss.sel(learner="gradient descent")
    off_target = data["off_target_interpolation_loss"] / descent - 1
    return [
        statistical(
            "loss", "a trained layer reaches the loss of one tuned gradient step", "Fig 2a",
            _values(relative, "trained"), equal_loss(MAIN_LENGTH), published="equal",
            unit="relative difference of losses", control=near_miss,
            control_values=_values(relative, "control")[:1],
        ),
        statistical(
            "cosine", "the sensitivities point the same way", "Fig 2b",
            data["final_cosine"].values, COSINE, published="> .99", unit="cosine",
            control="two gradient steps", control_values=[float(data["two_steps_cosine"])],
        ),
        statistical(
            "model-difference", "the sensitivities are equal", "Fig 2b",
            data["final_model_difference"].values, MODEL_DIFFERENCE, published="near 0", unit="mean norm",
            control=near_miss, control_values=[float(data["control_model_difference"])],
        ),
        statistical(
            "prediction-difference", "the predictions are equal", "Fig 2b",
            data["final_prediction_difference"].values, PREDICTION_DIFFERENCE, published="near 0",
            unit="mean absolute difference", control=near_miss,
            control_values=[float(data["control_prediction_difference"])],
        ),
        statistical(
            "interpolation", "the mean of trained and constructed weights has the same loss", "A.3",
            _values(relative, "interpolated"), equal_loss(MAIN_LENGTH), published="equal",
            unit="relative difference of losses", control="a construction with its learning rate 20 % off",
            control_values=off_target.values,
        ),
    ]  # fmt: skip


def _context_lengths(data: xr.Dataset) -> list[Claim]:
    claims = []
    for length in data["context_length"].values:
        loss = data["sweep_loss"].sel(context_length=length).dropna("sweep_seed", how="all")
        relative = _relative(loss, "learner")
        claims += [
            statistical(
                f"loss-N{length}" if learner == "trained" else f"interpolation-N{length}",
                f"N = n_i = {length}: the {learner} layer has the loss of one tuned gradient step", "Fig 2c",
                _values(relative, learner), equal_loss(int(length)), published="identical",
                unit="relative difference of losses", control="learning rate 10 % off",
                control_values=_values(relative, "control")[:1],
            )
            for learner in ("trained", "interpolated")
        ]  # fmt: skip
    return claims


def _distribution_shifts(data: xr.Dataset) -> list[Claim]:
    def claim(id, statement, source, loss: xr.DataArray, axis: str, criterion: Criterion, control: str) -> list[Claim]:
        deviation = cast(xr.DataArray, abs(_relative(loss, "swept"))).max(axis)
        return [
            statistical(
                id if learner == "trained" else f"{id}-interpolated",
                statement if learner == "trained" else f"{statement}, interpolated", source,
                deviation.sel(swept=learner).values, criterion, published="identical",
                unit="largest relative difference of losses", control=control,
                control_values=deviation.sel(swept="control").values[:1],
            )
            for learner in ("trained", "interpolated")
        ]  # fmt: skip

    ten, twenty = "learning rate 10 % off", "learning rate 20 % off"
    inputs, targets = data["input_scale_loss"], data["target_scale_loss"]
    claims = claim(
        "ood-inputs", "inputs scaled by .5 to 2: same loss", "Fig 2d", inputs, "input_scale", SHIFTED_LOSS, ten
    )
    claims += claim(
        "ood-targets", "targets scaled by .5 to 5: same loss", "Fig 6a", targets, "target_scale", SCALED_TARGETS, twenty
    )
    for name in data["distribution"].values:
        for kind, how in (("text", "scaled"), ("code", "divided by the context's norm and scaled")):
            loss = data[f"{kind}_scale_loss"].sel(distribution=name)
            statement = f"{name} inputs, {how}: same loss"
            claims += claim(f"ood-{name}-{kind}", statement, "Fig 6a", loss, f"{kind}_scale", SHIFTED_LOSS, ten)
    return claims


def _roll_outs(data: xr.Dataset) -> list[Claim]:
    claims = []
    for damping in data["damping"].values:
        median = data["rollout_median"].sel(damping=damping)
        gap = abs(median - median.sel(rolled="gradient descent")).max("application")
        claims.append(
            statistical(
                f"rollout-{damping:g}", f"applied 50 times with damping {damping:g}, a layer lowers the loss like GD",
                "Fig 10", gap.sel(rolled="trained").values, ROLLED_MEDIAN, published="alike",
                unit="largest difference of median losses", control="learning rate 30 % off",
                control_values=gap.sel(rolled="control").values[:1],
            )
        )  # fmt: skip
    stable = data["rollout_stable_mean"].sel(damping=0.75, rolled="trained")
    mean = data["rollout_mean"].sel(rolled="trained")
    undamped = data["final_loss"].sel(learner="gradient descent")
    first = {d: mean.sel(damping=d, application=1) - undamped for d in (0.75, 0.875)}
    claims += [
        statistical(
            "rollout-first", "damping .75: loss after 1 application, above one undamped GD step", "Fig 1 right",
            first[0.75].values, FIRST_APPLICATION, published=0.0123, unit="half squared error, paired tasks",
            control="damping .875", control_values=first[0.875].values,
        ),
        statistical(
            "rollout-last", "damping .75: loss after 48 applications, mean over stable tasks", "Fig 1 right",
            stable.sel(application=48).values, LAST_APPLICATION, published=0.046, unit="half squared error",
            control="after 24 applications", control_values=stable.sel(application=24).values,
        ),
    ]  # fmt: skip
    floor = math.log10(float(data["trivial_loss"]))
    last = data["rollout_mean"].sel(damping=1.0, application=data["application"].values[-1])
    calm = data["rollout_stable_mean"].sel(damping=0.75, application=data["application"].values[-1])
    for learner in ("trained", "gradient descent"):
        claims.append(
            statistical(
                f"rollout-diverges-{learner.replace(' ', '-')}",
                f"undamped, the mean loss of {learner} diverges above that of predicting zero", "Fig 10",
                np.log10(last.sel(rolled=learner).values), Criterion(low=floor), published="diverges",
                unit="log10 of half squared error", control="damping .75, stable tasks",
                control_values=np.log10(calm.sel(rolled=learner).values),
            )
        )  # fmt: skip
    return claims


def _weights(data: xr.Dataset) -> list[Claim]:
    best = float(data["learning_rate"]) / LinearRegression().context_length
    step_size = data["step_size"].values
    early = f"the weights after {int(data['early_step'])} steps"
    signs, product_signs = np.sign(data["scale"].values), np.sign(step_size)
    return [
        statistical(
            "step-size", f"the products say c = eta / N = {best:.4f}: difference from it", "Fig 9",
            step_size - best, STEP_SIZE, published="-.006 ± .01", unit="c", control="learning rate 10 % off",
            control_values=[-0.1 * best],
        ),
        statistical(
            "W_KQ", "W_KQ is b diag(1, .., 1, 0)", "Fig 9", data["key_query_error"].values, WEIGHT_ERROR,
            published="as in the figure", unit="relative Frobenius norm", control=early,
            control_values=data["early_key_query_error"].values,
        ),
        statistical(
            "W_PV", "only the last entry of P W_V is not zero", "Fig 9", data["value_error"].values, WEIGHT_ERROR,
            published="as in the figure", unit="relative Frobenius norm", control=early,
            control_values=data["early_value_error"].values,
        ),
        exact(
            "sign", "the sign of b depends on the seed: seeds with the rarer sign", "Fig 9",
            _rarer(signs), Criterion(low=1.0), published="both occur", unit="seeds",
            control="sign of the product b (P W_V), which is determined", control_measured=_rarer(product_signs),
        ),
    ]  # fmt: skip


def stable_tasks_note(data: xr.Dataset) -> str:
    """Which tasks the means over applications are taken on."""
    counts = ", ".join(
        f"{int(count)} at damping {damping:g}"
        for damping, count in zip(data["damping"].values, data["rollout_stable_tasks"].values, strict=True)
    )
    return (
        f"Means over repeated applications are taken on the held-out tasks whose largest eigenvalue of X X^T is below "
        f"{STABLE_FRACTION:g} of GD's stability limit 2 / (damping c): {counts}. Medians use all tasks."
    )


def _relative(loss: xr.DataArray, axis: str) -> xr.DataArray:
    """Difference from gradient descent's loss on the same tasks, relative to it."""
    descent = loss.sel({axis: "gradient descent"})
    return (loss - descent) / descent


def _values(data: xr.DataArray, learner: str) -> np.ndarray:
    return data.sel(learner=learner).values


def _rarer(signs: np.ndarray) -> float:
    return float(min((signs > 0).sum(), (signs < 0).sum()))
