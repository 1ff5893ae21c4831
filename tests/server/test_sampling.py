import numpy as np
import pytest
from scipy import stats

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism
from fedrecall.server.sampling import draw_cohort, everyone, poisson

DEVICES, RATE, ROUNDS = 40, 0.3, 4000


def chi_square(sizes, devices, rate):
    """p value of observed cohort sizes against Binomial(devices, rate), rare sizes pooled."""
    expected = stats.binom.pmf(np.arange(devices + 1), devices, rate) * len(sizes)
    observed = np.bincount(sizes, minlength=devices + 1)
    common = expected >= 5
    pooled = [np.append(x[common], x[~common].sum()) for x in (observed, expected)]
    return stats.chisquare(*pooled).pvalue


def test_cohort_sizes_are_binomial_and_the_test_can_tell():
    """Power: with 4,000 rounds a rate 10 % off, or cohorts of a fixed size, are rejected every time."""
    rng = np.random.default_rng(11)
    sizes = np.array([len(poisson(DEVICES, RATE, rng)) for _ in range(ROUNDS)])
    assert chi_square(sizes, DEVICES, RATE) > 1e-4
    assert chi_square(sizes, DEVICES, RATE * 1.1) < 1e-10
    assert chi_square(np.full(ROUNDS, round(DEVICES * RATE)), DEVICES, RATE) < 1e-10


def test_each_device_joins_by_its_own_coin():
    rng = np.random.default_rng(12)
    joined = np.zeros((ROUNDS, DEVICES))
    for row in joined:
        row[poisson(DEVICES, RATE, rng)] = 1
    counts = joined.sum(axis=0)
    variance = ROUNDS * RATE * (1 - RATE)
    assert stats.chi2.sf(((counts - ROUNDS * RATE) ** 2).sum() / variance, DEVICES) > 1e-4
    pairs = np.corrcoef(joined.T)[np.triu_indices(DEVICES, 1)] * np.sqrt(ROUNDS)
    assert stats.kstest(pairs, "norm").pvalue > 1e-4
    turns = [np.corrcoef(joined[1:, i], joined[:-1, i])[0, 1] * np.sqrt(ROUNDS) for i in range(DEVICES)]
    assert stats.kstest(turns, "norm").pvalue > 1e-4


def test_cohorts_are_sorted_device_numbers_from_the_given_generator():
    first, again = (poisson(1000, 0.5, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.int64 and (np.diff(first) > 0).all()
    assert first[0] >= 0 and first[-1] < 1000
    np.testing.assert_array_equal(poisson(7, 1.0, np.random.default_rng(5)), np.arange(7))
    assert poisson(0, 0.5, np.random.default_rng(5)).shape == (0,)


def test_the_mechanism_decides():
    rng = np.random.default_rng(6)
    np.testing.assert_array_equal(draw_cohort(Mechanism(name="a"), 50, rng), everyone(50))
    coins = Mechanism(name="a", sampling="poisson", sample_rate=0.2)
    expected = poisson(50, 0.2, np.random.default_rng(7))
    np.testing.assert_array_equal(draw_cohort(coins, 50, np.random.default_rng(7)), expected)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(PlanError, match="sample_rate"):
        poisson(5, rate, np.random.default_rng(0))
    with pytest.raises(PlanError, match="devices is -1"):
        everyone(-1)
