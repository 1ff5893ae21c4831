import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm, t

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import (
    canary_cosines,
    canary_projections,
    membership_scores,
    one_shot_estimate,
    white_box_bound,
)
from fedrecall.privacy.audit.one_shot import normals_epsilon
from fedrecall.protocol.errors import ScoreError, UsageError

from .scores import quantiles

REST = {"delta": 1e-5, "relation": "add_remove"}


def sums_with_canaries(
    rng: np.random.Generator, *, rounds: int, sigma: float, sample_rate: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sums, canaries, took part [rounds, canaries]): orthogonal canaries of norm 0.3, half of them in.

    The other devices' sum is 0.4 on every canary, which must cancel.
    """
    clip, coordinates, count = 0.3, 400, 200
    canaries = clip * np.linalg.qr(rng.standard_normal((coordinates, count)))[0].T
    included = np.arange(count) < count // 2
    took_part = (rng.random((rounds, count)) < sample_rate) & included
    others = 0.4 * canaries.sum(axis=0)
    sums = took_part @ canaries + others + sigma * clip * rng.standard_normal((rounds, coordinates))
    return sums, canaries, took_part


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_projections_are_one_for_those_that_took_part_and_have_the_noise_multiplier_as_spread(sigma: float) -> None:
    """40 rounds of 200 projections: a standard error of 0.8 % on sigma, within 3 %, so not x 2/3 or x 3/2."""
    rng = np.random.default_rng(1)
    sums, canaries, took_part = sums_with_canaries(rng, rounds=40, sigma=sigma)
    projections = canary_projections(sums, canaries)
    centred = projections - projections.mean(axis=0)
    assert np.sqrt((centred**2).sum() / (39 * 200)) == pytest.approx(sigma, rel=0.03)
    assert projections[took_part].mean() - projections[~took_part].mean() == pytest.approx(1.0, abs=0.1 * sigma)


@pytest.mark.parametrize("sample_rate", [0.05, 0.5, 1.0])
def test_scores_are_the_log_likelihood_ratio(sample_rate: float) -> None:
    x, sigma = np.array([[0.3, -1.0], [2.5, 0.4]]), 0.7
    inside = sample_rate * norm.pdf(x, 1, sigma) + (1 - sample_rate) * norm.pdf(x, 0, sigma)
    expected = np.log(inside / norm.pdf(x, 0, sigma)).sum(axis=0)
    found = membership_scores(x, noise_multiplier=sigma, sample_rate=sample_rate)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scores_of_far_projections_do_not_overflow() -> None:
    x = np.array([[1e6, -1e6]])
    assert np.isfinite(membership_scores(x, noise_multiplier=0.1, sample_rate=0.3)).all()


@pytest.mark.parametrize("wrong", [{"noise_multiplier": 0.0}, {"noise_multiplier": math.inf}, {"sample_rate": 0.0}])
def test_scores_need_noise_and_a_rate(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="choose it"):
        membership_scores(np.zeros((1, 2)), **({"noise_multiplier": 1.0} | wrong))


@pytest.mark.parametrize(("sums", "canaries"), [((3, 4), (2, 5)), ((4,), (2, 4)), ((3, 4), (4,))])
def test_shapes_that_do_not_fit_are_refused(sums: tuple[int, ...], canaries: tuple[int, ...]) -> None:
    with pytest.raises(ScoreError, match="coordinates"):
        canary_projections(np.ones(sums), np.ones(canaries))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_canary_without_direction_is_refused(bad: float) -> None:
    with pytest.raises(ScoreError, match="direction"):
        canary_projections(np.ones((2, 3)), np.full((1, 3), bad))
    with pytest.raises(ScoreError, match="direction"):
        canary_cosines(np.ones(3), np.full((1, 3), bad))


def test_the_bound_inverts_the_non_central_t() -> None:
    """The bound is the shift at which a drawn statistic exceeds ours with probability alpha."""
    present, absent = np.array([1.0, 2.0, 4.0, 2.0]), np.array([0.0, 0.5, 1.0, -1.0, 0.3])
    mu = white_box_bound(present, absent, releases=1, **REST).mu
    pooled = math.sqrt((np.var(present) * 4 + np.var(absent) * 5) / 7)
    ours = (present.mean() - absent.mean()) / (pooled * math.sqrt(1 / 4 + 1 / 5))
    rng = np.random.default_rng(3)
    drawn = (rng.standard_normal(400_000) + mu / math.sqrt(1 / 4 + 1 / 5)) / np.sqrt(rng.chisquare(7, 400_000) / 7)
    assert np.mean(drawn > ours) == pytest.approx(0.05, abs=0.0015)


def test_without_evidence_the_bound_is_zero() -> None:
    present, absent = quantiles(0.0, 50)
    assert white_box_bound(present, absent, releases=9, **REST).mu == 0.0
    assert white_box_bound(absent - 1, present, releases=9, **REST).mu == 0.0
    just = t.isf(0.049, 98) * math.sqrt(np.var(absent) * 50 / 49 * 2 / 50)
    assert white_box_bound(present + just, absent, releases=1, **REST).mu > 0.0
    just = t.isf(0.051, 98) * math.sqrt(np.var(absent) * 50 / 49 * 2 / 50)
    assert white_box_bound(present + just, absent, releases=1, **REST).mu == 0.0


def test_power_and_growth_with_releases() -> None:
    """At mu 1 a release, 100 a side: the bound is 0.76; at 5,000 a side 0.965, an epsilon of 4.20 of 4.377."""
    few, many = (white_box_bound(*quantiles(1.0, n), releases=1, **REST) for n in (100, 5000))
    assert 0.7 < few.mu < 0.8 and 0.95 < many.mu < 1
    assert 4.1 < many.epsilon < gaussian_epsilon(1.0, 1e-5)
    nine = white_box_bound(*quantiles(1.0, 100), releases=9, **REST)
    assert nine.mu == pytest.approx(3 * few.mu) and nine.epsilon == gaussian_epsilon(nine.mu, 1e-5)


@pytest.mark.parametrize(("factor", "refuted"), [(1.0, False), (2 / 3, True), (3 / 2, False)])
def test_too_little_noise_is_found_and_the_planned_noise_is_not(factor: float, refuted: bool) -> None:
    """Planned mu 4 over 4 releases of sigma 0.5; 4 x 100 projections a side bound mu to within 8 %."""
    sums, canaries, took_part = sums_with_canaries(np.random.default_rng(5), rounds=4, sigma=0.5 * factor)
    projections = canary_projections(sums, canaries)
    result = white_box_bound(projections[took_part], projections[~took_part], releases=4, **REST)
    assert (result.mu > 4.0) == refuted
    assert result.mu == pytest.approx(4.0 / factor, rel=0.16)


@pytest.mark.parametrize("spread", [0.0, 1e-17, 1e-8])
@pytest.mark.parametrize("count", [2, 1000])
def test_no_noise_or_the_same_noise_every_time_gives_a_high_bound_and_no_error(spread: float, count: int) -> None:
    wobble = spread * np.linspace(-1, 1, count)
    result = white_box_bound(1.0 + wobble, wobble, releases=1, **REST)
    assert result.mu > 100 and result.epsilon > 5000


def test_sums_that_are_all_the_same_are_no_evidence() -> None:
    assert white_box_bound(np.ones(5), np.ones(5), releases=1, **REST).epsilon == 0.0
    assert white_box_bound(np.zeros(9999), np.ones(9999), releases=1, **REST).epsilon == 0.0


def test_one_projection_a_side_has_no_spread() -> None:
    with pytest.raises(ScoreError, match="at least two"):
        white_box_bound(np.array([1.0]), np.zeros(5), releases=1, **REST)


def test_at_least_one_release() -> None:
    with pytest.raises(UsageError, match="releases is 0"):
        white_box_bound(np.arange(3.0), np.arange(3.0), releases=0, **REST)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (1.0, 1.3), (1.0, 0.8), (-2.0, 0.9), (0.0, 1.5), (0.0, 0.6)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_telling_two_normals_apart_agrees_with_integration(mean: float, std: float, delta: float) -> None:
    def hockey_stick(epsilon: float) -> float:
        def over(first: tuple[float, float], second: tuple[float, float]) -> float:
            def excess(x: float) -> float:
                return max(0.0, norm.pdf(x, *first) - math.exp(epsilon) * norm.pdf(x, *second))

            places = np.linspace(-14, 14, 57)
            return sum(quad(excess, a, b, limit=200)[0] for a, b in pairwise(places))

        return max(over((mean, std), (0, 1)), over((0, 1), (mean, std)))

    epsilon = normals_epsilon(mean, std, delta)
    assert hockey_stick(epsilon) == pytest.approx(delta, rel=1e-3)


def test_equal_normals_cost_nothing_and_equal_spreads_are_the_gaussian_mechanism() -> None:
    assert normals_epsilon(0.0, 1.0, 1e-5) == 0.0
    for mean in (-1.0, 0.3, 4.0):
        assert normals_epsilon(mean, 1.0, 1e-5) == pytest.approx(gaussian_epsilon(abs(mean), 1e-5), abs=1e-9)


def test_the_one_shot_estimate_finds_the_gaussian_mechanism() -> None:
    """Released sum of 500 canaries plus noise with sigma 1 in 40,000 coordinates: mu 1 a canary, epsilon 4.377."""
    rng = np.random.default_rng(6)
    canaries = rng.standard_normal((500, 40_000))
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    model = canaries.sum(axis=0) + rng.standard_normal(40_000)
    result = one_shot_estimate(canary_cosines(model, canaries), coordinates=40_000, **REST)
    assert result.kind == "estimate" and result.trials == 500
    assert result.epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5), abs=1.0)


def test_one_shot_needs_a_spread() -> None:
    for cosines in (np.array([0.1]), np.full(5, 0.1)):
        with pytest.raises(ScoreError, match="without spread"):
            one_shot_estimate(cosines, coordinates=10, **REST)


def test_the_root_of_the_gaussian_is_the_same_as_ours() -> None:
    root = brentq(lambda e: norm.cdf(0.5 - e) - math.exp(e) * norm.cdf(-0.5 - e) - 1e-5, 0, 20)
    assert normals_epsilon(1.0, 1.0, 1e-5) == pytest.approx(root, abs=1e-8)
