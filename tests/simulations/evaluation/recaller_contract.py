"""What every recaller must keep, whatever it is: a class that the tests of each recaller inherit.

Also two helpers to make splits: ``random_events`` and ``leave_one_out``.
"""

import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.data.dataset import Catalogue
from fedrecall.simulations.data.splits import Split, Targets


def store_of(histories, n_items):
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    items = np.array([i for h in histories for i in h], dtype=np.int32)
    return EventStore.from_columns(users=users, items=items, n_users=len(histories), n_items=n_items)


def random_events(*, n_users=40, n_items=30, seed=0, longest=15):
    """Distinct items a user, some popular and some rare; every third user repeats an item."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, n_items + 1)
    histories = []
    for u in range(n_users):
        n = int(rng.integers(3, longest + 1))
        history = list(rng.choice(n_items, size=n, replace=False, p=shares / shares.sum()))
        histories.append(history + history[:1] if u % 3 == 0 else history)
    return store_of(histories, n_items)


def leave_one_out(events):
    """Last event test, the one before validation, the rest training; independent of the product's."""
    histories = [list(events.history(u)) for u in range(events.n_users)]
    users = np.array([u for u, h in enumerate(histories) if len(h) >= 3])
    offsets = np.arange(len(users) + 1)
    train = store_of([h[:-2] if len(h) >= 3 else h for h in histories], events.n_items)
    known = store_of([h[:-1] if len(h) >= 3 else h for h in histories], events.n_items)
    return Split(
        protocol="loo",
        train=train,
        validation_context=train,
        validation=Targets(
            users=users, offsets=offsets, items=np.array([histories[u][-2] for u in users], dtype=np.int32)
        ),
        test_context=known,
        test=Targets(users=users, offsets=offsets, items=np.array([histories[u][-1] for u in users], dtype=np.int32)),
        notes={},
    )


def catalogue_of(n_items, categories=()):
    rows = categories or ((),) * n_items
    return Catalogue(
        ids=tuple(f"i{i}" for i in range(n_items)),
        titles=("",) * n_items,
        categories=tuple(rows),
        source="file",
    )


class RecallerContract:
    """Inherit, and give a fixture ``fit``: a function from training events to a fitted recaller."""

    @pytest.fixture
    def events(self):
        return random_events()

    @pytest.fixture
    def recaller(self, fit, events):
        return fit(events)

    def test_scores_every_item_of_every_user_finitely(self, recaller, events):
        scores = recaller.score(np.array([3, 0, 7]), events)
        assert scores.shape == (3, events.n_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert isinstance(recaller.name, str)
        assert recaller.name

    def test_rows_do_not_depend_on_the_batch(self, recaller, events):
        users = np.arange(events.n_users)
        whole = recaller.score(users, events)
        single = np.concatenate([recaller.score(users[u : u + 1], events) for u in users])
        backwards = recaller.score(users[::-1].copy(), events)[::-1]
        np.testing.assert_array_equal(whole, single)
        np.testing.assert_array_equal(whole, backwards)

    def test_reads_no_other_device(self, recaller, events):
        rng = np.random.default_rng(5)
        asked = np.array([4, 9])
        histories = [
            list(events.history(u)) if u in asked else list(rng.integers(0, events.n_items, size=6))
            for u in range(events.n_users)
        ]
        np.testing.assert_array_equal(
            recaller.score(asked, events), recaller.score(asked, store_of(histories, events.n_items))
        )

    def test_knows_what_to_do_with_empty_histories(self, recaller, events):
        empty = store_of([[], [], [2]], events.n_items)
        scores = recaller.score(np.array([0, 1, 2]), empty)
        assert scores.shape == (3, events.n_items)
        assert np.isfinite(scores).all()

    def test_scores_users_unseen_in_training(self, recaller, events):
        more = store_of([list(events.history(u % events.n_users)) for u in range(100)], events.n_items)
        scores = recaller.score(np.array([99, 98]), more)
        assert scores.shape == (2, events.n_items)
        assert np.isfinite(scores).all()

    def test_is_deterministic_and_changes_no_input(self, fit, events):
        before = events.items.copy()
        users = np.arange(events.n_users)
        np.testing.assert_array_equal(fit(events).score(users, events), fit(events).score(users, events))
        np.testing.assert_array_equal(events.items, before)
