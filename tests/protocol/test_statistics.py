"""The start's statistics on the wire: what bytes stand for, and what no device could have made."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.records import Comparison
from fedrecall.protocol.statistics import (
    MAX_COMPARED,
    Popularity,
    SecondMoments,
    arrays_of,
    comparison_of,
    scale_of,
)

TOP = np.array([7, 2, 0, 5, 8])


def comparison(seed: int = 0) -> Comparison:
    direction = np.random.default_rng(seed).random(5)
    return Comparison(top=TOP, weights=np.ones(5), direction=direction / np.linalg.norm(direction), reach=2.0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=10, max_size=10), st.floats(0, 1, width=32), st.integers(0, 3))
def test_what_the_bytes_of_second_moments_stand_for(codes: list[int], scale: float, seed: int) -> None:
    """Against the definition, entry by entry and with a dense projection."""
    statistic = SecondMoments(comparison=comparison(seed))
    arrays = {"second_moments": np.array(codes, dtype=np.uint8), "scale": np.array(scale, dtype=np.float32)}
    matrix = np.zeros((5, 5))
    for code, (row, column) in zip(codes, [(i, j) for i in range(5) for j in range(i + 1, 5)], strict=True):
        matrix[row, column] = matrix[column, row] = code * scale
    project = np.eye(5) - np.outer(statistic.comparison.direction, statistic.comparison.direction)
    expected = project @ matrix @ project
    np.testing.assert_allclose(statistic.summed(statistic.decoded(arrays)), expected, atol=1e-9)
    if np.linalg.norm(expected) > 1e-2 * np.linalg.norm(matrix):
        assert statistic.norm(arrays) == pytest.approx(float(np.linalg.norm(expected)), rel=1e-9)


@pytest.mark.parametrize("n_items", [1, 1000])
def test_what_the_bytes_of_popularity_stand_for(n_items: int, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, n_items, dtype=np.uint8)
    arrays = {"popularity": codes, "scale": np.array(0.25, dtype=np.float32)}
    statistic = Popularity(n_items=n_items)
    np.testing.assert_array_equal(statistic.decoded(arrays), [0.25 * int(code) for code in codes])
    assert statistic.norm(arrays) == pytest.approx(0.25 * math.sqrt(sum(int(code) ** 2 for code in codes)))
    assert statistic.nbytes == n_items + 4


def test_no_scale_lifts_a_norm_above_one() -> None:
    norms = np.concatenate([np.sqrt(np.arange(100_000.0)), np.random.default_rng(1).random(100_000) * 1e6])
    scales = scale_of(norms)
    assert scales.dtype == np.float32 and scales[0] == 0
    reached = scales[1:].astype(np.float64) * norms[1:]
    assert reached.max() <= 1.0 and reached.min() > 1 - 2e-7


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1e-3])
@pytest.mark.parametrize("empty", [True, False])
def test_a_scale_that_is_no_length_is_beyond_every_bound(scale: float, empty: bool) -> None:
    scaled = np.array(scale, dtype=np.float32)
    codes = np.full(10, 0 if empty else 3, dtype=np.uint8)
    assert SecondMoments(comparison=comparison()).norm({"second_moments": codes, "scale": scaled}) == math.inf
    assert Popularity(n_items=10).norm({"popularity": codes, "scale": scaled}) == math.inf


def test_a_matrix_that_is_all_popularity_has_no_norm_that_a_scale_could_hide() -> None:
    """Rounding leaves 0 or less of |P K P|^2, which any scale would leave at 0, and the sum would get the rounding."""
    direction = np.array([1.0, 1.0, 0.0, 0.0, 0.0]) / math.sqrt(2)
    told = Comparison(top=TOP, weights=np.ones(5), direction=direction, reach=2.0)
    pair = np.zeros((5, 5))
    pair[0, 1] = pair[1, 0] = 1.0
    # K = d d^T - e e^T with e orthogonal to d: what is left is e e^T, of the other sign.
    statistic = SecondMoments(comparison=told)
    codes = np.array([200, *[0] * 9], dtype=np.uint8)
    arrays = {"second_moments": codes, "scale": np.array(1.0, dtype=np.float32)}
    assert statistic.norm(arrays) == pytest.approx(200.0)
    along = np.full(5, 1 / math.sqrt(5))
    flat = SecondMoments(comparison=Comparison(top=TOP, weights=np.ones(5), direction=along, reach=2.0))
    # Every pair alike: K = 5 d d^T - I, far from all popularity.
    arrays = {"second_moments": np.ones(10, dtype=np.uint8), "scale": np.array(1.0, dtype=np.float32)}
    assert flat.norm(arrays) == pytest.approx(2.0)
    # Two directions of a star: all of K has the hub on one side, and the hub is what is projected out.
    hub = np.eye(5)[0]
    star = SecondMoments(comparison=Comparison(top=TOP, weights=np.ones(5), direction=hub, reach=2.0))
    codes = np.array([*[255] * 4, *[0] * 6], dtype=np.uint8)
    assert star.norm({"second_moments": codes, "scale": np.array(1e-30, dtype=np.float32)}) == math.inf


def test_a_comparison_travels() -> None:
    told = comparison()
    found = comparison_of(arrays_of(told), 9)
    for name in ("top", "weights", "direction"):
        np.testing.assert_array_equal(getattr(found, name), getattr(told, name))
    assert found.reach == told.reach


GOOD = arrays_of(comparison())
BAD: dict[str, dict[str, np.ndarray]] = {
    "another name": {"more": np.zeros(1)},
    "top of another type": {"top": TOP.astype(np.int32)},
    "top of another shape": {"top": TOP[:, None]},
    "an item twice": {"top": np.array([7, 2, 0, 5, 7])},
    "an item outside": {"top": np.array([7, 2, 0, 5, 9])},
    "an item below": {"top": np.array([7, 2, 0, 5, -1])},
    "fewer weights": {"weights": np.ones(4)},
    "a weight of 0": {"weights": np.array([1.0, 1, 1, 1, 0])},
    "a weight below 0": {"weights": np.array([1.0, 1, 1, 1, -1])},
    "a weight that is NaN": {"weights": np.array([1.0, 1, 1, 1, np.nan])},
    "a weight that overflows": {"weights": np.array([1.0, 1, 1, 1, 1e200])},
    "weights of float32": {"weights": np.ones(5, dtype=np.float32)},
    "a direction too long": {"direction": GOOD["direction"] * 1.001},
    "a direction a little too long": {"direction": GOOD["direction"] * (1 + 1e-7)},
    "a direction too short": {"direction": GOOD["direction"] * 0.9},
    "a direction that is NaN": {"direction": np.full(5, np.nan)},
    "a direction that is infinite": {"direction": np.array([np.inf, 0, 0, 0, 0])},
    "no reach": {"reach": np.array(0.0)},
    "a reach that overflows": {"reach": np.array(1e-3)},
    "a reach that is NaN": {"reach": np.array(np.nan)},
    "an infinite reach": {"reach": np.array(np.inf)},
    "a reach of another shape": {"reach": np.ones(1)},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_comparison_is_refused(name: str) -> None:
    with pytest.raises(PlanError):
        comparison_of({**GOOD, **BAD[name]}, 9)


@pytest.mark.parametrize("size", [0, 1, MAX_COMPARED + 1])
def test_too_few_or_too_many_items_are_refused(size: int) -> None:
    told = Comparison(top=np.arange(size), weights=np.ones(size), direction=np.zeros(size), reach=1.0)
    with pytest.raises(PlanError, match="top names"):
        comparison_of(arrays_of(told), 5000)


def test_the_longest_comparison_is_a_megabyte_up_and_below_the_slack_down() -> None:
    size = MAX_COMPARED
    told = Comparison(top=np.arange(size), weights=np.ones(size), direction=np.zeros(size), reach=1.0)
    assert SecondMoments(comparison=comparison_of(arrays_of(told), size)).nbytes <= 999_000
    assert sum(array.nbytes for array in arrays_of(told).values()) < 1 << 16
    assert (size + 1) * size // 2 > 1_000_000
