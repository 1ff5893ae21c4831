"""Ranking metrics; each function's docstring is its definition.

Accuracy metrics take the ranks of all relevant items (0 is best, ``UNRANKED`` when masked) grouped by user,
and return one number a user. List metrics take top lists ``[users, k]``, best first, filled up with -1.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64

Ranks = Int64[np.ndarray, " targets"]
Offsets = Int64[np.ndarray, " users_plus_1"]
PerUser = Float64[np.ndarray, " users"]
Top = Int32[np.ndarray, "users k"]


def recall(ranks: Ranks, offsets: Offsets, k: int) -> PerUser:
    """Share of a user's relevant items that are in the top ``k``."""
    return _hits(ranks, offsets, k) / np.diff(offsets)


def precision(ranks: Ranks, offsets: Offsets, k: int) -> PerUser:
    """Share of the top ``k`` places that hold a relevant item."""
    return _hits(ranks, offsets, k) / k


def ndcg(ranks: Ranks, offsets: Offsets, k: int) -> PerUser:
    """Discounted gain (binary, log2) over that of the ideal list of min(k, relevant) hits.

    Järvelin and Kekäläinen 2002, with the discount log2(place + 1).
    """
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    inside = ranks < k
    gains = np.zeros(len(ranks))
    gains[inside] = discounts[ranks[inside]]
    ideal = np.cumsum(discounts)[np.minimum(np.diff(offsets), k) - 1]
    found: PerUser = np.add.reduceat(gains, offsets[:-1]) / ideal
    return found


def mrr(ranks: Ranks, offsets: Offsets, k: int) -> PerUser:
    """One over the place of the best ranked relevant item; 0 when it is not in the top ``k``."""
    best = np.minimum.reduceat(ranks, offsets[:-1])
    return np.where(best < k, 1.0 / (np.minimum(best, k) + 1.0), 0.0)


def coverage(top: Top, n_items: int) -> float:
    """Share of the catalogue that appears in some top list."""
    return float(np.count_nonzero(_exposure(top, n_items)) / n_items)


def gini(top: Top, n_items: int) -> float:
    """Gini coefficient of exposure over the catalogue: 0 is even, 1 is all exposure on one of many items."""
    exposure = np.sort(_exposure(top, n_items)).astype(np.float64)
    total = exposure.sum()
    if total == 0:
        return 0.0
    places = np.arange(1, n_items + 1)
    return float(((2 * places - n_items - 1) * exposure).sum() / (n_items * total))


def novelty(top: Top, owners: Int64[np.ndarray, " items"], n_users: int) -> float:
    """Mean -log2 of the share of the ``n_users`` training users who have the item, over all places of lists.

    ``owners`` counts the training users of each item. An item that nobody has counts as one user's, so that
    the figure stays finite.
    """
    surprise = -np.log2(np.maximum(owners, 1) / max(n_users, 1))
    shown = top[top >= 0]
    return float(surprise[shown].mean()) if len(shown) else 0.0


def diversity_cosine(top: Top, vectors: Float[np.ndarray, "items dim"]) -> float | None:
    """Mean over lists of 1 - mean pairwise cosine of item vectors; a zero vector is orthogonal to all.

    ``None`` when no list has two items.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros(vectors.shape, dtype=np.float64), where=norms > 0)
    lengths = np.count_nonzero(top >= 0, axis=1)
    totals = []
    for block in _blocks(top, vectors.shape[1]):
        shown = np.where((block >= 0)[:, :, None], unit[block], 0.0)
        # sum over pairs of u.v = (|sum u|^2 - sum |u|^2) / 2
        totals.append(((shown.sum(axis=1) ** 2).sum(axis=1) - (shown**2).sum(axis=(1, 2))) / 2)
    return _mean_dissimilarity(np.concatenate(totals), lengths)


def diversity_jaccard(top: Top, categories: Float32[np.ndarray, "items categories"]) -> float | None:
    """Mean over lists of 1 - mean pairwise Jaccard of 0/1 ``categories``; two items without share nothing.

    ``None`` when no list has two items.
    """
    lengths = np.count_nonzero(top >= 0, axis=1)
    sizes = categories.sum(axis=1)
    totals = []
    for block in _blocks(top, categories.shape[1] + top.shape[1]):
        shown = (block >= 0).astype(np.float32)
        sets = categories[block] * shown[:, :, None]
        size = sizes[block] * shown
        common = sets @ sets.transpose(0, 2, 1)
        union = size[:, :, None] + size[:, None, :] - common
        similar = np.divide(common, union, out=np.zeros(common.shape), where=union > 0, dtype=np.float64)
        totals.append((similar.sum(axis=(1, 2)) - similar.trace(axis1=1, axis2=2)) / 2)
    return _mean_dissimilarity(np.concatenate(totals), lengths)


def _hits(ranks: Ranks, offsets: Offsets, k: int) -> Int64[np.ndarray, " users"]:
    return np.add.reduceat((ranks < k).astype(np.int64), offsets[:-1])


def _exposure(top: Top, n_items: int) -> Int64[np.ndarray, " items"]:
    return np.bincount(top[top >= 0], minlength=n_items)


def _blocks(top: Top, width: int) -> list[Top]:
    """Cut lists into blocks whose ``[block, k, width]`` arrays stay near 32 MB."""
    rows = max(1, (1 << 22) // max(1, top.shape[1] * width))
    return [top[i : i + rows] for i in range(0, len(top), rows)]


def _mean_dissimilarity(pair_sums: PerUser, lengths: Int64[np.ndarray, " users"]) -> float | None:
    pairs = lengths * (lengths - 1) / 2
    whole = pairs > 0
    return float((1.0 - pair_sums[whole] / pairs[whole]).mean()) if whole.any() else None
