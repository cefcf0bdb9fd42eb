"""Claims: what was published, what was measured, with which interval, and the verdict that follows.

A claim is one scalar with a criterion, an interval that the scalar must lie in. A *statistical* claim is measured once
per seed and judged by the 95 % interval of its mean, or of its median where single seeds may be far off; an *exact*
claim has no interval. The verdict follows:

    reproduced       the whole interval meets the criterion
    not reproduced   the whole interval misses it, or a value is not finite
    inconclusive     otherwise, or where fewer than two seeds give no interval

The same criterion is applied to a *control* that must miss it, a near miss where possible. A claim whose control is not
``not reproduced`` is at most inconclusive, because its criterion has shown no power to tell.

    >>> claim = statistical("loss", "equal losses", "Fig 2a", [0.01, 0.02, 0.015], Criterion(-0.1, 0.1),
    ...                     control="learning rate 10 % off", control_values=[0.3, 0.31, 0.29])
    >>> claim.verdict
    'reproduced'
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

Kind = Literal["exact", "statistical"]
Verdict = Literal["reproduced", "not reproduced", "inconclusive", "consistent"]

Centre = Literal["mean", "median"]

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The claim holds if the measured value lies in ``[low, high]``."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"at most {self.high:.4g}"
        if self.high == math.inf:
            return f"at least {self.low:.4g}"
        if self.low == -self.high:
            return f"within ±{self.high:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}"

    def verdict(self, low: float, high: float) -> Verdict:
        """Judges an interval, which may be a point."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return "not reproduced"
        if low >= self.low and high <= self.high:
            return "reproduced"
        if high < self.low or low > self.high:
            return "not reproduced"
        return "inconclusive"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A scalar and its 95 % interval, null for exact values, for a single seed, and where a value is not finite."""

    measured: float
    low: float | None
    high: float | None

    @classmethod
    def over_seeds(cls, values: ArrayLike) -> "Measurement":
        """Mean over seeds with the interval of Student's t."""
        array = np.asarray(values, dtype=np.float64).ravel()
        mean = float(array.mean())
        if array.size < 2 or not math.isfinite(mean):
            return cls(mean, None, None)
        error = float(array.std(ddof=1)) / math.sqrt(array.size)
        reach = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, array.size - 1))
        return cls(mean, mean - reach, mean + reach)

    @classmethod
    def median_over_seeds(cls, values: ArrayLike) -> "Measurement":
        """Median over seeds between two order statistics, at 95 % or more whatever the distribution; from 6 seeds on.

        >>> Measurement.median_over_seeds([3.0, 1.0, 2.0, 900.0, 4.0, 5.0])
        Measurement(measured=3.5, low=1.0, high=900.0)
        """
        array = np.sort(np.asarray(values, dtype=np.float64).ravel())
        median = float(np.median(array))
        # Below the k-th smallest value there are fewer than k values: the median lies there with P(Binomial < k).
        ranks = np.arange(1, array.size // 2 + 1)
        is_sure = scipy.stats.binom.cdf(ranks - 1, array.size, 0.5) <= (1 - CONFIDENCE) / 2
        if not is_sure.any() or not math.isfinite(median):
            return cls(median, None, None)
        rank = int(ranks[is_sure].max())
        return cls(median, float(array[rank - 1]), float(array[-rank]))

    @classmethod
    def of(cls, centre: Centre, values: ArrayLike) -> "Measurement":
        """Mean or median over seeds."""
        return cls.over_seeds(values) if centre == "mean" else cls.median_over_seeds(values)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim, measured and judged. Build it with `exact` or `statistical`.

    Attributes:
        id: short name, unique in its experiment.
        statement: what is claimed, in words.
        source: where the paper says it.
        kind: exact or statistical.
        published: the published number or bound; None where the paper gives none.
        unit: of the measured value.
        measured: the value; mean (or median, as the statement says) over seeds where statistical.
        low: lower end of the 95 % interval, or None.
        high: upper end, or None.
        num_seeds: how many seeds; None for exact claims.
        criterion: in words; ``criterion_low`` and ``criterion_high`` hold its ends (None for none).
        verdict: reproduced, not reproduced or inconclusive (consistent in smoke runs).
        control: what the control is.
        control_measured: its value under the same criterion.
        control_verdict: must be ``not reproduced``.
    """

    id: str
    statement: str
    source: str
    kind: Kind
    published: float | str | None
    unit: str
    measured: float
    low: float | None
    high: float | None
    num_seeds: int | None
    criterion: str
    criterion_low: float | None
    criterion_high: float | None
    verdict: Verdict
    control: str
    control_measured: float
    control_verdict: Verdict

    def for_smoke(self) -> "Claim":
        """A smoke run trains too little to judge: it may only say consistent or inconclusive."""
        return dataclasses.replace(self, verdict="consistent" if self.verdict == "reproduced" else "inconclusive")

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; numbers that are not finite become null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }


def exact(
    id: str,
    statement: str,
    source: str,
    measured: float,
    criterion: Criterion,
    *,
    control: str,
    control_measured: float,
    published: float | str | None = None,
    unit: str = "",
) -> Claim:
    """A claim whose value has no sampling error: a proof's residual, a closed form, a count."""
    return _claim(
        id=id,
        statement=statement,
        source=source,
        kind="exact",
        published=published,
        unit=unit,
        measurement=Measurement(float(measured), None, None),
        num_seeds=None,
        criterion=criterion,
        verdict=criterion.verdict(measured, measured),
        control=control,
        control_measured=control_measured,
        control_verdict=criterion.verdict(control_measured, control_measured),
    )


def statistical(
    id: str,
    statement: str,
    source: str,
    values: ArrayLike,
    criterion: Criterion,
    *,
    control: str,
    control_values: ArrayLike,
    published: float | str | None = None,
    unit: str = "",
    centre: Centre = "mean",
) -> Claim:
    """A claim measured once per seed.

    Args:
        id: short name.
        statement: what is claimed.
        source: where the paper says it.
        values: one per seed.
        criterion: what the values must meet.
        control: what the control is.
        control_values: one per seed, or a single value for a control without randomness.
        published: the paper's number.
        unit: of the values.
        centre: what the claim is about: the mean over seeds, or the median, which a few seeds cannot carry away.
    """
    measurement, control_measurement = Measurement.of(centre, values), Measurement.of(centre, control_values)
    if not np.isfinite(values).all():
        verdict: Verdict = "not reproduced"
    elif measurement.low is None or measurement.high is None:
        verdict = "inconclusive"
    else:
        verdict = criterion.verdict(measurement.low, measurement.high)
    low = control_measurement.measured if control_measurement.low is None else control_measurement.low
    high = control_measurement.measured if control_measurement.high is None else control_measurement.high
    return _claim(
        id=id,
        statement=statement,
        source=source,
        kind="statistical",
        published=published,
        unit=unit,
        measurement=measurement,
        num_seeds=np.size(values),
        criterion=criterion,
        verdict=verdict,
        control=control,
        control_measured=control_measurement.measured,
        control_verdict=criterion.verdict(low, high),
    )


def _claim(*, measurement: Measurement, criterion: Criterion, verdict: Verdict, **described: Any) -> Claim:
    """Spells measurement and criterion out, and lowers the verdict of a claim whose control does not fail."""
    if verdict == "reproduced" and described["control_verdict"] != "not reproduced":
        verdict = "inconclusive"
    return Claim(
        measured=measurement.measured,
        low=measurement.low,
        high=measurement.high,
        criterion=str(criterion),
        criterion_low=criterion.low if math.isfinite(criterion.low) else None,
        criterion_high=criterion.high if math.isfinite(criterion.high) else None,
        verdict=verdict,
        **described,
    )
