"""The noise test: sound noise passes, every way in which noise was ever wrong does not. Seeds are fixed.

Power at the level of an audit (3.9e-6): 20,000 numbers tell a standard deviation off by 3.5 % apart.
"""

import numpy as np
import pytest

from fedrecall.simulations.audit.checks.normality import noise_p_values, seen_scale
from fedrecall.simulations.audit.watching.trial import LEVEL

ALPHA = LEVEL / 4
DRAWS, SIZE = 10, 2000
GROUPS = {"table": slice(0, 1600), "rest": slice(1600, 2000)}


def drawn(seed: int, draws: int = DRAWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((draws, SIZE))


def worst(values: np.ndarray) -> float:
    return min(noise_p_values(values, GROUPS).values())


@pytest.mark.parametrize("draws", [1, 2, 10])
def test_sound_noise_passes(draws: int) -> None:
    assert min(worst(drawn(seed, draws)) for seed in range(20)) > ALPHA


def test_null_p_values_are_no_smaller_than_they_say() -> None:
    found = [noise_p_values(drawn(seed)[:, :400], {"all": slice(None)}) for seed in range(200)]
    for test in found[0]:
        # 0.05 of 200 is 10, with a deviation of 3.1: 22 is 4 deviations up. Bonferroni makes some of them smaller.
        assert sum(p[test] < 0.05 for p in found) <= 22, test


@pytest.mark.parametrize("scale", [0.0, 2 / 3, 0.96, 1.04, 3 / 2])
def test_noise_of_another_size_is_seen(scale: float) -> None:
    low, high = seen_scale(DRAWS * SIZE, ALPHA)
    assert 0.96 < low < 1 < high < 1.04
    assert noise_p_values(drawn(0) * scale, GROUPS)["scale"] < ALPHA


@pytest.mark.parametrize("earlier", [0, 4])
def test_noise_that_is_used_twice_is_seen_at_any_distance(earlier: int) -> None:
    values = drawn(1)
    values[7] = values[earlier]
    assert noise_p_values(values, GROUPS)["draws"] < ALPHA
    assert noise_p_values(values, GROUPS)["scale"] > ALPHA


def test_correlated_draws_are_seen() -> None:
    values = drawn(2)
    values[1:] = np.sqrt(1 - 0.2**2) * values[1:] + 0.2 * values[:-1]
    assert noise_p_values(values, GROUPS)["draws"] < ALPHA


def test_a_row_without_noise_is_seen() -> None:
    values = drawn(3)
    values[:, 800:808] = 0.0
    found = noise_p_values(values, GROUPS)
    assert found["coordinate"] < ALPHA < found["scale"]


def test_an_array_with_less_noise_is_seen() -> None:
    values = drawn(4)
    values[:, GROUPS["rest"]] *= 0.9
    assert noise_p_values(values, GROUPS)["coordinate"] < ALPHA


def test_noise_of_another_shape_is_seen() -> None:
    values = np.random.default_rng(5).laplace(size=(DRAWS, SIZE)) / np.sqrt(2)
    assert noise_p_values(values, GROUPS)["shape"] < ALPHA


def test_a_zero_of_the_grid_is_no_alarm_in_one_draw() -> None:
    """Noise snapped to 2^-20 is exactly 0 once in a while; a large table must not alarm for that."""
    values = np.random.default_rng(6).standard_normal((1, 200_000))
    values[0, 17] = 0.0
    assert min(noise_p_values(values, {"table": slice(None)}).values()) > ALPHA
