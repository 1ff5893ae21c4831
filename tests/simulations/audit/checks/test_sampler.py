"""The sampler check on cohorts drawn by hand: right ones pass, near misses do not (400 rounds, level 5.2e-6)."""

import numpy as np
import pytest

from fedrecall.simulations.audit.checks import sampler as sampler_check
from fedrecall.simulations.audit.watching.trial import LEVEL

DEVICES, ROUNDS, RATE = 300, 400, 0.2
ALPHA = LEVEL / 3


def coins(seed: int, rate: float = RATE) -> np.ndarray:
    return np.random.default_rng(seed).random((ROUNDS, DEVICES)) < rate


def subsets(seed: int) -> np.ndarray:
    rng, size = np.random.default_rng(seed), round(RATE * DEVICES)
    member = np.zeros((ROUNDS, DEVICES), dtype=bool)
    for row in member:
        row[rng.choice(DEVICES, size, replace=False)] = True
    return member


def shuffled(seed: int) -> np.ndarray:
    rng, turns = np.random.default_rng(seed), round(1 / RATE)
    member = np.zeros((ROUNDS, DEVICES), dtype=bool)
    for first in range(0, ROUNDS, turns):
        for row, part in zip(member[first:], np.array_split(rng.permutation(DEVICES), turns), strict=False):
            row[part] = True
    return member


def test_independent_coins_pass() -> None:
    assert min(min(sampler_check._poisson(coins(seed), RATE).values()) for seed in range(60)) > 1e-4


def test_null_p_values_are_uniform_enough() -> None:
    found = [sampler_check._poisson(coins(seed), RATE) for seed in range(300)]
    for test in found[0]:
        assert 3 <= sum(p[test] < 0.05 for p in found) <= 30, test  # 15 expected, deviation 3.8


def test_each_near_miss_fails_where_it_should() -> None:
    assert sampler_check._poisson(subsets(0), RATE)["sizes"] < ALPHA
    assert sampler_check._poisson(shuffled(0), RATE)["devices"] < ALPHA
    assert sampler_check._poisson(shuffled(0), RATE)["overlap"] < ALPHA
    assert sampler_check._poisson(coins(0, RATE * 1.1), RATE)["sizes"] < ALPHA
    same = np.repeat(coins(1)[:1], ROUNDS, axis=0)
    assert sampler_check._poisson(same, RATE)["overlap"] < ALPHA


def test_fixed_subsets_pass_as_such_and_repeated_ones_do_not() -> None:
    for seed in range(20):
        member = subsets(seed)
        assert sampler_check._overlap(member, RATE, fixed=True) > 1e-4
    member[1::2] = member[::2]
    assert sampler_check._overlap(member, RATE, fixed=True) < ALPHA


@pytest.mark.parametrize(("most", "gap", "wrong"), [(3, 4, False), (2, 4, True), (3, 5, True)])
def test_turns_are_counted(most: int, gap: int, wrong: bool) -> None:
    member = np.zeros((12, 8), dtype=bool)
    for round in range(12):
        member[round, round % 4 :: 4] = True
    assert bool(sampler_check._in_turn(member, most, gap)) is wrong
