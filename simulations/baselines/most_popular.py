"""The same list for everybody: items by number of training users."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.evaluation.evaluate import item_owners


@dataclass(frozen=True, kw_only=True, eq=False)
class MostPopular:
    """Scores an item by its ``owners``, the number of training users who have it."""

    name: ClassVar[str] = "most_popular"
    owners: Int64[np.ndarray, " items"]

    @classmethod
    def fit(cls, train: EventStore) -> "MostPopular":
        """Count the users of each item."""
        return cls(owners=item_owners(train))

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Return the same row for every user; nothing of ``context`` is read."""
        return np.tile(self.owners.astype(np.float32), (len(users), 1))
