"""Item-based nearest neighbours (Deshpande and Karypis 2004) with shrunk cosine similarity."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from scipy import sparse

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError
from fedrecall.simulations.baselines.histories import (
    Cooccurrence,
    count_cooccurrence,
    fill_empty,
    weighted_histories,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemKNN:
    """Scores an item by the similarities of its nearest neighbours that are in the device's history.

    Attributes:
        items: the items that the neighbourhoods know; all others score 0.
        similarities: row = item of the history, column = item scored; a column holds its nearest neighbours.
        owners: popularity, which scores for a history without any known item.

    """

    name: ClassVar[str] = "item_knn"
    items: Int64[np.ndarray, " known"]
    similarities: sparse.csr_array
    owners: Int64[np.ndarray, " items"]

    @classmethod
    def fit(cls, train: EventStore, *, neighbours: int, shrinkage: float) -> "ItemKNN":
        """Keep for each item its ``neighbours`` most similar; cosine = both / (sqrt(a b) + ``shrinkage``)."""
        return cls.from_cooccurrence(count_cooccurrence(train), neighbours=neighbours, shrinkage=shrinkage)

    @classmethod
    def from_cooccurrence(cls, together: Cooccurrence, *, neighbours: int, shrinkage: float) -> "ItemKNN":
        """Do as ``fit``, from statistics that several settings share."""
        if neighbours < 1 or not 0.0 <= shrinkage < float("inf"):
            raise ConfigError(
                f"item_knn: neighbours is {neighbours} and shrinkage {shrinkage}: choose neighbours of at "
                "least 1 and a finite shrinkage of at least 0"
            )
        n_known = len(together.items)
        norms = np.sqrt(np.diag(together.counts))
        rows, columns, values = [], [], []
        for start in range(0, n_known, 1024):
            both = together.counts[start : start + 1024]
            cosine = both / (norms[start : start + 1024, None] * norms[None, :] + np.float32(shrinkage))
            here = np.arange(len(both))
            cosine[here, start + here] = 0.0
            best = torch.topk(torch.from_numpy(cosine), min(neighbours, n_known))
            rows.append(best.indices.numpy().ravel())
            columns.append(np.repeat(start + here, best.indices.shape[1]))
            values.append(best.values.numpy().ravel())
        cells = (np.concatenate(rows), np.concatenate(columns))
        similarities = sparse.csr_array((np.concatenate(values), cells), shape=(n_known, n_known))
        similarities.eliminate_zeros()
        return cls(items=together.items, similarities=similarities, owners=together.owners)

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Sum the similarities of every item to the distinct items of each history."""
        histories = weighted_histories(users, context)[:, self.items]
        scores = np.zeros((len(users), len(self.owners)), dtype=np.float32)
        scores[:, self.items] = (histories @ self.similarities).toarray()
        fill_empty(scores, histories, self.owners)
        return scores
