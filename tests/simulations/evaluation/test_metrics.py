"""Metrics and ranks against ranx and against loops written from the definitions."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import FedrecallError, ScoreError
from fedrecall.simulations.evaluation import metrics as m
from fedrecall.simulations.evaluation.ranking import (
    NO_ITEM,
    UNRANKED,
    check_scores,
    rank_keys,
    ranks_of,
    tie_order,
    top_items,
)

KS = (1, 10, 50)


def ranked_case(seed, *, n_users=60, n_items=120, most=14):
    """Distinct scores, several targets a user: ranks and offsets, with scores and targets they came from."""
    rng = np.random.default_rng(seed)
    scores = np.stack([rng.permutation(n_items) for _ in range(n_users)]).astype(np.float32)
    counts = rng.integers(1, most, size=n_users)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    targets = np.concatenate([rng.choice(n_items, size=c, replace=False) for c in counts]).astype(np.int32)
    keys = rank_keys(scores, tie_order(n_items), np.ones(scores.shape, dtype=bool))
    return scores, targets, offsets, ranks_of(keys, offsets, targets)


def naive_metrics(scores, targets, offsets, k):
    out = {"recall": [], "precision": [], "ndcg": [], "mrr": []}
    for u, row in enumerate(scores):
        relevant = set(targets[offsets[u] : offsets[u + 1]].tolist())
        listed = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        hits = [place for place, item in enumerate(listed, start=1) if item in relevant]
        out["recall"].append(len(hits) / len(relevant))
        out["precision"].append(len(hits) / k)
        ideal = sum(1 / math.log2(p + 1) for p in range(1, min(k, len(relevant)) + 1))
        out["ndcg"].append(sum(1 / math.log2(p + 1) for p in hits) / ideal)
        out["mrr"].append(1 / hits[0] if hits else 0.0)
    return out


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", ["recall", "precision", "ndcg", "mrr"])
def test_accuracy_metrics_equal_a_loop_for_every_user(name, k):
    scores, targets, offsets, ranks = ranked_case(3)
    expected = naive_metrics(scores, targets, offsets, k)[name]
    np.testing.assert_allclose(getattr(m, name)(ranks, offsets, k), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of ranx' own sources, when Python first compiles them
@pytest.mark.slow  # numba compiles ranx for 20 to 40 seconds
def test_accuracy_metrics_equal_ranx():
    from ranx import Qrels, Run, evaluate

    scores, targets, offsets, ranks = ranked_case(11)
    relevant = {f"u{u}": {f"i{i}": 1 for i in targets[offsets[u] : offsets[u + 1]]} for u in range(len(offsets) - 1)}
    run = Run({f"u{u}": {f"i{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}, name="run")
    names = [f"{n}@{k}" for n in ("recall", "precision", "ndcg", "mrr") for k in KS]
    for name, value in evaluate(Qrels(relevant), run, names).items():
        metric, k = name.split("@")
        assert getattr(m, metric)(ranks, offsets, int(k)).mean() == pytest.approx(value, abs=1e-9), name


def some_lists(seed=0, *, n_items=25, n_users=12, k=6):
    rng = np.random.default_rng(seed)
    top = np.stack([rng.choice(n_items, size=k, replace=False) for _ in range(n_users)]).astype(np.int32)
    top[1, 4:] = NO_ITEM
    top[2, 1:] = NO_ITEM
    top[3] = NO_ITEM
    return top, rng


def test_coverage_and_gini_equal_their_definitions():
    top, _ = some_lists()
    shown = [i for row in top.tolist() for i in row if i != NO_ITEM]
    exposure = [shown.count(i) for i in range(25)]
    assert m.coverage(top, 25) == pytest.approx(len(set(shown)) / 25, abs=1e-12)
    # Half the relative mean absolute difference, over all ordered pairs.
    spread = sum(abs(a - b) for a in exposure for b in exposure) / (2 * 25 * sum(exposure))
    assert m.gini(top, 25) == pytest.approx(spread, abs=1e-12)


def test_gini_of_even_exposure_is_zero_and_of_one_item_is_nearly_one():
    assert m.gini(np.arange(20, dtype=np.int32).reshape(4, 5), 20) == pytest.approx(0.0, abs=1e-12)
    assert m.gini(np.full((9, 1), 3, dtype=np.int32), 50) == pytest.approx(1 - 1 / 50)


def test_novelty_equals_a_loop_and_is_finite_for_items_that_nobody_has():
    top, rng = some_lists()
    owners = rng.integers(0, 9, size=25)
    owners[top[0, 0]] = 0
    bits = [-math.log2(max(int(owners[i]), 1) / 9) for row in top.tolist() for i in row if i != NO_ITEM]
    assert m.novelty(top, owners, 9) == pytest.approx(sum(bits) / len(bits), abs=1e-12)


def naive_diversity(top, similarity):
    per_list = []
    for row in top.tolist():
        listed = [i for i in row if i != NO_ITEM]
        pairs = [similarity(a, b) for a, b in combinations(listed, 2)]
        if pairs:
            per_list.append(1 - sum(pairs) / len(pairs))
    return sum(per_list) / len(per_list)


def test_diversity_of_vectors_equals_a_loop_over_pairs():
    top, rng = some_lists()
    vectors = rng.standard_normal((25, 4))
    vectors[top[0, 0]] = 0.0

    def cosine(a, b):
        size = math.hypot(*vectors[a]) * math.hypot(*vectors[b])
        return sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True)) / size if size else 0.0

    assert m.diversity_cosine(top, vectors) == pytest.approx(naive_diversity(top, cosine), abs=1e-9)


def test_diversity_of_categories_equals_a_loop_over_pairs():
    top, rng = some_lists()
    categories = (rng.random((25, 5)) < 0.3).astype(np.float32)
    categories[top[0, :2]] = 0.0
    sets = [set(np.flatnonzero(row).tolist()) for row in categories]

    def jaccard(a, b):
        return len(sets[a] & sets[b]) / len(sets[a] | sets[b]) if sets[a] | sets[b] else 0.0

    assert m.diversity_jaccard(top, categories) == pytest.approx(naive_diversity(top, jaccard), abs=1e-9)


def test_diversity_is_unknown_where_no_list_has_two_items():
    top = np.array([[1, NO_ITEM], [NO_ITEM, NO_ITEM]], dtype=np.int32)
    assert m.diversity_jaccard(top, np.ones((3, 2), dtype=np.float32)) is None
    assert m.diversity_cosine(top, np.ones((3, 2))) is None


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@given(rows=st.integers(2, 9).flatmap(lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=1)))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_keys_sort_as_scores_then_permutation(rows):
    scores = np.array(rows, dtype=np.float32)
    n = scores.shape[1]
    order = tie_order(n)
    keys = rank_keys(scores, order, np.ones(scores.shape, dtype=bool))
    expected = [sorted(range(n), key=lambda i: (-row[i], order[i])) for row in scores]
    np.testing.assert_array_equal(top_items(keys, n), expected)
    every = np.tile(np.arange(n, dtype=np.int32), len(scores))
    ranks = ranks_of(keys, np.arange(len(scores) + 1) * n, every).reshape(scores.shape)
    np.testing.assert_array_equal(ranks, np.argsort(expected, axis=1))


def test_many_targets_a_row_rank_as_few_do():
    """More than eight targets a row take the sorting path; both must agree."""
    rng = np.random.default_rng(2)
    keys = rank_keys(rng.integers(0, 5, size=(4, 40)).astype(np.float32), tie_order(40), rng.random((4, 40)) < 0.8)
    every = np.tile(np.arange(40, dtype=np.int32), 4)
    at_once = ranks_of(keys, np.arange(5) * 40, every).reshape(4, 40)
    singly = np.stack([ranks_of(keys, np.arange(5), np.full(4, i, dtype=np.int32)) for i in range(40)], axis=1)
    np.testing.assert_array_equal(at_once, singly)
    assert (at_once == UNRANKED).any()


def test_ties_follow_one_permutation_that_favours_no_place():
    order = tie_order(1000)
    np.testing.assert_array_equal(order, tie_order(1000))
    assert sorted(order.tolist()) == list(range(1000))
    # A permutation that kept or reversed catalogue order would correlate with popularity: it often is one.
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = bad
    with pytest.raises(ScoreError, match=r"deep.*user 8 and item 2.*users 7\.\.9") as caught:
        check_scores(scores, np.array([7, 8, 9]), 4, "deep")
    assert isinstance(caught.value, FedrecallError)


def test_scores_that_overflow_or_have_a_wrong_shape_are_refused():
    with pytest.raises(ScoreError, match="inf"):
        check_scores(np.full((1, 2), 1e300), np.array([0]), 2, "deep")
    with pytest.raises(ScoreError, match=r"\(2, 3\).*\(2, 4\)"):
        check_scores(np.zeros((2, 3), dtype=np.float32), np.array([0, 1]), 4, "deep")
