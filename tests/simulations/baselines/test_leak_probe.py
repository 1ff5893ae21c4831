"""The leak probe finds a planted leak and does not find one in our own sampler."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.baselines.leak_probe import DrawCounter, PublicNegatives, run_leak_probe

from ...house import ROOT
from ..evaluation.recaller_contract import catalogue_of, leave_one_out, store_of


class LeakyNegatives:
    """The planted leak: uniform over the items that are in neither training, validation nor test."""

    def __init__(self, split, *, count):
        self.split = split
        self.count = count

    def draw(self, user, round, rng):
        free = np.ones(self.split.train.n_items, dtype=bool)
        free[self.split.test_context.history(user)] = False
        free[self.split.test.items[np.flatnonzero(self.split.test.users == user)]] = False
        return rng.choice(np.flatnonzero(free), size=self.count).astype(np.int32)


def popular_world(n_users=400, n_items=300):
    """Zipf-popular items, so that popularity has something to know."""
    rng = np.random.default_rng(8)
    shares = 1.0 / np.arange(1, n_items + 1) ** 1.2
    shares /= shares.sum()
    histories = [list(rng.choice(n_items, size=20, replace=False, p=shares)) for _ in range(n_users)]
    return leave_one_out(store_of(histories, n_items))


def test_counts_do_not_depend_on_the_batch():
    split = popular_world(n_users=20)
    probe = DrawCounter(LeakyNegatives(split, count=30), rounds=3, seed=2)
    users = np.array([3, 11, 5])
    whole = probe.score(users, split.test_context)
    assert whole.sum(axis=1).tolist() == [-90.0] * 3
    for row, user in zip(whole, users, strict=True):
        np.testing.assert_array_equal(probe.score(np.array([user]), split.test_context)[0], row)


def test_a_planted_leak_is_found_and_ours_is_at_chance():
    split = popular_world()
    leak = run_leak_probe(LeakyNegatives(split, count=64), split, 40, catalogue=catalogue_of(300))
    ours = run_leak_probe(PublicNegatives(split.train, seed=3, count=64), split, 40, catalogue=catalogue_of(300))
    assert leak["leaks"]
    assert leak["recall@10"] > 0.5
    assert not ours["leaks"]
    assert ours["recall@10"] < ours["most_popular_recall@10"]
    # 400 users at a chance of 10 / 281: four standard errors are 0.037.
    assert ours["recall@10"] == pytest.approx(ours["chance_recall@10"], abs=0.037)
    assert ours["chance_recall@10"] == pytest.approx(10 / (300 - 19))


def test_drawing_every_item_in_every_round_tells_nothing():
    """All counts are equal then: only the public permutation ranks, and the test item is nowhere special."""
    split = popular_world()
    got = run_leak_probe(PublicNegatives(split.train, seed=3, count=300), split, 3, catalogue=catalogue_of(300))
    assert got["recall@10"] == pytest.approx(got["chance_recall@10"], abs=0.037)


def test_public_negatives_are_the_rounds_without_the_devices_own_training_events():
    split = popular_world()
    sampler = PublicNegatives(split.train, seed=3, count=64)
    rng = np.random.default_rng(0)
    held_out = 0
    for user in range(50):
        own = set(split.train.history(user).tolist())
        for r in range(4):
            drawn = draw_negatives(3, r, 300, 64).tolist()
            got = sampler.draw(user, r, rng).tolist()
            assert got == [i for i in drawn if i not in own]
            held_out += int(split.test.items[user] in got)
    assert held_out > 10, "a test item is pushed down like any other: about 50 x 4 x 64 / 300 times"


def test_rounds_must_be_positive():
    split = popular_world(n_users=20)
    with pytest.raises(UsageError, match="rounds is 0"):
        run_leak_probe(PublicNegatives(split.train, seed=3, count=64), split, 0, catalogue=catalogue_of(300))


def test_on_movielens_100k_ours_is_below_most_popular_and_a_leak_above_one_half():
    folder = os.environ.get("FEDRECALL_TEST_DATA")
    root = Path(folder) if folder else ROOT.parent / "shared" / "data"
    path = root / "ml-100k" / "u.data"
    if not path.is_file():
        pytest.skip(f"MovieLens-100K is not in {root}: set FEDRECALL_TEST_DATA to a folder that holds ml-100k/u.data")
    rows = np.loadtxt(path, dtype=np.int64)
    split = leave_one_out(
        EventStore.from_columns(users=rows[:, 0] - 1, items=rows[:, 1] - 1, times=rows[:, 3], n_users=943, n_items=1682)
    )
    catalogue = catalogue_of(1682)
    leak = run_leak_probe(LeakyNegatives(split, count=128), split, 100, catalogue=catalogue)
    ours = run_leak_probe(PublicNegatives(split.train, seed=0, count=256), split, 100, catalogue=catalogue)
    assert leak["recall@10"] > 0.5
    assert leak["leaks"]
    assert ours["recall@10"] < ours["most_popular_recall@10"]
    assert not ours["leaks"]
    assert ours["most_popular_recall@10"] == pytest.approx(0.0859, abs=0.0025)
