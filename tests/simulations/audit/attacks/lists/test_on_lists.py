"""What recommendation lists tell: of a history that they are made from, and of another one nothing."""

import numpy as np
import pytest
import torch

from fedrecall.client.recall.retrieval import query_vectors, shared_transformer
from fedrecall.simulations.audit.attacks.interaction_membership import flip_coins, guess_coins
from fedrecall.simulations.audit.attacks.lists.on_lists import WAYS, Shown, attack_lists, list_scores, recommended
from fedrecall.simulations.audit.attacks.observed import groups_of, holds
from fedrecall.simulations.audit.attacks.scores import Guesses, auc
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.runs.recaller import ModelRecaller, item_vectors

MASKED, OPEN = Shown(length=10, masked=True), Shown(length=10, masked=False)


@pytest.fixture(scope="module")
def attempts(world, arrays):
    return {way: row for way, row in zip(WAYS, attack_lists(world, arrays, devices=600, seed=1), strict=True)}


def test_a_list_gives_events_away_and_decoys_take_some_of_it_back(attempts):
    plain, decoyed = (attempts[Shown(length=10, masked=True, decoys=d)] for d in (0.0, 0.5))
    longer = attempts[Shown(length=50, masked=True)]
    assert plain.low > 0.53 and longer.low > plain.high
    assert decoyed.score < (plain.score + 0.5) / 2 + 0.03
    assert all(row.verdict == "shows" and row.claimed_epsilon is None for row in attempts.values())
    assert len({row.name for row in attempts.values()}) == len(WAYS)


def test_devices_recommend_from_what_the_coins_left(world, arrays):
    seen = []

    def noting(score):
        def noted(self, users, context):
            seen.append((len(users), context.n_events))
            return score(self, users, context)

        return noted

    with wrapped(ModelRecaller, "score", noting):
        next(attack_lists(world, arrays, devices=100, seed=1))
    ((devices, events),) = seen
    assert devices == 100
    # A quarter of 100 devices' items got a coin each; the other 500 devices keep all.
    assert 0.05 < (world.store.n_events - events) / (world.store.n_events / 6) < 0.2


def test_lists_of_other_devices_are_chance(world, arrays, rng):
    """12 games of about 1,400 judged coins: the mean has a deviation of 0.005."""
    vectors = item_vectors(arrays, world.features)
    transformer, devices = shared_transformer(arrays, world.shape), np.arange(600)
    found = []
    for _ in range(12):
        coined, coins = flip_coins(world, devices, rng)
        scores = query_vectors(transformer, torch.as_tensor(vectors), coined.store, devices, None) @ vectors.T
        lists = recommended(scores.astype(float), holds(coined.store, devices), MASKED, rng)
        # The next device's list: devices of the synthetic data are no more alike for being neighbours.
        scorers = list_scores(np.roll(lists, 1, axis=0), vectors.astype(float))
        found.append(auc(guess_coins(scorers, groups_of(devices, 1), coins, rng)[1]))
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_what_is_shown_is_the_best_that_was_not_had(rng):
    scores, had = rng.standard_normal((30, 80)), rng.random((30, 80)) < 0.2
    masked, opened = (recommended(scores, had, way, rng) for way in (MASKED, OPEN))
    for device in range(30):
        ranked = sorted(range(80), key=lambda item: -scores[device, item])
        assert opened[device].tolist() == ranked[:10]
        assert masked[device].tolist() == [item for item in ranked if not had[device, item]][:10]
    decoyed = recommended(scores, had, Shown(length=10, masked=True, decoys=0.5), rng)
    # 300 places, each replaced by a coin, by the same item one time in 80: 0.506 on average, deviation 0.029.
    assert np.mean(decoyed == masked) == pytest.approx(0.506, abs=0.12)


def test_scores_of_items_are_those_of_a_naive_loop(rng):
    lists = np.array([rng.permutation(20)[:4] for _ in range(5)])
    found = list_scores(lists, rng.standard_normal((20, 3)))
    for device in range(5):
        for item in range(20):
            place = lists[device].tolist().index(item) if item in lists[device] else 4
            assert found["shown"][device, item] == (place < 4) == -found["not shown"][device, item]
            assert found["place in the list"][device, item] == 4 - place
            if place < 4:
                missing = found["like what is shown, and missing"][device]
                assert missing[item] == missing.min()
    for name in ("shown", "like what is shown"):
        np.testing.assert_allclose(found[f"{name}, centred"].mean(axis=0), 0, atol=1e-12)


def test_a_list_that_is_like_the_history_is_recognised(rng):
    """Planted: 40 items in two groups of vectors; who has items of a group is shown others of it."""
    groups = np.repeat([0, 1], 20)
    vectors = np.eye(2)[groups] + 0.1 * rng.standard_normal((40, 2))
    own = rng.integers(0, 2, 200)
    lists = np.array([rng.permutation(np.flatnonzero(groups == g))[:5] for g in own])
    item = rng.integers(0, 40, 200)
    scores = list_scores(lists, vectors)["like what is shown"][np.arange(200), item]
    assert auc(Guesses(scores=scores, truth=groups[item] == own, clusters=np.arange(200))) > 0.99
