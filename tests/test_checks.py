"""Messages that name the argument, what was expected and what came."""

import math

import numpy as np
import pytest

from innerloop.checks import finite_number, one_of, positive_int


@pytest.mark.parametrize("value", [0, -3, 1.0, True, "2", None, math.nan])
def test_positive_int_refuses(value):
    with pytest.raises(ValueError, match=r"model\.size must be an integer of at least 1, got"):
        positive_int("model.size", value)


def test_positive_int_accepts():
    positive_int("size", 1)
    positive_int("size", np.int64(2))
    positive_int("size", 0, minimum=0)
    with pytest.raises(ValueError, match="at least 5"):
        positive_int("size", 4, minimum=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "2", None, 1j])
def test_finite_number_refuses(value):
    with pytest.raises(ValueError, match="rate must be a finite number, got"):
        finite_number("rate", value)


def test_finite_number_bounds():
    finite_number("rate", -2)
    finite_number("rate", np.float32(0.0), minimum=0.0)
    finite_number("rate", 1e-300, above=0.0)
    with pytest.raises(ValueError, match=r"of at least 0, got -0\.5"):
        finite_number("rate", -0.5, minimum=0.0)
    with pytest.raises(ValueError, match=r"above 0, got 0\.0"):
        finite_number("rate", 0.0, above=0.0)


def test_one_of():
    one_of("update", "all", ("all", "targets"))
    with pytest.raises(ValueError, match="update must be one of 'all', 'targets', got 'none'"):
        one_of("update", "none", ("all", "targets"))
