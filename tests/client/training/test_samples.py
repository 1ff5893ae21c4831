import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.samples import (
    Samples,
    block_samples,
    input_masks,
    sample_tensors,
    time_gaps,
    user_samples,
)
from fedrecall.models.shape import ModelShape

N_ITEMS, WINDOW, BLOCKS, SEED = 9, 4, 3, 17
NEGATIVES = np.array([0, 3, 4, 8], dtype=np.int32)

Event = tuple[int, int, float]
EVENT = st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 1), st.sampled_from([0.25, 1.0, 3.0]))
HISTORY = st.lists(EVENT, max_size=12)


def store_of(*histories: list[Event], times: list[int] | None = None) -> EventStore:
    events = [event for history in histories for event in history]
    return EventStore.from_columns(
        users=np.repeat(np.arange(len(histories)), [len(h) for h in histories]),
        items=np.array([e[0] for e in events], dtype=np.int64),
        n_users=len(histories),
        n_items=N_ITEMS,
        types=np.array([e[1] for e in events], dtype=np.int8),
        weights=np.array([e[2] for e in events], dtype=np.float32),
        type_names=("view", "buy"),
        times=None if times is None else np.array(times, dtype=np.int64),
    )


def windows(store: EventStore, round: int = 0, keys: np.ndarray | None = None) -> Samples:
    users = np.arange(store.n_users)
    keys = users if keys is None else keys
    return user_samples(store, users, keys, window=WINDOW, negatives=NEGATIVES, seed=SEED, round=round)


def blocks(store: EventStore) -> Samples:
    users = np.arange(store.n_users)
    return block_samples(store, users, blocks=BLOCKS, window=WINDOW, negatives=NEGATIVES, seed=SEED)


def events_in(samples: Samples, row: int) -> list[tuple[int, int]]:
    """Read item and type of a sample's events back from slots and own items."""
    real = samples.real[row]
    assert (np.diff(real.astype(int)) >= 0).all(), "padding is on the left"
    items = samples.own[row][samples.slots[row]][real]
    return list(zip(items.tolist(), samples.types[row][real].tolist(), strict=True))


def assert_sound(samples: Samples, row: int) -> None:
    """Check what holds for every sample of either unit."""
    items = [item for item, _ in events_in(samples, row)]
    used = samples.slots[row][samples.real[row]]
    own = samples.own[row][sorted(set(used.tolist()))]
    assert sorted(own.tolist()) == sorted(set(items)), "each item has one row"
    assert samples.masked[row].tolist() == [n in items for n in NEGATIVES]
    targets = samples.real[row][1:] & samples.real[row][:-1]
    assert (samples.loss_weights[row][~targets] == 0).all()
    assert (samples.loss_weights[row][targets] > 0).all()
    assert samples.loss_weights.dtype == np.float32


@settings(deadline=None)
@given(st.lists(HISTORY, min_size=1, max_size=4), st.integers(0, 5))
def test_a_window_is_consecutive_events_with_weights_that_sum_to_one(histories: list[list[Event]], round: int) -> None:
    samples = windows(store_of(*histories), round)
    assert len(samples) == len(histories)
    for row, history in enumerate(histories):
        assert_sound(samples, row)
        found, pairs = events_in(samples, row), [(i, t) for i, t, _ in history]
        length = min(len(history), WINDOW + 1)
        starts = [s for s in range(len(history) - length + 1) if pairs[s : s + length] == found]
        assert len(found) == length and starts
        expected = [np.array([w for _, _, w in history[s + 1 : s + length]]) for s in starts]
        weights = samples.loss_weights[row][WINDOW - max(length - 1, 0) :]
        assert any(np.allclose(weights, e / e.sum() if len(e) else e, rtol=1e-6) for e in expected)
        assert samples.loss_weights[row].sum() == pytest.approx(1.0 if length > 1 else 0.0, abs=1e-6)


@settings(deadline=None)
@given(st.lists(HISTORY, min_size=1, max_size=3))
def test_blocks_are_the_history_cut_by_item_in_order(histories: list[list[Event]]) -> None:
    samples = blocks(store_of(*histories))
    assert len(samples) == BLOCKS * len(histories)
    whole = blocks(store_of([(item, 0, 1.0) for item in range(N_ITEMS)]))
    block_of = {item: b for b in range(BLOCKS) for item, _ in events_in(whole, b)}
    assert len(block_of) == N_ITEMS and set(block_of.values()) == set(range(BLOCKS))
    for user, history in enumerate(histories):
        for b in range(BLOCKS):
            row = user * BLOCKS + b
            assert_sound(samples, row)
            own = [e for e in history if block_of[e[0]] == b][-(WINDOW + 1) :]
            assert events_in(samples, row) == [(i, t) for i, t, _ in own]
            expected = np.zeros(WINDOW)
            if len(own) > 1:
                expected[-(len(own) - 1) :] = [w / WINDOW for _, _, w in own[1:]]
            np.testing.assert_allclose(samples.loss_weights[row], expected, rtol=1e-6)


@settings(deadline=None, max_examples=200)
@given(HISTORY, EVENT, st.integers(0, 12), st.lists(st.integers(0, 10**6), min_size=13, max_size=13))
def test_one_event_more_changes_exactly_one_block(
    history: list[Event], event: Event, place: int, since: list[int]
) -> None:
    place = min(place, len(history))
    times = np.cumsum(since[: len(history) + 1]).tolist()
    before = blocks(store_of(history, times=times[:place] + times[place + 1 :]))
    after = blocks(store_of([*history[:place], event, *history[place:]], times=times))
    differs = [
        any(not np.array_equal(getattr(before, f.name)[b], getattr(after, f.name)[b]) for f in fields(Samples))
        for b in range(BLOCKS)
    ]
    alone = blocks(store_of([event]))
    (block,) = np.flatnonzero(alone.real.any(axis=1))
    # An event older than the latest window + 1 of its block changes nothing at all.
    assert not any(d for b, d in enumerate(differs) if b != block)
    if len(events_in(after, block)) != len(events_in(before, block)):
        assert differs[block]


def test_gaps_are_whole_binary_logarithms_and_nothing_before_the_sample_is_read() -> None:
    since = [5, 0, 1, 2, 3, 6, 7, 2**31 - 2, 2**31 - 1, 2**40]
    store = store_of([(0, 0, 1.0)] * len(since), times=np.cumsum(since).tolist())
    found = time_gaps(store, np.array([[-1, *range(10)], [-1] * 8 + [4, 5, 6], [-1] * 11]))
    assert found.tolist() == [[0, 0, 0, 1, 1, 2, 2, 3, 30, 31, 31], [0] * 9 + [2, 3], [0] * 11]
    assert not time_gaps(store_of([(0, 0, 1.0)] * 3), np.array([[0, 1, 2]])).any(), "file order tells no time"


MASKED = ModelShape(
    n_items=N_ITEMS, n_features=0, n_types=1, dim=50, window=20, blocks=1, heads=1, hidden=1, user_dim=1, user_hidden=1
)


def masks(*keys: int, rate: float = 0.3, round: int = 0, per_device: int = 1) -> np.ndarray:
    local = LocalConfig(dropout=rate)
    found = input_masks(np.array(keys), shape=MASKED, local=local, per_device=per_device, seed=SEED, round=round)
    assert found is not None
    return found


def test_dropout_hides_its_share_and_leaves_the_mean() -> None:
    """100,000 numbers a share: five standard errors are 0.008."""
    for rate in (0.1, 0.3, 0.5):
        found = masks(*range(100), rate=rate)
        assert found.shape == (100, MASKED.window, MASKED.dim)
        assert set(np.unique(found)) == {np.float32(0), np.float32(1) / np.float32(1 - rate)}
        assert (found == 0).mean() == pytest.approx(rate, abs=0.008)
        for axes in ((0, 1), (0, 2), (1, 2)):
            shares = (found == 0).mean(axis=axes)
            assert np.abs(shares - rate).max() < 5.5 * np.sqrt(rate * (1 - rate) * len(shares) / found.size)
    assert input_masks(np.arange(3), shape=MASKED, local=LocalConfig(), per_device=1, seed=0, round=0) is None


def test_what_dropout_hides_depends_on_device_round_and_sample_and_on_nothing_else() -> None:
    large = 2**63 - 2
    np.testing.assert_array_equal(masks(4, large, 9)[1], masks(large)[0])
    blocks_of = masks(4, 5, per_device=3)
    np.testing.assert_array_equal(blocks_of[3:], masks(5, per_device=3))
    several = [*masks(4, 5, large), *masks(4, 5, round=1), *masks(6, 7, per_device=2)]
    for a, b in itertools.combinations(several, 2):
        # Agreement of independent draws: 0.58, five and a half standard errors of 1,000 are 0.09.
        assert (a == b).mean() == pytest.approx(0.58, abs=0.09)


def test_a_block_of_one_salt_is_not_that_of_another() -> None:
    store = store_of([(item, 0, 1.0) for item in range(N_ITEMS)])
    users = np.zeros(1, dtype=np.int64)
    other = block_samples(store, users, blocks=BLOCKS, window=WINDOW, negatives=NEGATIVES, seed=SEED + 1)
    assert [events_in(other, b) for b in range(BLOCKS)] != [events_in(blocks(store), b) for b in range(BLOCKS)]


def test_a_devices_draw_depends_on_its_key_alone() -> None:
    long = [(i % N_ITEMS, 0, 1.0) for i in range(40)]
    many = store_of(long, [], long, long)
    for round in range(20):
        together = windows(many, round, keys=np.array([5, 6, 7, 5]))
        alone = windows(store_of(long), round, keys=np.array([7]))
        assert events_in(together, 2) == events_in(alone, 0)
        assert events_in(together, 0) == events_in(together, 3)


def test_windows_are_drawn_anew_each_round_and_reach_every_event() -> None:
    """400 rounds: each of 6 places is missed with probability (5/6)^400 < 1e-31."""
    store = store_of([(i, 0, 1.0) for i in [*range(N_ITEMS), 0]])
    seen = [tuple(events_in(windows(store, round), 0)) for round in range(400)]
    counts = [seen.count(window) for window in sorted(set(seen))]
    assert len(counts) == 10 - WINDOW
    assert max(counts) < 2 * min(counts)


def test_tensors_are_what_the_model_takes() -> None:
    samples = windows(store_of([(1, 0, 1.0), (4, 1, 1.0)], []))
    features = np.arange(N_ITEMS * 2, dtype=np.float32).reshape(N_ITEMS, 2)
    cpu = torch.device("cpu")
    found = sample_tensors(samples, NEGATIVES, features, device=cpu, dtype=torch.float64)
    assert found["own"].dtype == found["negatives"].dtype == torch.long
    np.testing.assert_array_equal(found["own_features"], features[samples.own])
    np.testing.assert_array_equal(found["negative_features"], features[NEGATIVES][None])
    assert found["loss_weights"].dtype == torch.float64
    assert not any("features" in n for n in sample_tensors(samples, NEGATIVES, None, device=cpu, dtype=torch.float32))


def test_a_store_without_events_gives_empty_samples() -> None:
    for samples in (windows(store_of([], [])), blocks(store_of([]))):
        assert not samples.real.any() and not samples.masked.any() and not samples.loss_weights.any()
