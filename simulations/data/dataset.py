"""A data set: the public catalogue, the events of many simulated devices, and how they were cleaned."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

from fedrecall.client.events.store import EventStore


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """The public items.

    Attributes:
        ids: identifier of each item as the source spells it; row ``i`` of every item array is ``ids[i]``.
        titles: readable titles, empty strings where unknown.
        categories: the categories of each item, possibly none.
        source: ``file`` (the item file), ``rated`` (only items with events: a benchmark convention) or
            ``k-core`` (a filter on private counts: a benchmark convention).
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    source: str

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def category_names(self) -> tuple[str, ...]:
        """Return all categories, sorted."""
        return tuple(sorted({c for row in self.categories for c in row}))

    def category_matrix(self) -> Float32[np.ndarray, "items categories"]:
        """Return a 0/1 matrix of items by ``category_names``."""
        names = {c: j for j, c in enumerate(self.category_names())}
        matrix = np.zeros((len(self), len(names)), dtype=np.float32)
        for i, row in enumerate(self.categories):
            for c in row:
                matrix[i, names[c]] = 1.0
        return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A cleaned data set.

    Attributes:
        name: its name in ``fedrecall data list``.
        catalogue: the public items.
        user_ids: identifier of each user as the source spells it. Private: never written outside ``private/``.
        events: the events of all users.
        groups: group label of each user by attribute (``age``, ``gender``), for per-group metrics.
        cleaning: what cleaning dropped and why, as plain JSON data.
        sha256: hash of the source files' bytes, in hex.
        parts: of each event, 0 training, 1 validation, 2 test, where the files gave them; else ``None``.
    """

    name: str
    catalogue: Catalogue
    user_ids: tuple[str, ...]
    events: EventStore
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cleaning: dict[str, Any] = field(default_factory=dict)
    sha256: str
    parts: Int8[np.ndarray, " events"] | None = None
