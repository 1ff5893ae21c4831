"""Baselines: the contract of every recaller, naive versions of each, and known floors on real data."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.simulations.baselines import (
    Ease,
    ItemKNN,
    MostPopular,
    OwnFirst,
    count_cooccurrence,
    fit_tuned_baselines,
)
from fedrecall.simulations.evaluation.evaluate import evaluate

from ...house import ROOT
from ..evaluation.recaller_contract import RecallerContract, catalogue_of, leave_one_out, random_events, store_of


class TestMostPopular(RecallerContract):
    @pytest.fixture
    def fit(self):
        return MostPopular.fit

    def test_counts_users_not_events(self):
        scores = MostPopular.fit(store_of([[1, 1, 1], [2], [2]], 4)).score(np.array([0]), store_of([[]], 4))
        assert scores.tolist() == [[0.0, 1.0, 2.0, 0.0]]


class TestOwnFirst(RecallerContract):
    @pytest.fixture
    def fit(self):
        return lambda train: OwnFirst.fit(train, decay=0.9)

    def test_own_items_by_frequency_then_all_others_by_popularity(self):
        train = store_of([[3], [3], [0, 3], [2, 0]], 5)
        context = store_of([[1, 4, 1, 2], []], 5)
        scores = OwnFirst.fit(train).score(np.array([0, 1]), context)
        assert scores[0, [1, 2, 4]].tolist() == [3.0, 2.0, 2.0]
        assert np.argsort(-scores[0], kind="stable").tolist() == [1, 2, 4, 3, 0]
        assert np.argsort(-scores[1], kind="stable").tolist() == [3, 0, 2, 1, 4]

    def test_decay_counts_late_events_more(self):
        context = store_of([[1, 1, 2, 4, 2, 0]], 5)
        scores = OwnFirst.fit(context, decay=0.5).score(np.array([0]), context)
        assert scores[0, :3].tolist() == [2.0, 1.0 + 1 / 16 + 1 / 32, 1.0 + 1 / 2 + 1 / 8]
        with pytest.raises(ConfigError, match=r"decay is 1\.5"):
            OwnFirst.fit(context, decay=1.5)


class TestItemKNN(RecallerContract):
    @pytest.fixture
    def fit(self):
        return lambda train: ItemKNN.fit(train, neighbours=5, shrinkage=2.0)

    @pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 0.0), (4, 7.5), (100, 1.0)])
    def test_equals_a_loop(self, events, neighbours, shrinkage):
        sets = [set(events.history(u).tolist()) for u in range(events.n_users)]
        n = events.n_items

        def cosine(i, j):
            a, b = sum(i in s for s in sets), sum(j in s for s in sets)
            return sum(i in s and j in s for s in sets) / ((a * b) ** 0.5 + shrinkage) if i != j and a and b else 0.0

        expected = np.zeros((events.n_users, n))
        for j in range(n):
            similar = [cosine(i, j) for i in range(n)]
            near = sorted(range(n), key=lambda i: -similar[i])[:neighbours]
            last = similar[near[-1]]
            if neighbours < n and sum(s == last for s in similar) > 1 and last > 0:
                near = None  # which of equal neighbours is kept is free
            for u in range(events.n_users):
                expected[u, j] = np.nan if near is None else sum(similar[i] for i in near if i in sets[u])
        got = ItemKNN.fit(events, neighbours=neighbours, shrinkage=shrinkage)
        scores = got.score(np.arange(events.n_users), events)
        clear = ~np.isnan(expected)
        assert clear.mean() > 0.3
        np.testing.assert_allclose(scores[clear], expected[clear], rtol=1e-5, atol=1e-6)

    def test_refuses_impossible_settings(self, events):
        with pytest.raises(ConfigError, match="neighbours is 0"):
            ItemKNN.fit(events, neighbours=0, shrinkage=1.0)
        with pytest.raises(ConfigError, match="shrinkage -1"):
            ItemKNN.fit(events, neighbours=3, shrinkage=-1.0)


def naive_ease(events, regularisation, context, decay):
    """Each column by its own ridge regression with the diagonal held at zero, not by Steck's inverse."""
    x = np.zeros((events.n_users, events.n_items))
    for u in range(events.n_users):
        x[u, events.history(u)] = 1.0
    weights = np.zeros((events.n_items, events.n_items))
    for j in range(events.n_items):
        others = [i for i in range(events.n_items) if i != j]
        a = x[:, others]
        weights[others, j] = np.linalg.solve(a.T @ a + regularisation * np.eye(len(others)), a.T @ x[:, j])
    scores = np.zeros((context.n_users, events.n_items))
    for u in range(context.n_users):
        history = context.history(u).tolist()
        for item in set(history):
            age = history[::-1].index(item)
            scores[u] += decay**age * weights[item]
    return scores


class TestEase(RecallerContract):
    @pytest.fixture
    def fit(self):
        return lambda train: Ease.fit(train, regularisation=3.0)

    @pytest.mark.parametrize("decay", [1.0, 0.8])
    def test_equals_column_wise_regression(self, events, decay):
        context = random_events(seed=9)
        got = Ease.fit(events, regularisation=3.0, decay=decay).score(np.arange(context.n_users), context)
        np.testing.assert_allclose(got, naive_ease(events, 3.0, context, decay), rtol=1e-4, atol=2e-5)

    def test_name_tells_whether_age_counts(self, events):
        ease = Ease.fit(events, regularisation=3.0)
        assert (ease.name, replace(ease, decay=0.9).name) == ("ease", "ease_weighted")

    def test_refuses_impossible_settings(self, events):
        with pytest.raises(ConfigError, match="regularisation is 0"):
            Ease.fit(events, regularisation=0.0)
        with pytest.raises(ConfigError, match=r"decay is 1\.5"):
            Ease.fit(events, regularisation=1.0, decay=1.5)


class TestEaseWeighted(RecallerContract):
    @pytest.fixture
    def fit(self):
        return lambda train: Ease.fit(train, regularisation=3.0, decay=0.8)


def checkerboard():
    """Even users have even items, odd users odd ones: what is right is obvious."""
    rng = np.random.default_rng(0)
    return store_of([list(2 * rng.permutation(12)[:7] + u % 2) for u in range(60)], 24)


@pytest.mark.parametrize(
    "fit",
    [
        lambda t: ItemKNN.fit(t, neighbours=8, shrinkage=0.0),
        lambda t: Ease.fit(t, regularisation=200.0),
        lambda t: Ease.fit(t, regularisation=200.0, decay=0.9),
    ],
)
def test_checkerboard_is_learnt(fit):
    events = checkerboard()
    split = leave_one_out(events)
    got = evaluate(fit(split.train), split, "test", catalogue=catalogue_of(24), ks=(6,))
    assert all(set(row % 2) == {u % 2} for u, row in zip(got.users, got.top, strict=True))
    assert got.metrics["recall@6"] == 1.0


def test_cooccurrence_keeps_the_most_popular_items_only():
    together = count_cooccurrence(store_of([[0, 4, 4, 5], [4, 5], [5], [2]], 7), max_items=2)
    assert together.items.tolist() == [4, 5]
    assert together.counts.tolist() == [[2.0, 2.0], [2.0, 3.0]]
    assert together.settings() == {"items": 2, "left_out_rare_items": 2}
    scores = Ease.from_cooccurrence(together, regularisation=1.0).score(np.array([0]), store_of([[4, 0]], 7))
    assert np.flatnonzero(scores[0]).tolist() == [5]


@pytest.mark.parametrize(
    "fit", [lambda t: ItemKNN.fit(t, neighbours=2, shrinkage=0.0), lambda t: Ease.fit(t, regularisation=1.0)]
)
def test_a_history_of_unknown_items_is_scored_by_popularity(fit):
    train = store_of([[0, 1], [1, 2], [1]], 5)
    scores = fit(train).score(np.array([0, 1, 2]), store_of([[], [4, 3], [0]], 5))
    assert scores[:2].tolist() == [[1.0, 3.0, 1.0, 0.0, 0.0]] * 2
    assert scores[2].tolist() != scores[0].tolist()


def test_an_empty_training_set_is_refused():
    with pytest.raises(DataError, match="0 training events"):
        count_cooccurrence(store_of([[], []], 3))


def test_tuning_chooses_on_validation_and_never_reads_test():
    events = random_events(n_users=80, n_items=300, longest=60)
    split = leave_one_out(events)
    seen = []
    found = fit_tuned_baselines(split, catalogue_of(300), lambda *args: seen.append(args))
    assert list(found) == ["most_popular", "item_knn", "ease", "ease_weighted"]
    assert [(s, d) for s, d, _ in seen] == [("baselines", d) for d in range(1, seen[-1][2] + 1)]
    for name, baseline in found.items():
        assert baseline.recaller.name == name
        again = evaluate(baseline.recaller, split, "validation", catalogue=catalogue_of(300))
        assert again.metrics == baseline.validation
    blind = replace(split, test=split.validation, test_context=split.train)
    same = fit_tuned_baselines(blind, catalogue_of(300))
    assert {n: b.settings for n, b in same.items()} == {n: b.settings for n, b in found.items()}
    every = [
        evaluate(Ease.fit(split.train, regularisation=r), split, "validation", catalogue=catalogue_of(300)).metrics[
            "recall@50"
        ]
        for r in (100.0, 300.0, 1000.0, 3000.0)
    ]
    assert len(set(every)) > 1
    assert found["ease"].validation["recall@50"] == max(every)


def test_where_repeats_are_recommended_own_items_are_a_baseline_tuned_on_validation():
    rng = np.random.default_rng(3)
    often = [rng.choice(200, size=6) for _ in range(60)]
    split = replace(leave_one_out(store_of([list(rng.choice(o, size=20)) for o in often], 200)), repeats="recommend")
    seen = []
    found = fit_tuned_baselines(split, catalogue_of(200), lambda *args: seen.append(args))
    assert list(found) == ["most_popular", "own_first", "item_knn", "ease", "ease_weighted"]
    assert [done for _, done, _ in seen] == list(range(1, seen[-1][2] + 1))
    assert found["own_first"].validation["recall@10"] > 0.95 > 3 * found["most_popular"].validation["recall@10"]
    masked = evaluate(found["own_first"].recaller, replace(split, repeats="mask"), "test", catalogue=catalogue_of(200))
    assert masked.metrics["recall@10"] < 0.1


@pytest.fixture(scope="module")
def movielens():
    folder = os.environ.get("FEDRECALL_TEST_DATA")
    root = Path(folder) if folder else ROOT.parent / "shared" / "data"
    path = root / "ml-100k" / "u.data"
    if not path.is_file():
        pytest.skip(f"MovieLens-100K is not in {root}: set FEDRECALL_TEST_DATA to a folder that holds ml-100k/u.data")
    rows = np.loadtxt(path, dtype=np.int64)
    return leave_one_out(
        EventStore.from_columns(users=rows[:, 0] - 1, items=rows[:, 1] - 1, times=rows[:, 3], n_users=943, n_items=1682)
    )


@pytest.mark.parametrize(
    ("fit", "floor", "slack"),
    [
        (MostPopular.fit, (0.0859, 0.1972, 0.0439), 0.0025),  # its many ties depend on the permutation
        (lambda t: Ease.fit(t, regularisation=300.0), (0.1400, 0.3945, 0.0728), 0.0011),
        (lambda t: Ease.fit(t, regularisation=1000.0, decay=0.9), (0.1845, 0.4825, 0.0978), 0.0011),
    ],
    ids=["most_popular", "ease", "ease_weighted"],
)
def test_known_floors_on_movielens_100k(movielens, fit, floor, slack):
    got = evaluate(fit(movielens.train), movielens, "test", catalogue=catalogue_of(1682)).metrics
    assert [got[n] for n in ("recall@10", "recall@50", "ndcg@10")] == pytest.approx(floor, abs=slack)
