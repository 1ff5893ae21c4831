"""``evaluate`` against a loop that sorts each user's catalogue, and paired comparisons against resampling."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrecall.protocol.errors import DataError, ScoreError, UsageError
from fedrecall.simulations.data.splits import Targets
from fedrecall.simulations.evaluation.evaluate import Evaluation, evaluate, item_owners
from fedrecall.simulations.evaluation.groups import activity_deciles, group_metrics
from fedrecall.simulations.evaluation.paired import compare_paired, paired_difference
from fedrecall.simulations.evaluation.ranking import UNRANKED, tie_order

from .recaller_contract import catalogue_of, leave_one_out, random_events, store_of


class Table:
    """A recaller whose scores are written down."""

    name = "table"

    def __init__(self, scores):
        self.scores = np.asarray(scores, dtype=np.float32)

    def score(self, users, context):
        return self.scores[users]


def tied_scores(n_users, n_items, seed=0):
    return np.random.default_rng(seed).integers(0, 6, size=(n_users, n_items)).astype(np.float32)


def naive_list(row, masked, candidates=None):
    order = tie_order(len(row))
    pool = range(len(row)) if candidates is None else candidates
    return sorted((i for i in pool if i not in masked), key=lambda i: (-row[i], order[i]))


@pytest.fixture
def events():
    return random_events(n_users=50, n_items=70, longest=20)


@pytest.fixture
def split(events):
    return leave_one_out(events)


def with_targets(split, users, relevant, candidates=None):
    """The split with other test targets, several a user."""
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in relevant])])
    items = np.array([i for r in relevant for i in r], dtype=np.int32)
    return replace(split, test=Targets(users=np.array(users), offsets=offsets, items=items, candidates=candidates))


@pytest.mark.parametrize("which", ["validation", "test"])
def test_leave_one_out_equals_a_loop_for_every_user(split, events, which):
    scores = tied_scores(events.n_users, events.n_items)
    got = evaluate(Table(scores), split, which, catalogue=catalogue_of(70), ks=(3, 10), batch_size=7)
    context, targets = (split.train, split.validation) if which == "validation" else (split.test_context, split.test)
    for j, (user, target) in enumerate(zip(targets.users, targets.items, strict=True)):
        expected = naive_list(scores[user], set(context.history(user).tolist()))
        assert got.top[j].tolist() == expected[:10]
        if target in expected:
            place = expected.index(target)
            assert got.ranks[j] == place
            assert got.per_user["recall@3"][j] == (place < 3)
            gain = 1 / math.log2(place + 2) if place < 10 else 0.0
            assert got.per_user["ndcg@10"][j] == pytest.approx(gain, abs=1e-12)
        else:
            assert got.ranks[j] == UNRANKED
    assert got.metrics["recall@10"] == pytest.approx(got.per_user["recall@10"].mean(), abs=1e-12)
    assert got.masked_targets == (got.ranks == UNRANKED).sum()
    if which == "test":
        assert got.masked_targets > 0, "every third user repeats an item: the case must occur"


@pytest.mark.parametrize("which", ["validation", "test"])
def test_with_repeats_nothing_is_masked(split, events, which):
    scores = tied_scores(events.n_users, events.n_items)
    recommended = replace(split, repeats="recommend")
    got = evaluate(Table(scores), recommended, which, catalogue=catalogue_of(70), ks=(10,), batch_size=7)
    targets = split.validation if which == "validation" else split.test
    for j, (user, target) in enumerate(zip(targets.users, targets.items, strict=True)):
        expected = naive_list(scores[user], ())
        assert got.top[j].tolist() == expected[:10]
        assert got.ranks[j] == expected.index(target)
    assert got.masked_targets == 0


def test_several_targets_repeated_targets_and_a_masked_one(split):
    known = int(split.test_context.history(0)[0])
    fresh = [i for i in range(70) if i not in split.test_context.history(0)][:3]
    several = with_targets(split, [0], [[*fresh, fresh[0], known]])
    scores = tied_scores(50, 70)
    got = evaluate(Table(scores), several, "test", catalogue=catalogue_of(70), ks=(10,))
    expected = naive_list(scores[0], set(split.test_context.history(0).tolist()))
    assert got.targets.tolist() == sorted({*fresh, known})
    assert got.metrics["recall@10"] == pytest.approx(sum(i in expected[:10] for i in fresh) / 4)
    assert got.masked_targets == 1


def test_candidates_limit_the_ranking(split):
    rng = np.random.default_rng(1)
    users = split.test.users[:9]
    relevant = [[int(i)] for i in split.test.items[:9]]
    candidates = np.stack([rng.choice(70, size=12, replace=False) for _ in users]).astype(np.int32)
    sampled = with_targets(split, users, relevant, candidates)
    scores = tied_scores(50, 70)
    got = evaluate(Table(scores), sampled, "test", catalogue=catalogue_of(70), ks=(5, 30))
    for j, user in enumerate(users):
        pool = {*candidates[j].tolist(), *relevant[j]}
        expected = naive_list(scores[user], set(split.test_context.history(user).tolist()), pool)
        assert got.top[j].tolist() == expected + [-1] * (30 - len(expected))


def test_cut_off_beyond_the_catalogue_fills_up(split, events):
    got = evaluate(Table(tied_scores(50, 70)), split, "test", catalogue=catalogue_of(70), ks=(100,))
    assert got.top.shape == (len(split.test.users), 100)
    for j, user in enumerate(split.test.users):
        assert (got.top[j] >= 0).sum() == 70 - len(set(split.test_context.history(user).tolist()))


def test_batches_change_nothing(split):
    table, catalogue = Table(tied_scores(50, 70)), catalogue_of(70, [("a",), ("a", "b")] * 35)
    whole = evaluate(table, split, "test", catalogue=catalogue)
    small = evaluate(table, split, "test", catalogue=catalogue, batch_size=1)
    np.testing.assert_array_equal(whole.top, small.top)
    np.testing.assert_array_equal(whole.ranks, small.ranks)
    assert whole.metrics == small.metrics


def test_all_metrics_are_there_under_the_names_of_the_contract(split):
    catalogue = catalogue_of(70, [("a",), ("a", "b")] * 35)
    got = evaluate(Table(tied_scores(50, 70)), split, "test", catalogue=catalogue)
    names = ("recall", "precision", "ndcg", "mrr", "coverage", "gini", "novelty", "diversity")
    assert set(got.metrics) == {f"{n}@{k}" for n in names for k in (10, 50)}
    assert all(math.isfinite(v) and isinstance(v, float) for v in got.metrics.values())
    assert got.top.dtype == np.int32
    bare = evaluate(Table(tied_scores(50, 70)), split, "test", catalogue=catalogue_of(70))
    assert "diversity@10" not in bare.metrics
    vectors = np.random.default_rng(0).standard_normal((70, 3))
    assert (
        "diversity@10"
        in evaluate(Table(tied_scores(50, 70)), split, "test", catalogue=catalogue_of(70), item_vectors=vectors).metrics
    )


def test_owners_count_users_not_events():
    assert item_owners(store_of([[1, 1, 2], [], [2]], 4)).tolist() == [0, 1, 2, 0]


def test_groups_average_their_users(split):
    labels = tuple("young" if u % 5 < 2 else "old" for u in range(50))
    got = evaluate(Table(tied_scores(50, 70)), split, "test", catalogue=catalogue_of(70), groups={"age": labels})
    first = got.users % 5 < 2
    age = got.groups["age"]
    assert age.users == {"old": int((~first).sum()), "young": int(first.sum())}
    for name in ("recall@10", "recall@50"):
        young, old = got.per_user[name][first].mean(), got.per_user[name][~first].mean()
        assert young != old
        assert age.metrics[name] == pytest.approx({"old": old, "young": young})
        assert age.gaps[name] == pytest.approx(abs(young - old))
    assert sum(got.groups["activity"].users.values()) == len(got.users)


def test_small_groups_do_not_make_a_gap():
    values = {"recall@10": np.array([1.0] + [0.25] * 30 + [0.5] * 30)}
    got = group_metrics(["tiny"] + ["a"] * 30 + ["b"] * 30, values)
    assert got.metrics["recall@10"] == {"a": 0.25, "b": 0.5, "tiny": 1.0}
    assert got.gaps["recall@10"] == pytest.approx(0.25)


def test_deciles_grow_with_activity_and_equal_counts_share_one():
    counts = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 3))
    deciles = np.array(activity_deciles(counts), dtype=int)
    assert np.bincount(deciles)[1:].tolist() == [30] * 10
    assert all(deciles[counts < 10] == 1)
    assert all(deciles[counts >= 90] == 10)
    assert set(activity_deciles(np.full(40, 7))) == {"1"}


def test_progress_reaches_its_total(split):
    seen = []
    evaluate(
        Table(tied_scores(50, 70)),
        split,
        "test",
        catalogue=catalogue_of(70),
        batch_size=20,
        progress=lambda *args: seen.append(args),
    )
    assert seen == [("evaluate table", 20, 50), ("evaluate table", 40, 50), ("evaluate table", 50, 50)]


def test_scores_that_cannot_be_ranked_are_refused(split):
    scores = tied_scores(50, 70)
    scores[split.test.users[30], 5] = np.nan
    with pytest.raises(ScoreError, match=rf"table gave the score nan to user {split.test.users[30]} and item 5"):
        evaluate(Table(scores), split, "test", catalogue=catalogue_of(70))


def test_what_does_not_fit_is_refused(split):
    table = Table(tied_scores(50, 70))
    with pytest.raises(DataError, match="70 items and the catalogue 69"):
        evaluate(table, split, "test", catalogue=catalogue_of(69))
    with pytest.raises(UsageError, match="at least 1"):
        evaluate(table, split, "test", catalogue=catalogue_of(70), ks=())
    with pytest.raises(UsageError, match="'validation' or 'test'"):
        evaluate(table, split, "train", catalogue=catalogue_of(70))
    with pytest.raises(DataError, match="age labels 2 users"):
        evaluate(table, split, "test", catalogue=catalogue_of(70), groups={"age": ("a", "b")})
    for users, relevant in (([], []), ([1, 2], [[3], []])):
        with pytest.raises(DataError, match="target"):
            evaluate(table, with_targets(split, users, relevant), "test", catalogue=catalogue_of(70))


def two_evaluations(a, b):
    def one(name, values):
        n = len(values)
        return Evaluation(
            recaller=name,
            which="test",
            users=np.arange(n),
            metrics={},
            per_user={"ndcg@10": np.asarray(values, dtype=np.float64)},
            top=np.zeros((n, 1), dtype=np.int32),
            offsets=np.arange(n + 1),
            targets=np.zeros(n, dtype=np.int32),
            ranks=np.zeros(n, dtype=np.int64),
            groups={},
            masked_targets=0,
        )

    return one("a", a), one("b", b)


@pytest.mark.parametrize("rounding", [0, 6])
def test_paired_interval_equals_plain_resampling(rounding):
    """Few distinct differences and many: the multinomial draw is the bootstrap in both."""
    rng = np.random.default_rng(4)
    base = np.round(rng.random(400), rounding)
    gain = np.round(rng.normal(0.05, 0.3, size=400), max(1, rounding))
    got = compare_paired(*two_evaluations(base + gain, base), "ndcg@10", rng=np.random.default_rng(0))
    means = [gain[rng.integers(0, 400, size=400)].mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert got["difference"] == pytest.approx(gain.mean(), abs=1e-12)
    # An end of the interval from 4,000 resamples has a standard error of about 0.0006.
    assert got["low"] == pytest.approx(low, abs=0.003)
    assert got["high"] == pytest.approx(high, abs=0.003)


def test_sign_test_is_the_exact_binomial():
    a = [1.0] * 9 + [0.0] * 3 + [0.5] * 20
    b = [0.0] * 9 + [1.0] * 3 + [0.5] * 20
    got = compare_paired(*two_evaluations(a, b), "ndcg@10", rng=np.random.default_rng(0))
    tail = sum(math.comb(12, i) for i in range(9, 13)) / 2**12
    assert got["sign_test_p"] == pytest.approx(2 * tail)
    assert (got["wins"], got["losses"], got["users"]) == (9, 3, 32)


def test_equal_evaluations_do_not_differ():
    got = compare_paired(*two_evaluations([0.5] * 5, [0.5] * 5), "ndcg@10", rng=np.random.default_rng(0))
    assert (got["difference"], got["low"], got["high"], got["sign_test_p"]) == (0.0, 0.0, 0.0, 1.0)


def test_only_the_same_users_can_be_paired():
    a, b = two_evaluations([0.1, 0.2], [0.3, 0.4])
    with pytest.raises(UsageError, match="same split"):
        compare_paired(a, replace(b, users=np.array([0, 7])), "ndcg@10", rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match="recall@10"):
        compare_paired(a, b, "recall@10", rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match="same users"):
        paired_difference(np.zeros(3), np.zeros(2), rng=np.random.default_rng(0))
