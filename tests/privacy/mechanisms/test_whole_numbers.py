"""Whole numbers: inside the bound, as near as can be, noised in shares of the right size, in a modulus that holds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedrecall.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedrecall.privacy.mechanisms.whole_numbers import LEAST_SHARE, add_share, as_whole_numbers, bits_for, share_std
from fedrecall.protocol.errors import PlanError, UpdateError


def norm_of(whole: np.ndarray) -> float:
    return math.sqrt(sum(int(one) ** 2 for one in whole.reshape(-1)))


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([1, 2, 7, 400]),
    steps=st.floats(0.3, 5000.0),
    clip_norm=st.floats(1e-6, 1e6),
    shape=st.sampled_from(["even", "one", "halves", "sparse"]),
    seed=st.integers(0, 10**6),
)
def test_whole_numbers_stay_inside_their_bound_and_within_one(
    size: int, steps: float, clip_norm: float, shape: str, seed: int
) -> None:
    """``steps`` of the bound; contributions of exactly the clip's norm."""
    rng, step = np.random.default_rng(seed), clip_norm / steps
    values = {
        "even": np.ones(size),
        "one": np.eye(1, size)[0],
        "halves": np.where(rng.random(size) < 0.5, 0.5, -1.5),
        "sparse": rng.standard_normal(size) * (rng.random(size) < 0.2),
    }[shape]
    length = float(np.linalg.norm(values)) or 1.0
    values = values / length * clip_norm
    whole = as_whole_numbers(values, step, clip_norm)
    assert whole.dtype == np.int64 and whole.shape == values.shape
    assert sum(int(one) ** 2 for one in whole) <= (clip_norm / step) ** 2
    assert np.abs(whole - values / step).max() <= 1 + 1e-9
    np.testing.assert_array_equal(whole, as_whole_numbers(values, step, clip_norm))


def test_what_fits_goes_to_the_nearest_and_else_as_little_as_must_goes_towards_zero() -> None:
    short = np.array([0.4, 0.6, -2.5, 3.49, -0.51])
    np.testing.assert_array_equal(as_whole_numbers(short, 1.0, 10.0), np.rint(short))
    # 100 numbers of 0.6: nearest is 1 each, a norm of 10, where 6 is allowed: 36 of them stay.
    whole = as_whole_numbers(np.full(100, 0.6), 1.0, 6.0)
    assert whole.sum() == 36 and set(whole.tolist()) == {0, 1}
    # Those nearest to one stay.
    values = np.linspace(0.51, 0.99, 50)
    whole = as_whole_numbers(values, 1.0, float(np.linalg.norm(values)))
    assert (np.diff(whole) >= 0).all() and 0 < whole.sum() < 50


def test_rounding_at_random_would_leave_the_bound_and_ours_costs_little() -> None:
    """10,000 numbers of a unit vector at 1,000 steps: an error of a third of a step each, norms of 1,000 at most."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(10_000)
    values /= np.linalg.norm(values)
    whole = as_whole_numbers(values, 1e-3, 1.0)
    at_random = np.floor(values / 1e-3 + rng.random(10_000))
    assert norm_of(whole) <= 1000 < norm_of(at_random)
    assert np.sqrt(np.mean((whole - values / 1e-3) ** 2)) < 0.32


@pytest.mark.parametrize(
    ("values", "step", "clip_norm", "error"),
    [
        ([3.0, 4.0], 1.0, 4.9, UpdateError),
        ([math.nan], 1.0, 1.0, UpdateError),
        ([math.inf], 1.0, 1.0, UpdateError),
        ([0.0], 0.0, 1.0, PlanError),
        ([0.0], 1.0, math.inf, PlanError),
        ([0.0], 1e-20, 1.0, PlanError),
    ],
)
def test_contributions_that_are_not_clipped_are_refused(
    values: list[float], step: float, clip_norm: float, error: type[Exception]
) -> None:
    with pytest.raises(error):
        as_whole_numbers(np.array(values), step, clip_norm)


@pytest.mark.parametrize("honest", [1, 3, 40])
def test_the_honest_shares_alone_have_the_planned_noise(honest: int) -> None:
    """200,000 sums: the variance is that of the plan and a twelfth a share; two thirds or three halves are refused."""
    total, count = 13.0, 200_000
    share = share_std(total, honest)
    zeros = np.zeros(count, dtype=np.int64)
    sums = sum(add_share(zeros, share, SecureNoise()) for _ in range(honest))
    expected = total**2 + honest / 12
    off = math.sqrt(count / 2) * (float(np.mean(np.square(sums))) / expected - 1)
    assert abs(off) < 5
    for scale in (2 / 3, 3 / 2):
        assert abs(math.sqrt(count / 2) * (float(np.mean(np.square(sums * scale))) / expected - 1)) > 50


@pytest.mark.parametrize(("total", "honest"), [(13.0, 0), (13.0, 43), (math.nan, 2), (1.0, 1), (13.0, 2.0)])
def test_shares_too_small_or_of_nobody_are_refused(total: float, honest: int) -> None:
    with pytest.raises(PlanError):
        share_std(total, honest)
    assert LEAST_SHARE == 2.0


def test_seeded_shares_can_be_drawn_again_and_secure_ones_cannot() -> None:
    values = np.arange(5)
    one, again = (add_share(values, 3.0, SeededNoise(1, "a")) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(add_share(np.zeros(50, dtype=np.int64), 3.0, SecureNoise()), np.zeros(50))


@pytest.mark.parametrize(("largest", "std"), [(0.0, 100.0), (5000.0, 30.0), (3.0, 0.0)])
def test_a_modulus_wraps_as_seldom_as_stated(largest: float, std: float) -> None:
    bits = bits_for(largest, std, 1000, 1e-6)
    half = 2.0 ** (bits - 1)
    assert 1000 * 2 * norm.sf((half - largest - 0.5) / std if std else math.inf) <= 1e-6
    assert bits == 2 or 1000 * 2 * norm.sf((half / 2 - largest - 1) / std if std else -math.inf) > 1e-6


def test_a_modulus_of_more_than_32_bits_is_refused() -> None:
    with pytest.raises(PlanError, match="bits"):
        bits_for(2.0**32, 1.0, 10)
    with pytest.raises(PlanError):
        bits_for(1.0, 1.0, 0)
