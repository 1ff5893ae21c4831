"""Sums of rounded shares against the exact mechanism: by convolution and by splines, neither of which ours uses."""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.interpolate import BSpline
from scipy.stats import norm

from fedrecall.privacy.accounting.gaussian import gaussian_delta
from fedrecall.privacy.accounting.shares import delta_of_gap, gap
from fedrecall.protocol.errors import PlanError


def sum_of_shares(std: float, shares: int, reach: int) -> np.ndarray:
    """The probabilities of a sum of rounded normals at -reach..reach, by convolution."""
    numbers = np.arange(-reach, reach + 1)
    one = norm.cdf((numbers + 0.5) / std) - norm.cdf((numbers - 0.5) / std)
    total = np.ones(1)
    for _ in range(shares):
        total = np.convolve(total, one)
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


def rounded_at_random(std: float, shares: int, reach: int) -> np.ndarray:
    """The probabilities of the normal of all shares, rounded at random by a cardinal spline's weights."""
    spline = BSpline.basis_element(np.arange(shares + 1) - shares / 2, extrapolate=False)
    whole = norm(scale=std * math.sqrt(shares))

    def of(n: int) -> float:
        points = n - (np.arange(shares + 1) - shares / 2)[::-1]
        parts = itertools.pairwise(points)
        return sum(quad(lambda x: whole.pdf(x) * float(spline(n - x)), a, b, epsabs=1e-15)[0] for a, b in parts)

    return np.array([of(n) for n in range(-reach, reach + 1)])


@pytest.mark.parametrize(("std", "shares"), [(0.5, 2), (0.6, 3), (0.8, 2), (0.7, 6), (1.0, 2), (1.0, 4)])
def test_the_gap_is_never_below_the_truth_and_not_far_above(std: float, shares: int) -> None:
    reach = math.ceil(9 * std * math.sqrt(shares)) + shares
    found, exact = sum_of_shares(std, shares, reach), rounded_at_random(std, shares, reach)
    assert exact.sum() == pytest.approx(1.0, abs=1e-10), "the weights are of a rounding"
    true = float(np.abs(found - exact).sum()) / 2
    bound = gap(std, shares)
    assert true <= bound + 1e-12
    # Below one step a share the bound says nothing: it stops at 1.
    assert bound <= 1.0 and (std < 1.0 or bound < 3000 * true)


@pytest.mark.parametrize(("std", "shares"), [(0.8, 3), (1.2, 2)])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_delta_of_the_sum_is_at_most_that_of_the_gaussian_and_the_gap(
    std: float, shares: int, shift: int, epsilon: float
) -> None:
    """The true delta of one number that moves by ``shift``, from all probabilities."""
    reach = math.ceil(12 * std * math.sqrt(shares)) + shares + shift
    p = sum_of_shares(std, shares, reach)
    moved = np.concatenate([np.zeros(shift), p[:-shift]])
    true = float(np.maximum(0.0, p - math.exp(epsilon) * moved).sum())
    mu = shift / (std * math.sqrt(shares))
    claimed = gaussian_delta(mu, epsilon) + delta_of_gap(epsilon, 1, std, shares)
    assert true <= claimed + 1e-14
    # Two thirds of the noise would be refused.
    assert shift == 1 or gaussian_delta(mu * 2 / 3, epsilon) < true or true < 1e-6


def test_at_two_steps_a_share_nothing_is_left_over() -> None:
    """A million numbers, 200 releases, epsilon 8: below a ten-thousandth of a delta of 1e-5 from ten shares on."""
    assert delta_of_gap(8.0, 10**6, 2.0, 10, 200) < 1e-9
    assert delta_of_gap(8.0, 10**6, 3.0, 4, 200) < 1e-9
    assert gap(2.0, 1) == 0.0
    assert gap(2.0, 2) > gap(2.0, 5) and gap(1.0, 10) > gap(2.0, 10)


@pytest.mark.parametrize(("std", "shares"), [(0.49, 2), (math.nan, 2), (math.inf, 2), (2.0, 0), (2.0, 2.5)])
def test_bounds(std: float, shares: int) -> None:
    with pytest.raises(PlanError):
        gap(std, shares)
