"""Claims about classification. Criteria were fixed before the runs that they judge; how, says ``docs/deviations.md``.

Losses lie between log C, which equal probabilities have, and that of the best learner, so they are compared in units of
the *gain* of one tuned gradient step, log C minus its loss, or of the Bayes-optimal learner's.
"""

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, statistical
from innerloop.experiments.classification.measure import (
    BAYES,
    DESCENT,
    FAR,
    FLAT,
    LOGISTIC,
    SMOOTHING,
    TWO_STEPS,
)
from innerloop.experiments.classification.setting import LINEAR, ONE_HEAD, SOFTMAX, THREE

SAME_LOSS = Criterion(-0.01, 0.01)  # a learning rate 20 % off costs .02
NOT_MORE = Criterion(low=0.05)
COSINE = Criterion(low=0.995)  # a step on 19 of the 20 pairs has .992
STEP_SIZE = Criterion(-0.05, 0.05)
ABOVE_FLOOR = Criterion(low=0.1)  # logistic regression misses .02 to .03
WORSE_THAN_CHANCE = Criterion(low=0.0)
SOFTMAX_ABOVE = Criterion(low=0.2)
SMOOTHING_LOSS = Criterion(-0.02, 0.02)  # 30 % less sharp costs .05
SMOOTHING_COSINE = Criterion(low=0.995)  # two heads have .985 to .989

_SOURCE = "discussion"
_GAIN = "share of the step's gain"


def judge(data: xr.Dataset) -> list[Claim]:
    """Every statistical claim, from the measured data."""
    return [*(claim for model in LINEAR for claim in _linear(data, model)), *_softmax(data)]


def notes(data: xr.Dataset) -> list[str]:
    """Losses, accuracies and step sizes in words."""
    found = []
    for model in LINEAR:
        part = data.sel(model=model)
        loss, floor = part["final_loss"].mean("seed"), part["floor_loss"].mean("seed")
        accuracy = part["accuracy"].mean("seed")
        found.append(
            f"{model}: loss {float(loss.sel(learner='trained')):.4f}, of one tuned step "
            f"{float(loss.sel(learner=DESCENT)):.4f}, of two {float(loss.sel(learner=TWO_STEPS)):.4f}, of equal "
            f"probabilities {float(part['zero_loss']):.4f}, of the true ones {float(part['entropy']):.4f}; accuracy "
            f"{float(accuracy.sel(learner='trained')):.3f}, of the step {float(accuracy.sel(learner=DESCENT)):.3f}. "
            f"On the first of these tasks: step {float(floor.sel(floor_learner=DESCENT)):.4f}, logistic "
            f"regression {float(floor.sel(floor_learner=LOGISTIC)):.4f}, Bayes-optimal "
            f"{float(floor.sel(floor_learner=BAYES)):.4f}."
        )
    for model in SOFTMAX:
        part = data.sel(model=model)
        loss = part["final_loss"]
        found.append(
            f"{model}, three classes: loss {float(loss.sel(learner='trained').mean()):.4f}, of tuned kernel smoothing "
            f"{float(loss.sel(learner=SMOOTHING)[0]):.4f}."
        )
    found.append(
        "One step from W = 0 on the squared error of one-hot targets has the same probabilities as one on the "
        "cross-entropy: these claims cannot tell which of the two losses the layer descends."
    )
    return found


def _linear(data: xr.Dataset, model: str) -> list[Claim]:
    part, slug = data.sel(model=model), model.split()[0]
    excess = _excess(part, "trained")
    # The early checkpoint is of every seed; its loss is compared as the final one is.
    early = (part["early_loss"].values - _of(part, DESCENT)) / _gain(part)
    permuted = (part["permuted_loss"].values - float(part["zero_loss"])) / _gain(part)
    cosine = part["final_cosine"].sel(algorithm=DESCENT).values
    over_two = _excess(part, "trained") - _excess(part, TWO_STEPS)
    floor = part["floor_loss"]
    best = floor.sel(floor_learner=BAYES).values
    missed = {
        name: (floor.sel(floor_learner=name).values - best) / (float(part["zero_loss"]) - best)
        for name in ("trained", LOGISTIC)
    }
    return [
        statistical(
            f"{slug}-loss", f"{model}: the linear layer's loss is that of one tuned gradient step", _SOURCE, excess,
            SAME_LOSS, unit=_GAIN, control="learning rate 20 % off", control_values=_excess(part, FAR)[:1],
        ),
        statistical(
            f"{slug}-early", f"{model}: a tenth of the training leaves its loss this far above its last", _SOURCE,
            early - excess, Criterion(low=SAME_LOSS.high), unit=_GAIN, control="the end of training",
            control_values=[0.0],
        ),
        statistical(
            f"{slug}-labels", f"{model}: with its context's labels permuted it is worse than equal probabilities",
            _SOURCE, permuted, WORSE_THAN_CHANCE, unit=_GAIN, control="labels in their places",
            control_values=excess - 1,
        ),
        statistical(
            f"{slug}-cosine", f"{model}: its centred logits depend on the query as that step's do", _SOURCE, cosine,
            COSINE, unit="cosine", control="the step on all context pairs but one",
            control_values=[float(part["fewer_pairs_cosine"])],
        ),
        statistical(
            f"{slug}-step-size", f"{model}: its weights say the tuned eta = {float(part['tuned_rate']):.1f}", _SOURCE,
            part["rate"].values / float(part["tuned_rate"]) - 1, STEP_SIZE, unit="relative difference",
            control="learning rate 10 % off", control_values=[-0.1],
        ),
        statistical(
            f"{slug}-one-step", f"{model}: it does not do what two tuned steps do", _SOURCE, over_two, NOT_MORE,
            unit=_GAIN, control="two steps themselves", control_values=[0.0],
        ),
        statistical(
            f"{slug}-floor", f"{model}: one step misses this much of the Bayes-optimal learner's gain", _SOURCE,
            missed["trained"], ABOVE_FLOOR, unit="share of its gain", control="logistic regression",
            control_values=missed[LOGISTIC][:1],
        ),
    ]  # fmt: skip


def _softmax(data: xr.Dataset) -> list[Claim]:
    linear = _excess(data.sel(model=THREE), "trained")
    claims = []
    for model in SOFTMAX:
        part, slug = data.sel(model=model), "one-head" if model == ONE_HEAD else "two-heads"
        claims.append(
            statistical(
                f"{slug}-above", f"{model}: misses this much of one gradient step's gain", _SOURCE,
                _excess(part, "trained"), SOFTMAX_ABOVE, unit=_GAIN, control="the linear layer",
                control_values=linear,
            )
        )  # fmt: skip
    part = data.sel(model=ONE_HEAD)
    to_smoothing = _excess(part, "trained") - _excess(part, SMOOTHING)
    flat = _excess(part, FLAT) - _excess(part, SMOOTHING)
    return [
        *claims,
        statistical(
            "smoothing-loss", "one softmax head has the loss of tuned kernel smoothing", _SOURCE, to_smoothing,
            SMOOTHING_LOSS, unit=_GAIN, control="smoothing 30 % less sharp", control_values=flat[:1],
        ),
        statistical(
            "smoothing-cosine", "and its centred logits depend on the query as the smoothed ones do", _SOURCE,
            part["final_cosine"].sel(algorithm=SMOOTHING).values, SMOOTHING_COSINE, unit="cosine",
            control="two softmax heads",
            control_values=data.sel(model=SOFTMAX[1])["final_cosine"].sel(algorithm=SMOOTHING).values,
        ),
    ]  # fmt: skip


def _of(part: xr.Dataset, learner: str) -> np.ndarray:
    return part["final_loss"].sel(learner=learner).values


def _gain(part: xr.Dataset) -> np.ndarray:
    return float(part["zero_loss"]) - _of(part, DESCENT)


def _excess(part: xr.Dataset, learner: str) -> np.ndarray:
    """Loss above one tuned step's, in units of that step's gain, by seed."""
    return (_of(part, learner) - _of(part, DESCENT)) / _gain(part)
