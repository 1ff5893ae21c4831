import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.start import popularity, popularity_sum, second_moment_sum, second_moments
from fedrecall.protocol.records import Comparison

N_ITEMS = 9
HISTORIES = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=8), min_size=1, max_size=6)
TOP = np.array([7, 2, 0, 5, 8])


def store_of(histories: list[list[int]]) -> EventStore:
    return EventStore.from_columns(
        users=np.repeat(np.arange(len(histories)), [len(h) for h in histories]),
        items=np.array([i for h in histories for i in h], dtype=np.int64),
        n_users=len(histories),
        n_items=N_ITEMS,
    )


def comparison_of(seed: int, *, project: bool = True) -> Comparison:
    rng = np.random.default_rng(seed)
    direction = rng.random(len(TOP)) * project
    return Comparison(
        top=TOP,
        weights=0.5 + rng.random(len(TOP)),
        direction=direction / max(float(np.linalg.norm(direction)), 1e-9),
        reach=2.0,
    )


def lately(history: list[int]) -> np.ndarray:
    """Return one device's popularity from its definition, item by item."""
    weights = np.zeros(N_ITEMS)
    for age, item in enumerate(dict.fromkeys(reversed(history))):
        weights[item] = round(127 * (0.3 + 0.7 * math.exp(-age / 3)))
    return weights / max(float(np.linalg.norm(weights)), 1e-9)


def contribution(history: list[int], comparison: Comparison) -> np.ndarray:
    """Return one device's matrix from its definition, entry by entry, with dense projections."""
    own: list[int] = []
    for item in reversed(history):
        if item in TOP and item not in own:
            own.append(item)
    matrix = np.zeros((len(TOP), len(TOP)))
    for s, one in enumerate(own):
        for t, other in enumerate(own):
            if s != t:
                i, j = TOP.tolist().index(one), TOP.tolist().index(other)
                close = math.exp(-(abs(s - t) - 1) / comparison.reach)
                matrix[i, j] = close * comparison.weights[i] * comparison.weights[j]
    if matrix.any():
        matrix = np.round(matrix / matrix.max() * 127)
    before = float(np.linalg.norm(matrix))
    project = np.eye(len(TOP)) - np.outer(comparison.direction, comparison.direction)
    matrix = project @ matrix @ project
    norm = float(np.linalg.norm(matrix))
    return matrix / norm if norm > 1e-3 * before else matrix * 0


@settings(deadline=None)
@given(HISTORIES)
def test_popularity_is_the_sum_over_devices(histories: list[list[int]]) -> None:
    found = popularity_sum(store_of(histories), "user")
    assert found.devices == len(histories) and set(found.arrays) == {"popularity"}
    expected = sum(lately(h) for h in histories)
    np.testing.assert_allclose(found.arrays["popularity"], expected, rtol=0, atol=1e-5)
    each = [popularity(np.array(h, dtype=np.int64), N_ITEMS) for h in histories]
    np.testing.assert_allclose(found.arrays["popularity"], sum(each), rtol=0, atol=1e-12)
    assert all(one.min() >= 0 and np.linalg.norm(one) <= 1 for one in each)
    plain = popularity_sum(store_of(histories), "interaction").arrays["popularity"]
    np.testing.assert_array_equal(plain, [sum(i in h for h in histories) for i in range(N_ITEMS)])


def test_replacing_a_device_moves_popularity_by_at_most_the_root_of_two() -> None:
    """Tight for histories without a common item: what the accountant takes under ``replace_one``."""
    one, other = popularity(np.array([3, 3, 3]), N_ITEMS), popularity(np.array([0, 1]), N_ITEMS)
    assert np.linalg.norm(one - other) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert not popularity(np.array([], dtype=np.int64), N_ITEMS).any()


@settings(deadline=None)
@given(HISTORIES, st.integers(0, N_ITEMS - 1))
def test_one_device_or_one_event_more_moves_popularity_by_at_most_one(histories: list[list[int]], item: int) -> None:
    def moved(unit: str, more: list[list[int]]) -> float:
        before = popularity_sum(store_of(histories), unit).arrays["popularity"]
        return float(np.linalg.norm(popularity_sum(store_of(more), unit).arrays["popularity"] - before))

    assert moved("user", [*histories, [item, item, 0]]) == pytest.approx(1.0)
    assert moved("user", [*histories, []]) == 0
    assert moved("interaction", [[*histories[0], item], *histories[1:]]) <= 1.0


@settings(deadline=None)
@given(HISTORIES, st.integers(0, 3), st.booleans())
def test_second_moments_are_the_sum_over_devices(histories: list[list[int]], seed: int, project: bool) -> None:
    comparison = comparison_of(seed, project=project)
    found = second_moment_sum(store_of(histories), comparison)
    assert found.devices == len(histories) and set(found.arrays) == {"second_moments"}
    each = [contribution(h, comparison) for h in histories]
    np.testing.assert_allclose(found.arrays["second_moments"], sum(each), rtol=0, atol=1e-5)
    for history, expected in zip(histories, each, strict=True):
        alone = second_moments(np.array(history, dtype=np.int64), comparison)
        # The scale that travels is one float32, rounded down.
        np.testing.assert_allclose(alone, expected, rtol=1.3e-7, atol=1e-9)
        np.testing.assert_allclose(alone, alone.T, atol=1e-12)


@settings(deadline=None)
@given(HISTORIES, st.integers(0, 3))
def test_one_device_more_moves_second_moments_by_one_or_not_at_all(histories: list[list[int]], seed: int) -> None:
    """Frobenius norm 1 under add/remove; exchanged for another device, at most 2."""
    comparison = comparison_of(seed)

    def moments(some: list[list[int]]) -> np.ndarray:
        return second_moment_sum(store_of(some), comparison).arrays["second_moments"]

    moved = float(np.linalg.norm(moments([*histories, [7, 2, 8]]) - moments([*histories, []])))
    assert 1 - 1e-6 < moved < 1 + 1e-9
    exchanged = float(np.linalg.norm(moments([*histories, [7, 2, 8]]) - moments([*histories, [0, 5, 5, 2]])))
    assert exchanged <= 2.0 + 1e-9
    first = float(np.linalg.norm(moments(histories) - moments([[], *histories[1:]])))
    assert first == pytest.approx(0.0, abs=1e-9) or 1 - 1e-6 < first < 1 + 1e-9


def test_what_compares_nothing_contributes_nothing() -> None:
    whole = comparison_of(0, project=False)
    for history in ([], [7], [7, 7, 7], [1, 3, 4, 6], [7, 1]):
        assert not second_moments(np.array(history, dtype=np.int64), whole).any(), history
    popularity = replace(whole, weights=np.ones(5), direction=np.array([1.0, 1.0, 0.0, 0.0, 0.0]) / math.sqrt(2))
    # Two items that are all of popularity leave K's part across it alone, not K's own length.
    left = second_moments(np.array([7, 2]), popularity)
    assert np.linalg.norm(left @ popularity.direction) < 1e-12


def test_closeness_falls_with_the_places_between_latest_occurrences() -> None:
    plain = replace(comparison_of(0, project=False), weights=np.ones(5))
    found = second_moments(np.array([8, 7, 2, 1, 0, 8]), plain)
    place = {item: TOP.tolist().index(item) for item in (7, 2, 0, 8)}
    one = found[place[7], place[2]]
    for pair, steps in (((2, 0), 1), ((7, 0), 2), ((7, 8), 3), ((0, 8), 1)):
        expected = one * round(127 * math.exp(-(steps - 1) / 2)) / 127
        assert found[place[pair[0]], place[pair[1]]] == pytest.approx(expected), pair


def test_a_long_history_counts_its_latest_items() -> None:
    n = 700
    wide = Comparison(top=np.arange(n), weights=np.ones(n), direction=np.zeros(n), reach=2.0)
    found = second_moments(np.arange(n), wide)
    assert found[n - 600 :, n - 600 :].any(axis=0).all() and not found[: n - 600].any()
    codes = np.unique(found / found.max() * 127)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
    assert np.linalg.norm(found) == pytest.approx(1.0)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1.0])
def test_a_history_that_is_nearly_popularity_never_exceeds_norm_one(tilt: float) -> None:
    """K of three items is all but rank one: what the projection leaves is tiny, and so are rounding errors."""
    direction = np.array([1.0, 1.0, 1.0, tilt, -tilt])
    comparison = Comparison(top=TOP, weights=np.ones(5), direction=direction / np.linalg.norm(direction), reach=1e12)
    for history in ([7, 2], [7, 2, 0], [7, 2, 0, 5, 8]):
        norm = float(np.linalg.norm(second_moments(np.array(history), comparison)))
        assert norm == 0 or 1 - 1e-6 < norm < 1 + 1e-8
