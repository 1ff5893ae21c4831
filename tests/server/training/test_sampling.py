import numpy as np
import pytest
from scipy import stats

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism
from fedrecall.server.training.sampling import Sampler, everyone, fixed_size, in_turn, poisson

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


def test_the_rate_is_the_stated_one():
    """1.6 million coins: a standard error is 0.12 % of the rate, so that one 2 % off is 16 of them away."""
    rng = np.random.default_rng(13)
    joined = sum(len(poisson(4000, RATE, rng)) for _ in range(400))
    assert stats.binomtest(joined, 1_600_000, RATE).pvalue > 1e-4
    for wrong in (0.98, 1.02):
        assert stats.binomtest(joined, 1_600_000, RATE * wrong).pvalue < 1e-10


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


def sampler(mechanism: Mechanism, devices: int = 50) -> Sampler:
    return Sampler.of(mechanism, devices, lambda round: np.random.default_rng([7, round]))


def test_the_mechanism_decides():
    np.testing.assert_array_equal(sampler(Mechanism(name="a")).draw(3), everyone(50))
    coins = Mechanism(name="a", sampling="poisson", sample_rate=0.2)
    np.testing.assert_array_equal(sampler(coins).draw(3), poisson(50, 0.2, np.random.default_rng([7, 3])))
    subset = Mechanism(name="a", sampling="fixed_size", sample_rate=0.2, adjacency="replace_one")
    np.testing.assert_array_equal(sampler(subset).draw(3), fixed_size(50, 10, np.random.default_rng([7, 3])))
    turns = {"sampling": "limited", "sample_rate": 0.25, "participations": 3, "min_gap": 4, "adjacency": "zero_out"}
    np.testing.assert_array_equal(sampler(Mechanism(name="a", steps=12, **turns)).draw(6), np.arange(2, 50, 4))


def test_fixed_size_cohorts_are_uniform_subsets():
    """Every pair of 6 devices is equally often together in cohorts of 3, chi-square over 2,000 draws."""
    rng = np.random.default_rng(1)
    together = np.zeros((6, 6))
    for _ in range(2000):
        cohort = fixed_size(6, 3, rng)
        assert len(cohort) == 3 and (np.diff(cohort) > 0).all()
        together[np.ix_(cohort, cohort)] += 1
    upper = together[np.triu_indices(6, 1)]
    # Pairs of one draw depend on each other: the statistic has variance inflated by less than 2.
    assert stats.chisquare(upper).pvalue > 1e-4
    for size in (0, 7):
        with pytest.raises(PlanError, match="cohort size"):
            fixed_size(6, size, rng)


@pytest.mark.parametrize(("devices", "turns", "steps"), [(10, 3, 7), (5, 5, 20), (7, 1, 4), (3, 5, 11)])
def test_in_turn_each_device_joins_at_exact_distances(devices: int, turns: int, steps: int):
    rounds = {d: [] for d in range(devices)}
    for round in range(steps):
        for device in in_turn(devices, turns, round).tolist():
            rounds[device].append(round)
    for joined in rounds.values():
        assert set(np.diff(joined)) <= {turns} and len(joined) <= -(-steps // turns)
    assert sum(map(len, rounds.values())) == sum(len(in_turn(devices, turns, r)) for r in range(steps))


def test_turns_are_what_the_plan_says_whatever_its_rate_rounds_to():
    """1 / (1 / 49) is below 49 in floating point, and 48 turns would bring a device back too soon."""
    for turns in range(1, 200):
        limited = {"sampling": "limited", "participations": 1, "min_gap": turns, "adjacency": "zero_out"}
        drawn = sampler(Mechanism(name="a", sample_rate=1 / turns, steps=turns, **limited), 400)
        first, again = (set(drawn.draw(round).tolist()) for round in (0, turns))
        assert first == again and not any(first & set(drawn.draw(round).tolist()) for round in range(1, turns))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(PlanError, match="sample_rate"):
        poisson(5, rate, np.random.default_rng(0))
    with pytest.raises(PlanError, match="devices is -1"):
        everyone(-1)
