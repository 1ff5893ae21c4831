import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import (
    clopper_pearson_bound,
    clopper_pearson_split_bound,
    gaussian_bound,
    gaussian_split_bound,
)
from fedrecall.privacy.audit.rates import candidates, rate_bounds, split_scores, upper_rate
from fedrecall.protocol.errors import ScoreError, UsageError

from .scores import quantiles

REST = {"delta": 1e-5, "relation": "add_remove"}


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 30), (3, 30), (29, 30), (500, 5000)])
@pytest.mark.parametrize("alpha", [0.025, 0.2])
def test_the_upper_rate_gives_so_few_hits_with_probability_alpha(hits: int, trials: int, alpha: float) -> None:
    rate = float(upper_rate(np.array([hits]), trials, alpha)[0])
    assert binom.cdf(hits, trials, rate) == pytest.approx(alpha, rel=1e-9)


def test_nothing_but_hits_bounds_nothing() -> None:
    assert upper_rate(np.array([30]), 30, 0.025).tolist() == [1.0]


def test_both_directions_and_the_delta_of_a_hand_made_table() -> None:
    """Of 100 present 90 lie high, of 200 absent 10: written out with the quantiles of a public table."""
    present, absent = np.repeat([1.0, 0.0], [90, 10]), np.repeat([1.0, 0.0], [10, 190])
    fnr, fpr = 0.176223, 0.090028  # Clopper-Pearson 97.5 %: 10 of 100, 10 of 200
    forward = clopper_pearson_bound(present, absent, thresholds=[0.5], delta=0.01, relation="add_remove")
    assert forward.epsilon == pytest.approx(math.log((1 - fnr - 0.01) / fpr), abs=1e-4)
    backward = clopper_pearson_bound(absent * -1, present * -1, thresholds=[-0.5], delta=0.01, relation="add_remove")
    fnr, fpr = 0.090028, 0.176223
    other = math.log((1 - fpr - 0.01) / fnr)
    assert backward.epsilon == pytest.approx(max(other, math.log((1 - fnr - 0.01) / fpr)), abs=1e-4)
    assert forward.epsilon == backward.epsilon > math.log((1 - fnr - 0.01) / fpr)


def test_a_score_at_the_threshold_is_called_present() -> None:
    bounds = rate_bounds(np.array([1.0, 2.0]), np.array([1.0, 0.0]), [1.0], 0.025)
    assert bounds.false_negative[0] == upper_rate(np.array([0]), 2, 0.025)[0]
    assert bounds.false_positive[0] == upper_rate(np.array([1]), 2, 0.025)[0]


@pytest.mark.parametrize("bound", [clopper_pearson_bound, gaussian_bound])
def test_every_threshold_more_costs_confidence(bound: object) -> None:
    sides = quantiles(1.0, 2000)
    one, two = (bound(*sides, thresholds=cuts, **REST).epsilon for cuts in ([1.5], [1.5, 99.0]))
    again = bound(*sides, thresholds=[1.5], alpha=0.025, **REST).epsilon
    assert 0 < two == again < one


@pytest.mark.parametrize("bound", [clopper_pearson_bound, gaussian_bound])
@pytest.mark.parametrize("thresholds", [[], [np.nan]])
def test_no_threshold_is_refused(bound: object, thresholds: list[float]) -> None:
    with pytest.raises(UsageError, match="fixed before"):
        bound(*quantiles(1.0, 10), thresholds=thresholds, **REST)


@pytest.mark.parametrize("bound", [clopper_pearson_split_bound, gaussian_split_bound])
def test_a_split_needs_two_a_side(bound: object) -> None:
    with pytest.raises(ScoreError, match="split"):
        bound(np.array([1.0]), np.array([0.0, 1.0]), rng=np.random.default_rng(0), **REST)


def test_a_split_uses_every_score_once() -> None:
    sides = np.arange(11.0), np.arange(100.0, 108.0)
    chosen, judged = split_scores(*sides, np.random.default_rng(1))
    for side in (0, 1):
        np.testing.assert_array_equal(np.sort(np.concatenate([chosen[side], judged[side]])), sides[side])
    assert (chosen[0] != np.arange(5.0)).any(), "drawn, not in order"


def test_candidates_are_values_of_the_scores_from_the_lowest_to_the_highest() -> None:
    values = candidates(np.arange(3000.0), np.array([-1.0]))
    assert len(values) == 1000 and values[0] == -1 and values[-1] == 2999 and set(values) <= set(np.arange(-1.0, 3000))


def test_the_gaussian_bound_is_phi_inverse_of_the_rates() -> None:
    present, absent = np.repeat([1.0, 0.0], [90, 10]), np.repeat([1.0, 0.0], [10, 190])
    result = gaussian_bound(present, absent, thresholds=[0.5], **REST)
    assert result.mu == pytest.approx(norm.isf(0.090028) + norm.isf(0.176223), abs=1e-4)
    assert result.epsilon == gaussian_epsilon(result.mu, 1e-5)


@pytest.mark.parametrize(
    ("bound", "cut", "least"), [(clopper_pearson_bound, 2.2, 1.75), (gaussian_bound, 0.5, 3.9)], ids=["cp", "gaussian"]
)
def test_power_at_mu_one(bound: object, cut: float, least: float) -> None:
    """PRIVACY: at mu 1, delta 1e-5 (epsilon 4.377), 5,000 and 5,000: Clopper-Pearson 1.8, Gaussian 3.9."""
    assert least < bound(*quantiles(1.0, 5000), thresholds=[cut], **REST).epsilon < 4.377


@pytest.mark.parametrize(
    ("bound", "least"), [(clopper_pearson_split_bound, 1.2), (gaussian_split_bound, 3.3)], ids=["cp", "gaussian"]
)
def test_power_of_a_split_at_mu_one(bound: object, least: float) -> None:
    rng = np.random.default_rng(2)
    found = [bound(*quantiles(1.0, 5000), rng=rng, **REST).epsilon for _ in range(20)]
    assert least < np.median(found) < 4.377


def test_a_bound_needs_the_right_side_up() -> None:
    """Absent above present is no evidence for a Gaussian shift, and is caught by the backward direction else."""
    present, absent = quantiles(2.0, 500)
    assert gaussian_bound(absent, present, thresholds=[1.0], **REST).mu == 0.0
    assert clopper_pearson_bound(absent, present, thresholds=[1.0], **REST).epsilon == 0.0
    assert clopper_pearson_split_bound(absent, present, rng=np.random.default_rng(0), **REST).epsilon == 0.0


@pytest.mark.parametrize(
    ("split", "fixed"),
    [(clopper_pearson_split_bound, clopper_pearson_bound), (gaussian_split_bound, gaussian_bound)],
    ids=["cp", "gaussian"],
)
def test_a_split_judges_the_best_threshold_of_one_half_by_the_other(split: object, fixed: object) -> None:
    rng = np.random.default_rng(8)
    sides = rng.standard_normal(200) + 1, rng.standard_normal(200)
    chosen, judged = split_scores(*sides, np.random.default_rng(9))
    best = max(candidates(*chosen), key=lambda cut: fixed(*chosen, thresholds=[cut], **REST).epsilon)
    expected = fixed(*judged, thresholds=[best], **REST)
    assert split(*sides, rng=np.random.default_rng(9), **REST).epsilon == expected.epsilon > 0
    assert fixed(*chosen, thresholds=[best], **REST).epsilon != expected.epsilon
