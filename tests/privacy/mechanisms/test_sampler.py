"""The check that a sampler is the accountant's, and its power against samplers that are not."""

import numpy as np
import pytest
from scipy import stats


def chi2_binomial_p(inclusions: np.ndarray, n: int, q: float) -> float:
    """p-value of chi-square for counts ``inclusions`` of included units a round against Binomial(n, q)."""
    inclusions = np.asarray(inclusions)
    rounds = len(inclusions)
    bins = max(3, min(20, rounds // 10))
    cuts = np.unique(stats.binom.ppf(np.linspace(0, 1, bins + 1)[1:-1], n, q))
    expected = rounds * np.diff(np.concatenate([[0.0], stats.binom.cdf(cuts, n, q), [1.0]]))
    observed = np.bincount(np.searchsorted(cuts, inclusions), minlength=len(cuts) + 1)
    return float(stats.chisquare(observed, expected).pvalue)


N, Q, ROUNDS = 943, 0.25, 400


def test_independent_coins_pass() -> None:
    rng = np.random.default_rng(0)
    assert chi2_binomial_p((rng.random((ROUNDS, N)) < Q).sum(axis=1), N, Q) > 1e-4


def test_p_values_of_independent_coins_are_uniform() -> None:
    rng = np.random.default_rng(1)
    p_values = [chi2_binomial_p(rng.binomial(N, Q, ROUNDS), N, Q) for _ in range(500)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("factor", [2 / 3, 0.95, 3 / 2])
def test_another_rate_fails(factor: float) -> None:
    inclusions = np.random.default_rng(2).binomial(N, Q * factor, ROUNDS)
    assert chi2_binomial_p(inclusions, N, Q) < 1e-4


def test_a_fixed_cohort_fails() -> None:
    assert chi2_binomial_p(np.full(ROUNDS, round(N * Q)), N, Q) < 1e-4


def test_shuffled_batches_fail() -> None:
    sizes = np.resize([236, 236, 236, 235], ROUNDS)
    assert chi2_binomial_p(sizes, N, Q) < 1e-4


def test_devices_that_join_in_pairs_fail() -> None:
    coins = np.random.default_rng(3).random((ROUNDS, N // 2)) < Q
    assert chi2_binomial_p(2 * coins.sum(axis=1), N, Q) < 1e-4
