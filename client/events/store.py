"""The event store: the events of one device or, in a simulation, of many, as columns."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, Int32, Int64

from fedrecall.protocol.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class EventStore:
    """Events grouped by device and in time order within a device (file order breaks ties).

    Attributes:
        offsets: events of device ``u`` are rows ``offsets[u]:offsets[u + 1]``.
        items: index into the catalogue, ``0 <= item < n_items``.
        times: seconds since 1970, or ``None`` when the source has no times (then file order is time order).
        types: index into ``type_names``.
        weights: implicit strength, finite and above 0; used as a loss weight in training only.
        n_items: size of the catalogue.
        type_names: names of the event types.
    """

    offsets: Int64[np.ndarray, "devices_plus_1"]
    items: Int32[np.ndarray, "events"]
    times: Int64[np.ndarray, "events"] | None
    types: Int8[np.ndarray, "events"]
    weights: Float32[np.ndarray, "events"]
    n_items: int
    type_names: tuple[str, ...] = ("event",)

    @classmethod
    def from_columns(
        cls,
        *,
        users: np.ndarray,
        items: np.ndarray,
        n_users: int,
        n_items: int,
        times: np.ndarray | None = None,
        types: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        type_names: tuple[str, ...] = ("event",),
    ) -> "EventStore":
        """Group unordered columns by device; within a device sort by time, stably. All arrays have one length."""
        users = np.asarray(users, dtype=np.int64)
        if len(users) and not (users.min() >= 0 and users.max() < n_users):
            raise DataError(f"a user index lies outside 0..{n_users - 1}")
        items = np.asarray(items, dtype=np.int32)
        if len(items) and not (items.min() >= 0 and items.max() < n_items):
            raise DataError(f"an item index lies outside 0..{n_items - 1}: is it missing from the catalogue?")
        order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
        offsets = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n_users), out=offsets[1:])
        n = len(users)
        types = np.zeros(n, dtype=np.int8) if types is None else np.asarray(types, dtype=np.int8)
        weights = np.ones(n, dtype=np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
        return cls(
            offsets=offsets,
            items=items[order],
            times=None if times is None else np.asarray(times, dtype=np.int64)[order],
            types=types[order],
            weights=weights[order],
            n_items=n_items,
            type_names=type_names,
        )

    @property
    def n_users(self) -> int:
        """Number of devices, those without events included."""
        return len(self.offsets) - 1

    @property
    def n_events(self) -> int:
        """Number of events."""
        return len(self.items)

    def counts(self) -> Int64[np.ndarray, "devices"]:
        """Return the number of events of each device."""
        return np.diff(self.offsets)

    def users(self) -> Int64[np.ndarray, "events"]:
        """Return the device of each event."""
        return np.repeat(np.arange(self.n_users), self.counts())

    def history(self, user: int) -> Int32[np.ndarray, "history"]:
        """Return the items of one device, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def select(self, keep: np.ndarray) -> "EventStore":
        """Return the store with the events where the boolean ``keep`` holds; devices keep their numbers."""
        counts = np.bincount(self.users()[keep], minlength=self.n_users)
        offsets = np.zeros(self.n_users + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return EventStore(
            offsets=offsets,
            items=self.items[keep],
            times=None if self.times is None else self.times[keep],
            types=self.types[keep],
            weights=self.weights[keep],
            n_items=self.n_items,
            type_names=self.type_names,
        )

    def only(self, user: int) -> "EventStore":
        """Return a store of one device: what device ``user`` holds itself."""
        rows = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return EventStore(
            offsets=np.array([0, rows.stop - rows.start], dtype=np.int64),
            items=self.items[rows],
            times=None if self.times is None else self.times[rows],
            types=self.types[rows],
            weights=self.weights[rows],
            n_items=self.n_items,
            type_names=self.type_names,
        )
