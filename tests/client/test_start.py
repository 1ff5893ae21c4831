import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.client.start import popularity_sum, second_moment_sum, taste_vectors
from fedrecall.client.store import EventStore
from fedrecall.privacy.mechanisms import popularity_contribution, second_moment_contribution

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


def direction_of(seed: int) -> np.ndarray:
    direction = np.random.default_rng(seed).random(len(TOP))
    return direction / np.linalg.norm(direction)


def taste(history: list[int], direction: np.ndarray) -> np.ndarray:
    """Return one device's vector from its definition."""
    row = np.array([1.0 if item in history else 0.0 for item in TOP])
    row = row - (row @ direction) * direction
    norm = np.sqrt((row**2).sum())
    return row / norm if norm > 1e-9 else row * 0


@settings(deadline=None)
@given(HISTORIES)
def test_popularity_is_the_sum_over_devices(histories: list[list[int]]) -> None:
    found = popularity_sum(store_of(histories), "user")
    assert found.devices == len(histories) and set(found.arrays) == {"popularity"}
    expected = sum(popularity_contribution(np.array(h, dtype=np.int64), N_ITEMS) for h in histories)
    np.testing.assert_allclose(found.arrays["popularity"], expected, atol=1e-12)
    plain = popularity_sum(store_of(histories), "interaction").arrays["popularity"]
    np.testing.assert_array_equal(plain, [sum(i in h for h in histories) for i in range(N_ITEMS)])


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
@given(HISTORIES, st.integers(0, 3))
def test_second_moments_are_the_sum_over_devices(histories: list[list[int]], seed: int) -> None:
    direction = direction_of(seed)
    found = second_moment_sum(store_of(histories), TOP, direction)
    assert found.devices == len(histories) and set(found.arrays) == {"second_moments"}
    expected = sum(second_moment_contribution(taste(h, direction)) for h in histories)
    np.testing.assert_allclose(found.arrays["second_moments"], expected, atol=1e-9)


@settings(deadline=None)
@given(HISTORIES, st.integers(0, 3))
def test_one_device_more_moves_second_moments_by_at_most_one(histories: list[list[int]], seed: int) -> None:
    direction = direction_of(seed)
    moments = [
        second_moment_sum(store_of(some), TOP, direction).arrays["second_moments"]
        for some in (histories, histories[1:])
    ]
    if histories[1:]:
        assert np.linalg.norm(moments[0] - moments[1]) <= 1.0 + 1e-9


def test_taste_has_norm_one_and_no_popularity() -> None:
    histories = [[7, 2], [0], [8, 8, 5, 1], [], [1, 3]]
    direction = direction_of(0)
    rows = taste_vectors(store_of(histories), np.arange(5), TOP, direction)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rows @ direction, 0.0, atol=1e-12)
    whole = taste_vectors(store_of(histories), np.arange(5), TOP, np.zeros(5))
    np.testing.assert_allclose(whole[0], np.array([1, 1, 0, 0, 0]) / np.sqrt(2))
    assert set(np.flatnonzero(whole[2])) == {3, 4}


def test_a_history_that_is_popularity_itself_has_no_taste() -> None:
    direction = np.array([1.0, 1.0, 1.0, 0.0, 0.0]) / np.sqrt(3)
    assert not taste_vectors(store_of([TOP[:3].tolist()]), np.zeros(1, dtype=np.int64), TOP, direction).any()
    moments = second_moment_sum(store_of([TOP[:3].tolist()]), TOP, direction)
    assert not moments.arrays["second_moments"].any()
