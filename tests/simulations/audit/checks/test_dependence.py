"""Dependence and tails: sound noise passes, copies of every kind and cut tails do not. Seeds are fixed.

Power at the level of an audit (3e-6), with 8,000 numbers in 25 arrays: a copy of 1,000 numbers wherever they stand, of
60 that stand in a row; a correlation of a tenth between neighbours; with half a million, tails cut at four deviations.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from fedrecall.simulations.audit.checks.dependence import (
    dependence_p_values,
    lag_p,
    pairs_p,
    spectrum_p,
    tails_p,
    twins_p,
)
from fedrecall.simulations.audit.watching.draws import Draws
from fedrecall.simulations.audit.watching.trial import LEVEL

ALPHA = LEVEL / 5
GROUPS = {"table": slice(0, 800), "weight": slice(800, 1500), "bias": slice(1500, 1540), "other": slice(1540, 1600)}


def noise(seed: int) -> dict[str, Draws]:
    """Noise of three mechanisms, on grids of their own as that of a run is."""
    rng = np.random.default_rng(seed)
    found = {
        "rounds": Draws(values=rng.standard_normal((5, 1600)), groups=GROUPS),
        "popularity": Draws(values=rng.standard_normal((1, 300)), groups={"all": slice(None)}),
        "second_moments": Draws(values=rng.standard_normal((1, 2000)), groups={"all": slice(None)}),
    }
    steps = {"rounds": 2.0**-20, "popularity": 2.0**-20.7, "second_moments": 2.0**-20.3}
    return {n: Draws(values=np.rint(d.values / steps[n]) * steps[n], groups=d.groups) for n, d in found.items()}


def test_sound_noise_passes() -> None:
    assert min(min(dependence_p_values(noise(seed)).values()) for seed in range(20)) > ALPHA


def test_null_p_values_are_no_smaller_than_they_say() -> None:
    found = [dependence_p_values(noise(seed)) for seed in range(100, 200)]
    for test in found[0]:
        # 0.05 of 100 is 5, with a deviation of 2.2: 14 is 4 deviations up. Bounds make some of them rarer.
        assert sum(p[test] < 0.05 for p in found) <= 14, test


def turned(row: np.ndarray) -> np.ndarray:
    return -np.random.default_rng(9).permutation(row)


def halves(found: dict[str, Draws]) -> None:
    for row in found["rounds"].values:
        row[800:] = row[:800]


def rows_alike(found: dict[str, Draws]) -> None:
    found["rounds"].values[:, :800] = np.tile(found["rounds"].values[:, :8], 100)


def round_again(found: dict[str, Draws]) -> None:
    found["rounds"].values[4] = turned(found["rounds"].values[1])


def mechanism_again(found: dict[str, Draws]) -> None:
    found["rounds"].values[3, :300] = found["popularity"].values[0]


def mechanism_again_elsewhere(found: dict[str, Draws]) -> None:
    found["rounds"].values[2] = turned(found["second_moments"].values[0, :1600])


def short_again(found: dict[str, Draws]) -> None:
    """A bias of 40 that copies another one's first 40, in every round."""
    found["rounds"].values[:, 1500:1540] = found["rounds"].values[:, 1540:1580]


def mixed_with_neighbour(found: dict[str, Draws]) -> None:
    row = found["second_moments"].values[0]
    row[1:] = (row[1:] + row[:-1]) / np.sqrt(2)


def mixed_with_mechanism(found: dict[str, Draws]) -> None:
    row = found["rounds"].values[4]
    row[:300] = (row[:300] - found["popularity"].values[0]) / np.sqrt(2)


@pytest.mark.parametrize(
    "plant",
    [
        halves,
        rows_alike,
        round_again,
        mechanism_again,
        mechanism_again_elsewhere,
        short_again,
        mixed_with_neighbour,
        mixed_with_mechanism,
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_that_depends_on_noise_is_seen(plant: Callable[[dict[str, Draws]], None], seed: int) -> None:
    found = noise(seed)
    plant(found)
    assert min(dependence_p_values(found).values()) < ALPHA


def test_equal_magnitudes_are_seen_wherever_they_stand_and_the_grids_own_are_not() -> None:
    rng = np.random.default_rng(3)
    # On a grid of 2^-10 nearly every magnitude has a twin; blurring is for the noise's own grid and no coarser one.
    fine, coarse = (np.rint(rng.standard_normal(200_000) / step) * step for step in (2.0**-20, 2.0**-10))
    assert twins_p({"fine": fine}) > 1e-3 and twins_p({"coarse": coarse}) < ALPHA
    copied = fine.copy()
    copied[rng.permutation(200_000)[:10_000]] = -fine[rng.permutation(200_000)[:10_000]]
    assert twins_p({"copied": copied}) < ALPHA
    assert twins_p({"one": fine[:2000], "other": turned(fine[2000:4000])}) > 1e-3
    assert twins_p({"one": fine[:2000], "other": turned(fine[:2000])}) < ALPHA


def test_products_at_a_distance_are_bounded_and_seen() -> None:
    rows = [np.random.default_rng(seed).standard_normal(3000) for seed in range(200)]
    assert sum(lag_p(row) < 0.05 for row in rows) <= 10
    weak = np.random.default_rng(0).standard_normal(200_000)
    weak[37:] = np.sqrt(1 - 0.03**2) * weak[37:] + 0.03 * weak[:-37]
    assert lag_p(weak) < ALPHA


def test_a_direction_without_noise_is_seen() -> None:
    rows = [np.random.default_rng(seed).standard_normal(1001) for seed in range(200)]
    assert sum(spectrum_p(row) < 0.05 for row in rows) <= 21
    assert spectrum_p(rows[0] - rows[0].mean()) < ALPHA
    even = rows[1][:1000]
    waves = np.fft.rfft(even)
    waves[17] = 0
    assert spectrum_p(np.fft.irfft(waves, 1000)) < ALPHA


def test_tails_that_are_cut_are_seen() -> None:
    row = np.random.default_rng(4).standard_normal(1 << 19)
    assert tails_p(row) > 1e-3
    for cut in (3.0, 3.5, 4.0):
        assert tails_p(np.clip(row, -cut, cut)) < ALPHA
        assert tails_p(np.where(np.abs(row) > cut, np.fmod(row, 1.0), row)) < ALPHA
    heavier = row * np.where(np.arange(row.size) % 200 == 0, 2.0, 1.0)
    assert tails_p(heavier) < ALPHA


def test_pairs_are_those_of_a_naive_loop() -> None:
    """Oracle: every pair, every distance, one product at a time."""
    from scipy.stats import norm

    rng = np.random.default_rng(5)
    rows = [rng.standard_normal(size) for size in (30, 17, 17, 5)]
    values, ends = np.concatenate(rows)[None], np.cumsum([0, 30, 17, 17, 5])
    groups = {str(i): slice(int(a), int(b)) for i, (a, b) in enumerate(pairwise(ends))}
    best, tests = 0.0, 0
    for i, one in enumerate(rows):
        for other in rows[i + 1 :]:
            for lag in range(-len(other) + 1, len(one)):
                own = [j for j in range(len(other)) if 0 <= j + lag < len(one)]
                total = sum(other[j] * one[j + lag] for j in own)
                best, tests = max(best, abs(total) / np.sqrt(sum(other[j] ** 2 for j in own))), tests + 1
    found = pairs_p({"all": Draws(values=values, groups=groups)})
    assert found == pytest.approx(min(1.0, 2 * tests * 2 * norm.sf(best)), rel=1e-6)
