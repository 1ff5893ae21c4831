"""What can be evaluated: anything that scores the catalogue for devices, given what those devices know."""

from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64

from fedrecall.client.events.store import EventStore


class Recaller(Protocol):
    """A fitted model or baseline.

    ``score`` returns one row a user and one column an item of the catalogue; higher is better; finite. It may
    read ``context`` (the events that these devices know now) but no other event. Rows do not depend on the
    batch that they are asked in.
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Score every item for ``users``."""
        ...
