"""Each device alone: no server, no other device; its own events and the public catalogue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.data.dataset import Catalogue


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalOnly:
    """Scores items by the cosine of their categories with the categories of the device's events, recent ones more.

    Categories are weighted by their rarity in the catalogue (Spärck Jones 1972). Without categories a device alone
    knows nothing of items that it has not met: all scores are equal, and ties are broken at random.
    """

    items: Float32[np.ndarray, "items categories"]
    decay: float = 0.9
    name: str = "local_only"

    @classmethod
    def fit(cls, catalogue: Catalogue) -> "LocalOnly":
        """Weigh and normalise the catalogue's categories; no event is read."""
        matrix = catalogue.category_matrix()
        rarity = np.log((1.0 + len(catalogue)) / (1.0 + matrix.sum(axis=0)))
        weighted = matrix * rarity.astype(np.float32)
        return cls(items=weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12))

    def score(self, users: Int64[np.ndarray, "batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Score every item for ``users`` (see ``Recaller``)."""
        profiles = np.zeros((len(users), self.items.shape[1]), dtype=np.float32)
        for row, user in enumerate(users):
            history = context.history(int(user))
            ages = np.arange(len(history))[::-1]
            profiles[row] = (self.decay**ages).astype(np.float32) @ self.items[history]
        scores: Float32[np.ndarray, "batch items"] = profiles @ self.items.T
        return scores
