"""Evaluation of one recaller on one part of a split: masked ranking of the catalogue, all metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError, UsageError
from fedrecall.simulations.data.dataset import Catalogue
from fedrecall.simulations.data.splits import Split, Targets
from fedrecall.simulations.evaluation import metrics as m
from fedrecall.simulations.evaluation.groups import GroupMetrics, activity_deciles, group_metrics
from fedrecall.simulations.evaluation.ranking import (
    UNRANKED,
    check_scores,
    rank_keys,
    ranks_of,
    tie_order,
    top_items,
)
from fedrecall.simulations.evaluation.recaller import Recaller

Progress = Callable[[str, int, int], None]

_SCORES_AT_ONCE = 1 << 24
_PER_USER = {"recall": m.recall, "precision": m.precision, "ndcg": m.ndcg, "mrr": m.mrr}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What one recaller achieved.

    Attributes:
        recaller: its name.
        which: ``validation`` or ``test``.
        users: the evaluated users.
        metrics: ``recall@10`` and so on, finite. ``diversity@k`` is absent where the catalogue has neither
            vectors nor categories, or where lists have one item.
        per_user: recall, precision, ndcg and mrr of each evaluated user, by the same names.
        top: the best items of each evaluated user, best first; -1 where fewer could be ranked.
        offsets: rows ``offsets[j]:offsets[j + 1]`` of ``targets`` and ``ranks`` belong to ``users[j]``.
        targets: the distinct relevant items.
        ranks: exact rank of each target, 0 is best; ``UNRANKED`` when its own context masks it.
        groups: by attribute; ``activity`` (deciles of training counts) always.
        masked_targets: number of targets that the context masks; each counts as missed.

    """

    recaller: str
    which: Literal["validation", "test"]
    users: Int64[np.ndarray, " evaluated"]
    metrics: dict[str, float]
    per_user: dict[str, Float64[np.ndarray, " evaluated"]]
    top: Int32[np.ndarray, "evaluated max_k"]
    offsets: Int64[np.ndarray, " evaluated_plus_1"]
    targets: Int32[np.ndarray, " targets"]
    ranks: Int64[np.ndarray, " targets"]
    groups: dict[str, GroupMetrics]
    masked_targets: int


def evaluate(
    recaller: Recaller,
    split: Split,
    which: Literal["validation", "test"],
    *,
    catalogue: Catalogue,
    ks: Sequence[int] = (10, 50),
    batch_size: int = 512,
    groups: Mapping[str, Sequence[str]] | None = None,
    item_vectors: Float[np.ndarray, "items dim"] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the catalogue for every user with targets and measure.

    The items of its context are masked, unless the split recommends repeats.

    Args:
        recaller: what is evaluated; it sees users and their context only.
        split: where context and targets come from.
        which: the part of the split.
        catalogue: the public items; its categories measure diversity where there are no ``item_vectors``.
        ks: cut-offs.
        batch_size: users at once, at most; fewer where the catalogue is very large.
        groups: a label for each user of the data set, by attribute (``Dataset.groups``).
        item_vectors: public item features.
        progress: called with ("evaluate <name>", users done, users in all).

    Raises:
        ScoreError: the recaller returned NaN, an infinity or a wrong shape.
        DataError, UsageError: nothing to evaluate, or arguments that do not fit each other.

    """
    context, targets = _part(split, which)
    n_items = len(catalogue)
    if context.n_items != n_items:
        raise DataError(f"the split has {context.n_items} items and the catalogue {n_items}: they must be the same")
    if not ks or min(ks) < 1 or batch_size < 1:
        raise UsageError(f"ks is {tuple(ks)} and batch_size {batch_size}: cut-offs and batch must be at least 1")
    users, offsets, relevant = _distinct(targets, which)
    order = tie_order(n_items)
    step = max(1, min(batch_size, _SCORES_AT_ONCE // n_items))
    tops, ranks = [], []
    for start in range(0, len(users), step):
        rows = slice(start, min(start + step, len(users)))
        scores = check_scores(recaller.score(users[rows], context), users[rows], n_items, recaller.name)
        own = offsets[rows.start : rows.stop + 1]
        items = relevant[own[0] : own[-1]]
        candidates = None if targets.candidates is None else targets.candidates[rows]
        masked = context if split.repeats == "mask" else None
        ranked = _ranked(users[rows], masked, n_items, own - own[0], items, candidates)
        keys = rank_keys(scores, order, ranked)
        tops.append(top_items(keys, max(ks)))
        ranks.append(ranks_of(keys, own - own[0], items))
        if progress:
            progress(f"evaluate {recaller.name}", rows.stop, len(users))
    top, rank = np.concatenate(tops), np.concatenate(ranks)
    per_user = {f"{name}@{k}": f(rank, offsets, k) for name, f in _PER_USER.items() for k in ks}
    recalls = {name: values for name, values in per_user.items() if name.startswith("recall@")}
    labels = {"activity": activity_deciles(split.train.counts()[users])}
    for attribute, of_all in (groups or {}).items():
        if len(of_all) != context.n_users:
            raise DataError(f"{attribute} labels {len(of_all)} users, the split has {context.n_users}")
        labels[attribute] = tuple(of_all[u] for u in users)
    return Evaluation(
        recaller=recaller.name,
        which=which,
        users=users,
        metrics={name: float(v.mean()) for name, v in per_user.items()}
        | _list_metrics(top, ks, split.train, catalogue, item_vectors),
        per_user=per_user,
        top=top,
        offsets=offsets,
        targets=relevant,
        ranks=rank,
        groups={attribute: group_metrics(of_user, recalls) for attribute, of_user in labels.items()},
        masked_targets=int((rank == UNRANKED).sum()),
    )


def item_owners(train: EventStore) -> Int64[np.ndarray, " items"]:
    """Return the number of distinct users of ``train`` who have each item."""
    pairs = np.sort(train.users() * train.n_items + train.items)
    distinct = pairs[np.diff(pairs, prepend=-1) != 0]
    return np.bincount(distinct % train.n_items, minlength=train.n_items)


def _part(split: Split, which: Literal["validation", "test"]) -> tuple[EventStore, Targets]:
    if which == "validation":
        return split.validation_context, split.validation
    if which == "test":
        return split.test_context, split.test
    raise UsageError(f"which is {which!r}: choose 'validation' or 'test'")


def _distinct(
    targets: Targets, which: str
) -> tuple[Int64[np.ndarray, " evaluated"], Int64[np.ndarray, " evaluated_plus_1"], Int32[np.ndarray, " targets"]]:
    """Return users, offsets and the distinct relevant items of each user, in order of item."""
    counts = np.diff(targets.offsets)
    if not len(counts) or counts.min() < 1:
        raise DataError(
            f"{len(counts)} users to evaluate on {which}, {int((counts < 1).sum())} without a target: "
            "every one needs a relevant item; under 'loo' that takes at least 3 events"
        )
    rows = np.repeat(np.arange(len(counts)), counts)
    pairs = np.unique(np.stack([rows, targets.items]), axis=1)
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs[0], minlength=len(counts)), out=offsets[1:])
    return np.asarray(targets.users, dtype=np.int64), offsets, pairs[1].astype(np.int32)


def _ranked(
    users: Int64[np.ndarray, " batch"],
    masked: EventStore | None,
    n_items: int,
    offsets: Int64[np.ndarray, " batch_plus_1"],
    relevant: Int32[np.ndarray, " targets"],
    candidates: Int32[np.ndarray, "batch n"] | None,
) -> Bool[np.ndarray, "batch items"]:
    """Return what takes part in the ranking: all items, or candidates and targets, without those of ``masked``."""
    ranked = np.full((len(users), n_items), candidates is None)
    if candidates is not None:
        ranked[np.arange(len(users))[:, None], candidates] = True
        ranked[np.repeat(np.arange(len(users)), np.diff(offsets)), relevant] = True
    if masked is not None:
        histories = [masked.history(u) for u in users]
        rows = np.repeat(np.arange(len(users)), [len(h) for h in histories])
        ranked[rows, np.concatenate(histories)] = False
    return ranked


def _list_metrics(
    top: Int32[np.ndarray, "evaluated max_k"],
    ks: Sequence[int],
    train: EventStore,
    catalogue: Catalogue,
    item_vectors: Float[np.ndarray, "items dim"] | None,
) -> dict[str, float]:
    n_items = len(catalogue)
    owners, n_users = item_owners(train), int((train.counts() > 0).sum())
    categories = catalogue.category_matrix() if item_vectors is None else None
    out: dict[str, float] = {}
    for k in ks:
        lists = top[:, :k]
        out[f"coverage@{k}"] = m.coverage(lists, n_items)
        out[f"gini@{k}"] = m.gini(lists, n_items)
        out[f"novelty@{k}"] = m.novelty(lists, owners, n_users)
        if item_vectors is not None:
            diversity = m.diversity_cosine(lists, item_vectors)
        elif categories is not None and categories.any():
            diversity = m.diversity_jaccard(lists, categories)
        else:
            diversity = None
        if diversity is not None:
            out[f"diversity@{k}"] = diversity
    return out
