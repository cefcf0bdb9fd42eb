"""Claims about noise. Margins follow by rule from algorithms alone; bars without an algorithm from pilots.

*Whom the layers follow.* A stack's own algorithm is what it does without noise: gradient descent for one layer, GD++
from two on. The claim "equal" has half of a near miss as its margin: learning rates 10 % off for losses; for cosines
the nearer of the closest rival and the own algorithm on 9 of the 10 context pairs. The *place* of a stack between its
own algorithm and a rival is (distance to the rival - distance to its own) / (distance between the two), in mean norms
of differences of sensitivities: 1 at its own, -1 at the rival, 0 where it is as far from both.
"""

from typing import cast

import numpy as np
import xarray as xr

from innerloop.claims import Claim, Criterion, exact, statistical
from innerloop.experiments.against_descent import DESCENT, PLUS_PLUS
from innerloop.experiments.noise.setting import (
    ALGORITHMS,
    FEWER,
    FIVE,
    NEAR,
    NOISE_LEVELS,
    ONE,
    PLAIN,
    REDUCED,
    RIDGE,
    STACKS,
    TWO,
    WRONG_RIDGE,
    own_algorithm,
)

WEAK, STRONG = NOISE_LEVELS
NEAREST = Criterion(low=0.5)  # three quarters of the way from a rival
CLOSED_FORM = Criterion(high=0.005)  # a step 10 % off has .009 and .006
EXACT_TRAINING = Criterion(high=1e-4)
STEP_SIZE = Criterion(-0.05, 0.05)  # the noiseless optimum is 5.5 and 30 % off
SHORTER = Criterion(high=-0.015)
BEYOND = Criterion(high=-0.001)
TARGET_KEY = Criterion(low=0.008)
FOUR_NUMBERS = Criterion(high=0.005)
HALF = Criterion(high=0.5)

# Rivals that are the own algorithm (weight decay in one step, ridge for five steps of GD++) have no place beside it.
_SAME = 0.02
_SLUGS = {ONE: "one", TWO: "two", FIVE: "five"}


def judge(data: xr.Dataset) -> list[Claim]:
    """Every claim that the data have something to say about."""
    claims = [*_replaced_claims(data), *_closed_form_claims(data)]
    for stack in data["stack"].values:
        for level in data["noise"].values:
            claims += _follow_claims(data.sel(stack=stack, noise=level), str(stack), float(level))
    claims += _optimizer_claims(data)
    if STRONG in data["noise"]:
        claims += _strong_noise_claims(data)
    return claims


def own_and_rivals(cell: xr.Dataset, stack: str) -> tuple[str, list[str]]:
    """The algorithm of a stack, and all others that are not the same function."""
    own = own_algorithm(stack)
    apart = cell["model_difference"].sel(learner=own).isel(seed=0)
    return own, [name for name in ALGORITHMS if float(apart.sel(other=name)) > _SAME]


def places(cell: xr.Dataset, stack: str) -> xr.DataArray:
    """(other, seed): the trained stack's place between its own algorithm and every rival."""
    own, others = own_and_rivals(cell, stack)
    apart = cell["model_difference"]
    to_rivals = apart.sel(learner="trained", other=others)
    return (to_rivals - apart.sel(learner="trained", other=own)) / apart.sel(learner=own, other=others)


def nearest_note(data: xr.Dataset) -> str:
    """Which algorithm each stack is nearest to, in three measures."""
    parts = []
    for stack in data["stack"].values:
        for level in data["noise"].values:
            cell = data.sel(stack=stack, noise=level)
            own, others = own_and_rivals(cell, str(stack))
            trained = cell.sel(learner="trained", other=[own, *others]).mean("seed")
            loss = cell["loss"].sel(learner=[own, *others]) / cell["loss"].sel(learner="trained") - 1
            names = (
                trained["other"].values[int(trained["model_difference"].argmin("other"))],
                trained["other"].values[int(trained["cosine"].argmax("other"))],
                loss["learner"].values[int(cast(xr.DataArray, abs(loss)).mean("seed").argmin("learner"))],
            )
            parts.append(f"{stack} at noise {level:g} to {names[0]}, {names[1]}, {names[2]}")
    return f"Nearest by difference of sensitivities, by their cosine, by loss: {'; '.join(parts)}."


def loss_note(data: xr.Dataset) -> str:
    """Losses on the held-out tasks, side by side."""
    parts = []
    for stack in data["stack"].values:
        for level in data["noise"].values:
            loss = data["loss"].sel(stack=stack, noise=level)
            plain = ", ".join(f"{name} {float(loss.sel(learner=name)[0]):.4f}" for name in ALGORITHMS)
            trained = loss.sel(learner="trained")
            parts.append(
                f"{stack}, noise {level:g}: {plain}, trained {float(trained.mean()):.4f} "
                f"({float(trained.min()):.4f} to {float(trained.max()):.4f})"
            )
    return f"Losses on the held-out tasks. {'; '.join(parts)}."


def _follow_claims(cell: xr.Dataset, stack: str, level: float) -> list[Claim]:
    """Loss, cosine and place of one stack at one noise level."""
    slug, (own, others) = f"{_SLUGS[stack]}-{level:g}", own_and_rivals(cell, stack)
    name = {DESCENT: "GD", PLUS_PLUS: "GD++"}[own]
    where = f"{stack}, noise {level:g}"
    loss = cell["loss"] / cell["loss"].sel(learner=own) - 1
    near = float(loss.sel(learner=NEAR)[0])
    cosines = cell["cosine"].sel(learner=own).isel(seed=0)
    lie = max([*others, FEWER], key=lambda other: float(cosines.sel(other=other)))
    nearest_lie = float(cosines.sel(other=lie))
    place = places(cell, stack)
    nearest = str(place["other"].values[int(place.mean("seed").argmin("other"))])
    return [
        statistical(
            f"loss-{slug}", f"{where}: the loss of {name} as tuned for the noisy task", "open question",
            loss.sel(learner="trained").values, Criterion(-abs(near) / 2, abs(near) / 2),
            unit="relative difference of losses", control=f"{name} with learning rates 10 % off",
            control_values=[near],
        ),
        statistical(
            f"cosine-{slug}", f"{where}: the sensitivities point {name}'s way", "open question",
            cell["cosine"].sel(learner="trained", other=own).values, Criterion(low=1 - (1 - nearest_lie) / 2),
            unit="cosine", control=f"{name} on 9 of the 10 pairs" if lie == FEWER else lie,
            control_values=[nearest_lie],
        ),
        statistical(
            f"follows-{slug}", f"{where}: at {name}, not half-way to any other algorithm (the closest call: {nearest})",
            "open question", place.min("other").values, NEAREST, unit="place between the two",
            control=f"{nearest} in the stack's place", control_values=[-1.0],
        ),
    ]  # fmt: skip


def _replaced_claims(data: xr.Dataset) -> list[Claim]:
    """The published code's noisy targets: the noiseless layer and one gradient step agree on them."""
    loss = data["replaced_loss"] / data["replaced_loss"].sel(replaced_learner=DESCENT) - 1
    largest = cast(xr.DataArray, abs(loss)).max("replaced")
    near = float(largest.sel(replaced_learner=NEAR)[0])
    cosine = data["replaced_cosine"]
    lie = float(cosine.sel(replaced_learner=FEWER).max())
    apart = data["replaced_model_difference"]
    ratio = (apart / apart.sel(replaced_learner=NEAR)).max("replaced")
    where = "trained without noise, tested with 0 to 8 of 10 targets replaced by N(0, 1)"
    return [
        statistical(
            "replaced-loss", f"{where}: the loss of one GD step", "published code",
            largest.sel(replaced_learner="trained").values, Criterion(high=near / 2), published="agree",
            unit="largest relative difference of losses", control="learning rate 10 % off", control_values=[near],
        ),
        statistical(
            "replaced-cosine", f"{where}: sensitivities point GD's way", "published code",
            cosine.sel(replaced_learner="trained").min("replaced").values, Criterion(low=1 - (1 - lie) / 2),
            published="agree", unit="least cosine", control="a step on 9 of the 10 pairs", control_values=[lie],
        ),
        statistical(
            "replaced-difference", f"{where}: sensitivities are GD's", "published code",
            ratio.sel(replaced_learner="trained").values, HALF, published="agree",
            unit="largest ratio of the difference to a learning rate 10 % off's", control="learning rate 10 % off",
            control_values=[1.0],
        ),
    ]  # fmt: skip


def _closed_form_claims(data: xr.Dataset) -> list[Claim]:
    """One layer against the best layer there is, from its weights: no samples in the loss."""
    claims = []
    for level in data["noise"].values:
        cell = data.sel(noise=level)
        sampled = cell.sel(training="sampled loss")
        claims += [
            exact(
                f"closed-form-{level:g}", f"one layer, noise {level:g}: expected loss of the worst of "
                f"{data.sizes['seed']} seeds, above the optimal layer's", "closed form",
                float(sampled["excess"].max()), CLOSED_FORM, unit="relative difference of expected losses",
                control="the optimal step, 10 % off", control_measured=float(cell["near_excess"]),
            ),
            statistical(
                f"step-size-{level:g}", f"one layer, noise {level:g}: c = eta / N in its weights, relative to the "
                "optimum for this noise", "closed form", sampled["step_size_error"].values, STEP_SIZE,
                unit="relative difference", control="the optimum without noise",
                control_values=[float(cell["noiseless_step_size_error"])],
            ),
        ]  # fmt: skip
        if "expected loss" in data["training"]:
            exactly = cell["excess"].sel(training="expected loss")
            claims.append(
                exact(
                    f"exact-training-{level:g}", f"one layer trained on the expected loss, noise {level:g}: the same, "
                    "worst seed", "closed form", float(exactly.max()), EXACT_TRAINING,
                    unit="relative difference of expected losses", control="trained on samples, best seed",
                    control_measured=float(sampled["excess"].min()),
                )
            )  # fmt: skip
    return claims


def _optimizer_claims(data: xr.Dataset) -> list[Claim]:
    """Weight decay in AdamW, on the transformer's own weights."""
    weak, strong = data["optimizer_decay"].values[1:]
    step = data["decayed_step_size"]
    shorter = step / step.sel(optimizer_decay=0) - 1
    lie = float(data["decayed_control_cosine"].mean())
    return [
        statistical(
            "adamw-shorter-step", f"AdamW's weight decay {strong:g} shortens the step that one layer takes, same seeds",
            "open question", shorter.sel(optimizer_decay=strong).values, SHORTER, unit="relative difference of c",
            control=f"weight decay {weak:g}", control_values=shorter.sel(optimizer_decay=weak).values,
        ),
        statistical(
            "adamw-still-gd", f"and with weight decay {strong:g} it is still a gradient step", "open question",
            data["decayed_cosine"].sel(optimizer_decay=strong).values, Criterion(low=1 - (1 - lie) / 2), unit="cosine",
            control="a step on 9 of the 10 pairs", control_values=[lie],
        ),
    ]  # fmt: skip


def _strong_noise_claims(data: xr.Dataset) -> list[Claim]:
    """What strong noise asks for, and what two layers do there that GD++ cannot."""
    claims = []
    for stack in (TWO, FIVE):
        decay = data["tuned_decay"].sel(stack=stack)
        claims.append(
            exact(
                f"decay-sign-{_SLUGS[stack]}", f"{STACKS[stack][0]} steps of GD want weight decay at noise {STRONG:g}: "
                "tuned lambda", "closed form", float(decay.sel(noise=STRONG)), Criterion(low=0.0),
                unit="1 / learning rate", control=f"noise {WEAK:g}, where they want growth",
                control_measured=float(decay.sel(noise=WEAK)),
            )
        )  # fmt: skip
    for level in data["noise"].values:
        apart = data["model_difference"].sel(stack=FIVE, noise=level, other=RIDGE).isel(seed=0)
        wrong = float(apart.sel(learner=WRONG_RIDGE))
        claims.append(
            exact(
                f"five-is-ridge-{level:g}", f"noise {level:g}: five steps of tuned GD++ are ridge regression with the "
                "true noise, the Bayes-optimal learner", "spectra", float(apart.sel(learner=PLUS_PLUS)),
                Criterion(high=wrong / 2), unit="difference of sensitivities, mean norm",
                control="ridge for noise 10 % too large", control_measured=wrong,
            )
        )  # fmt: skip
    loss = data["loss"].sel(stack=TWO, noise=STRONG)
    relative = loss / loss.sel(learner=PLUS_PLUS) - 1
    return [
        *claims,
        statistical(
            f"two-beat-gd++-{STRONG:g}", f"two tied layers, noise {STRONG:g}: less loss than GD++ with shared numbers",
            "open question", relative.sel(learner="trained").values, BEYOND, unit="relative difference of losses",
            control="GD++ with learning rates 10 % off", control_values=[float(relative.sel(learner=NEAR)[0])],
        ),
        statistical(
            f"two-four-numbers-{STRONG:g}", f"two tied layers, noise {STRONG:g}: four numbers, GD++'s and a key on the "
            "target entry, keep the loss", "open question", _lost(loss, REDUCED, "trained"), FOUR_NUMBERS,
            unit="relative difference of losses", control="without that key",
            control_values=_lost(loss, PLAIN, "trained"),
        ),
        *_target_key_claims(data),
    ]  # fmt: skip


def _target_key_claims(data: xr.Dataset) -> list[Claim]:
    """The key on the target entry, which lets layers decay, pays in strong noise."""
    controls = {
        TWO: (f"noise {WEAK:g}", data["loss"].sel(stack=TWO, noise=WEAK)),
        FIVE: ("one layer, which cannot use it", data["loss"].sel(stack=ONE, noise=STRONG)),
    }
    return [
        statistical(
            f"{_SLUGS[stack]}-target-key-{STRONG:g}", f"{stack}, noise {STRONG:g}: loss that the key on the target "
            "entry spares", "open question", _lost(data["loss"].sel(stack=stack, noise=STRONG), PLAIN, REDUCED),
            TARGET_KEY, unit="relative difference of losses", control=control,
            control_values=_lost(loss, PLAIN, REDUCED),
        )
        for stack, (control, loss) in controls.items()
    ]  # fmt: skip


def _lost(loss: xr.DataArray, learner: str, of: str) -> np.ndarray:
    """Relative difference of losses, by seed."""
    return (loss.sel(learner=learner) / loss.sel(learner=of) - 1).values
