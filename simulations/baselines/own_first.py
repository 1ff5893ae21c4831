"""Everybody's own items first: the baseline to beat where people take items again.

Personal frequency, then popularity, is the GP-TopFreq of Li, Jullien, Ariannezhad and de Rijke (A Next Basket
Recommendation Reality Check, 2023), which most published models of repeat buying do not beat; here older events may
also count less.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError
from fedrecall.simulations.evaluation.evaluate import item_owners


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnFirst:
    """Scores a device's own items by 1 plus the sum of ``decay ** age`` of its events with them, all others below 1.

    Attributes:
        owners: number of training users of each item, which orders what a device does not have.
        decay: weight of an event against the next one, in (0, 1]; 1 counts events.

    """

    name: ClassVar[str] = "own_first"
    owners: Int64[np.ndarray, " items"]
    decay: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a decay that makes old events count more."""
        if not 0.0 < self.decay <= 1.0:
            raise ConfigError(f"own_first: decay is {self.decay}: choose it above 0 and at most 1")

    @classmethod
    def fit(cls, train: EventStore, *, decay: float = 1.0) -> "OwnFirst":
        """Count the users of each item."""
        return cls(owners=item_owners(train), decay=decay)

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Score every item for ``users`` (see ``Recaller``)."""
        shares = self.owners / (1.0 + self.owners.max(initial=0))
        scores = np.tile(shares, (len(users), 1))
        for row, user in enumerate(users):
            history = context.history(int(user))
            ages = np.arange(len(history))[::-1].astype(np.float64)
            counts = np.bincount(history, weights=self.decay**ages, minlength=context.n_items)
            own = np.unique(history)
            scores[row, own] = 1.0 + counts[own]
        return scores.astype(np.float32)
