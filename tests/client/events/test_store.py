import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5)), max_size=40)


@given(rows)
def test_events_are_grouped_by_device_in_time_order_and_ties_keep_file_order(
    events: list[tuple[int, int, int]],
) -> None:
    store = EventStore.from_columns(
        users=np.array([u for u, _, _ in events], dtype=np.int64),
        items=np.array([i for _, i, _ in events], dtype=np.int64),
        times=np.array([t for _, _, t in events], dtype=np.int64),
        weights=np.arange(1, len(events) + 1),
        n_users=5,
        n_items=7,
    )
    for user in range(5):
        mine = sorted(((t, n, i) for n, (u, i, t) in enumerate(events) if u == user), key=lambda x: x[:2])
        assert store.history(user).tolist() == [i for _, _, i in mine]
        span = slice(store.offsets[user], store.offsets[user + 1])
        assert store.weights[span].tolist() == [n + 1 for _, n, _ in mine]
    assert store.n_events == len(events)
    assert store.counts().sum() == len(events)


def test_without_times_file_order_is_kept() -> None:
    store = EventStore.from_columns(users=np.array([1, 0, 1, 1]), items=np.array([5, 4, 3, 2]), n_users=3, n_items=6)
    assert store.history(1).tolist() == [5, 3, 2]
    assert store.history(2).tolist() == []
    assert store.users().tolist() == [0, 1, 1, 1]


def test_select_keeps_the_numbers_of_devices() -> None:
    store = EventStore.from_columns(
        users=np.array([0, 1, 1, 2]),
        items=np.array([0, 1, 2, 3]),
        times=np.array([9, 8, 7, 6]),
        n_users=3,
        n_items=4,
    )
    kept = store.select(store.items != 0)
    assert kept.n_users == 3
    assert [kept.history(u).tolist() for u in range(3)] == [[], [2, 1], [3]]
    assert kept.times is not None
    assert kept.times.tolist() == [7, 8, 6]


def test_only_one_device() -> None:
    store = EventStore.from_columns(
        users=np.array([0, 1, 1]), items=np.array([0, 1, 2]), times=np.array([3, 2, 1]), n_users=2, n_items=4
    )
    one = store.only(1)
    assert (one.n_users, one.n_items, one.history(0).tolist()) == (1, 4, [2, 1])


@pytest.mark.parametrize(("user", "item"), [(-1, 0), (2, 0), (0, -1), (0, 3)])
def test_indices_out_of_range_are_refused(user: int, item: int) -> None:
    with pytest.raises(DataError, match="outside"):
        EventStore.from_columns(users=np.array([user]), items=np.array([item]), n_users=2, n_items=3)
