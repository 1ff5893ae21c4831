"""Histories as sparse rows, and how often items are found in one history together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from scipy import sparse

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.evaluation.evaluate import item_owners

MAX_ITEMS = 10_000
"""Linear baselines know at most this many items, the most popular ones: their matrices are items by
items, 400 MB each at that size."""


def weighted_histories(users: Int64[np.ndarray, " batch"], context: EventStore, decay: float = 1.0) -> sparse.csr_array:
    """Return one row a user and one column an item: ``decay ** age`` of the item's latest event, else 0.

    The latest event of a history has age 0, the one before has age 1, and so on.
    """
    recent_first = [context.history(u)[::-1] for u in users]
    counts = np.array([len(h) for h in recent_first], dtype=np.int64)
    starts = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    ages = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    items = np.concatenate([np.zeros(0, dtype=np.int32), *recent_first]).astype(np.int64)
    cells = np.repeat(np.arange(len(users)), counts) * context.n_items + items
    order = np.argsort(cells, kind="stable")  # so that the latest event of a cell comes first
    keep = order[np.diff(cells[order], prepend=-1) != 0]
    rows = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(cells[keep] // context.n_items, minlength=len(users)), out=rows[1:])
    values = (decay ** ages[keep].astype(np.float64)).astype(np.float32)
    return sparse.csr_array((values, items[keep], rows), shape=(len(users), context.n_items))


@dataclass(frozen=True, kw_only=True, eq=False)
class Cooccurrence:
    """Sufficient statistics of the linear baselines.

    Attributes:
        items: the items that these baselines know, ascending: at most ``MAX_ITEMS``, all with events.
        counts: number of training users who have both of two items; each item's own owners on the diagonal.
        owners: number of training users of every item of the catalogue.

    """

    items: Int64[np.ndarray, " known"]
    counts: Float32[np.ndarray, "known known"]
    owners: Int64[np.ndarray, " items"]

    def settings(self) -> dict[str, object]:
        """Say how many items are known, and whether rarer ones were left out to save memory."""
        return {
            "items": len(self.items),
            "left_out_rare_items": int((self.owners > 0).sum()) - len(self.items),
        }


def count_cooccurrence(train: EventStore, max_items: int = MAX_ITEMS) -> Cooccurrence:
    """Count how often items meet in a history, for the ``max_items`` most popular items ever seen."""
    if not train.n_events:
        raise DataError("there are 0 training events: a baseline needs at least one")
    owners = item_owners(train)
    popular = np.argsort(-owners, kind="stable")[:max_items]
    items = np.sort(popular[owners[popular] > 0])
    histories = weighted_histories(np.arange(train.n_users), train)[:, items]
    columns = histories.T.tocsr()
    counts = np.zeros((len(items), len(items)), dtype=np.float32)
    for start in range(0, len(items), 1024):
        counts[start : start + 1024] = (columns[start : start + 1024] @ histories).toarray()
    return Cooccurrence(items=items, counts=counts, owners=owners)


def fill_empty(
    scores: Float32[np.ndarray, "batch items"],
    histories: sparse.csr_array,
    owners: Int64[np.ndarray, " items"],
) -> None:
    """Score by popularity, in place, the rows whose history holds nothing that the baseline knows."""
    scores[np.diff(histories.indptr) == 0] = owners.astype(np.float32)
