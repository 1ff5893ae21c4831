import math

import numpy as np
import pytest

from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum, Comparison
from fedrecall.server.config import StartSettings
from fedrecall.server.training.start import (
    ItemVectors,
    compare,
    first_item_vectors,
    first_model,
    popular_items,
    release_popularity,
    release_second_moments,
)

M = 300


def mechanism(sigma: float, name: str = "second_moments") -> Mechanism:
    return Mechanism(name=name, clip_norm=1.0, noise_multiplier=sigma)


def released(moments: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    cohort = CohortSum(round=0, devices=1, arrays={"second_moments": moments})
    release = release_second_moments(cohort, mechanism(sigma), SeededNoise(seed))
    assert release.mechanism == "second_moments" and set(release.arrays) == {"second_moments"}
    return release.arrays["second_moments"]


def spikes(values: list[float], seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix with these eigenvalues, and their directions [M, values]."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((M, len(values))))[0]
    return (directions * values) @ directions.T, directions


def test_popularity_gets_noise_on_every_item() -> None:
    """30,000 values: one standard error of a measured sigma is 0.4 %."""
    cohort = CohortSum(round=0, devices=9, arrays={"popularity": np.zeros(30_000)})
    release = release_popularity(cohort, mechanism(2.5, "popularity"), SeededNoise(1))
    assert release.mechanism == "popularity"
    assert release.arrays["popularity"].std() == pytest.approx(2.5, rel=0.02)
    assert np.count_nonzero(release.arrays["popularity"]) == 30_000


def test_moments_get_the_isometrys_noise() -> None:
    """44,850 and 300 values: standard errors of 0.33 % and 4 %."""
    noise = released(np.zeros((M, M)), 2.0)
    np.testing.assert_array_equal(noise, noise.T)
    assert noise[np.triu_indices(M, 1)].std() == pytest.approx(2.0 / math.sqrt(2), rel=0.015)
    assert np.diagonal(noise).std() == pytest.approx(2.0, rel=0.15)


def test_popular_items_come_first_with_ties_by_number() -> None:
    np.testing.assert_array_equal(popular_items(np.array([1.0, 5.0, -2.0, 5.0, 3.0]), 4), [1, 3, 4, 0])
    assert len(popular_items(np.zeros(3), 10)) == 3


def test_what_is_compared_follows_from_released_popularity() -> None:
    popularity = np.array([3.0, 90.0, -1.0, 40.0])
    found = compare(popularity, 3, mechanism(2.0), exponent=0.5, reach=8.0)
    np.testing.assert_array_equal(found.top, [1, 3, 0])
    # Below three deviations of the noise, 6, a count says nothing: it weighs as 6.
    np.testing.assert_allclose(found.weights, [90**-0.5, 40**-0.5, 6**-0.5])
    expected = np.array([90, 40, 3]) * found.weights
    np.testing.assert_allclose(found.direction, expected / np.linalg.norm(expected))
    assert found.reach == 8.0
    nothing = compare(np.array([-1.0, 0.0]), 2, mechanism(0.0), exponent=0.25, reach=1.0)
    assert not nothing.direction.any() and np.isfinite(nothing.weights).all()


def items(top: np.ndarray) -> Comparison:
    return Comparison(top=top, weights=np.ones(len(top)), direction=np.zeros(len(top)), reach=8.0)


def made(signal: np.ndarray, sigma: float, dim: int, *, power: float = 0.5, cut: float = 0.0) -> ItemVectors:
    size = len(signal)
    return first_item_vectors(
        np.ones(size), signal, items(np.arange(size)), mechanism(sigma), dim, power=power, cut=cut
    )


@pytest.mark.parametrize("strength", [1.5, 3.0, 10.0])
def test_a_planted_direction_is_found_as_well_as_theory_says(strength: float) -> None:
    """Mean of 20 draws against 1 - 1 / strength^2 (Benaych-Georges and Nadakuditi 2011, section 3.1)."""
    sigma = 2.0
    threshold = sigma / math.sqrt(2) * math.sqrt(M)
    signal, planted = spikes([strength * threshold])
    cosines = []
    for seed in range(20):
        taste = made(released(signal, sigma, seed), sigma, 5, cut=0.9).vectors[:, 1]
        cosines.append(float(taste @ planted[:, 0]) ** 2 / float(taste @ taste))
    assert np.mean(cosines) == pytest.approx(1 - 1 / strength**2, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_the_edge_is_where_noise_alone_ends(seed: int) -> None:
    """5 % beyond the edge no noise is left, 10 % before it some is: the factor 2 of the variance holds."""
    noise = released(np.zeros((M, M)), 2.0, seed)
    assert made(noise, 2.0, 8, cut=1.05).directions == 0
    assert made(noise, 2.0, 8, cut=0.9).directions > 0


def test_lengths_are_powers_of_what_the_cut_leaves() -> None:
    signal, _ = spikes([9.0, 4.0, 1.0])
    sigma = 1.0
    edge = 2 * sigma * math.sqrt(M / 2)
    found = made(signal, sigma, 6, power=0.35, cut=2.0 / edge)
    assert found.directions == 2
    lengths = np.linalg.norm(found.vectors[:, 1:], axis=0)
    assert lengths[0] / lengths[1] == pytest.approx((7.0 / 2.0) ** 0.35)
    assert (lengths**2).sum() / M == pytest.approx(1.0) and not lengths[2:].any()


def test_without_noise_the_vectors_factor_the_moments() -> None:
    signal, _ = spikes([6.0, 3.0, 1.0])
    top = np.arange(5, 5 + M)
    found = first_item_vectors(np.zeros(M + 10), signal, items(top), mechanism(0.0), 4, power=0.5, cut=0.4)
    assert found.directions == 3
    taste = found.vectors[top, 1:]
    scale = np.trace(signal) / M
    np.testing.assert_allclose(taste @ taste.T * scale, signal, atol=1e-9)
    assert not np.delete(found.vectors, top, axis=0).any(), "items beyond the top have no taste"


def test_the_sign_is_fixed() -> None:
    signal, _ = spikes([6.0, 3.0])
    top = np.arange(M)
    one = first_item_vectors(np.zeros(M), signal, items(top), mechanism(0.0), 3, power=0.5, cut=0.4).vectors
    for column in one[:, 1:].T:
        assert column.max() >= -column.min()
    # Another order of the items is another computation, with signs of its own.
    order = np.random.default_rng(0).permutation(M)
    other = made(signal[np.ix_(order, order)], 0.0, 3).vectors
    np.testing.assert_allclose(other[:, 1:], one[order, 1:], atol=1e-9)


def test_popularity_is_the_first_column_from_zero_to_one() -> None:
    popularity = np.array([0.0, -3.0, 10.0, 100.0])
    found = first_item_vectors(popularity, None, items(np.array([], dtype=np.int64)), None, 3, power=0.5, cut=0.4)
    np.testing.assert_allclose(found.vectors[:, 0], [0, 0, math.log(11) / math.log(101), 1])
    assert found.directions == 0 and not found.vectors[:, 1:].any()
    assert not first_item_vectors(
        np.full(4, -1.0), None, items(np.array([], dtype=np.int64)), None, 3, power=0.5, cut=0.4
    ).vectors.any()


def test_more_columns_than_items_stay_zero() -> None:
    found = first_item_vectors(np.ones(4), np.eye(2), items(np.array([1, 3])), mechanism(0.0), 7, power=0.5, cut=0.4)
    assert found.vectors.shape == (4, 7) and found.directions == 2 and not found.vectors[:, 3:].any()


def test_the_first_context_is_its_latest_events_and_a_popularity_that_no_history_moves() -> None:
    settings = StartSettings(
        compared=0,
        reach=1.0,
        exponent=0.0,
        power=0.5,
        cut=0.0,
        content=0.0,
        content_items=1,
        decay=0.8,
        prior=3.0,
        scale=10.0,
        popularity=0.3,
    )
    fresh = {
        "item.id.weight": np.ones((6, 3), np.float32),
        "transformer.recency.age.weight": np.ones((5, 1), np.float32),
        "transformer.recency.project.weight": np.ones((3, 3), np.float32),
        "transformer.recency.project.bias": np.zeros(3, np.float32),
        "transformer.out.weight": np.full((3, 3), 7, np.float32),
    }
    before = {name: array.copy() for name, array in fresh.items()}
    vectors = np.random.default_rng(0).standard_normal((6, 3))
    found = first_model(fresh, ItemVectors(vectors=vectors, directions=2), settings)
    assert all(array.dtype == np.float32 and array.shape == before[name].shape for name, array in found.items())
    weights = np.exp(found["transformer.recency.age.weight"][:, 0])
    np.testing.assert_allclose(weights, [1, 0.8, 0.64, 0.512, 3], rtol=1e-6)
    project, bias = (found[f"transformer.recency.project.{part}"] for part in ("weight", "bias"))
    for event in vectors:
        np.testing.assert_allclose(project @ event + bias, [3.0, 10 * event[1], 10 * event[2]], rtol=1e-5)
    np.testing.assert_array_equal(found["item.id.weight"], vectors.astype(np.float32))
    np.testing.assert_array_equal(found["transformer.out.weight"], before["transformer.out.weight"])
    for name, array in fresh.items():
        np.testing.assert_array_equal(array, before[name], err_msg=f"{name} of the input is not touched")
