"""Histories to ask about: of the run's devices the most and the least active, and made-up ones of every kind.

A bound that fails does so for some histories: the empty one, those longer than a window, than the catalogue, than any
list in the program; those of one item, or of one type.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from fedrecall.client.events.store import EventStore

_REAL = 4
_LONGEST = 1300
"""Events of the longest history at least: twice as many as any device compares."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probes:
    """Devices that checks ask.

    Attributes:
        store: of the run, with made-up devices after its own.
        devices: those to ask, in order: the run's most active one first, then its least active one that holds events,
            others at random, then the made-up ones from the shortest to the longest, and special ones.
        real: how many of them are the run's.
    """

    store: EventStore
    devices: Int64[np.ndarray, " devices"]
    real: int

    def alone(self) -> EventStore:
        """Return a store of the asked devices and no others, numbered from 0."""
        rows = [np.arange(self.store.offsets[d], self.store.offsets[d + 1]) for d in self.devices]
        keep = np.concatenate(rows)
        return EventStore(
            offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
            items=self.store.items[keep],
            times=None if self.store.times is None else self.store.times[keep],
            types=self.store.types[keep],
            weights=self.store.weights[keep],
            n_items=self.store.n_items,
            type_names=self.store.type_names,
        )


def probes(store: EventStore, *, window: int, rng: np.random.Generator) -> Probes:
    """Return devices to ask, of ``store`` and made up; ``window`` is the model's."""
    counts = store.counts()
    holding = np.flatnonzero(counts > 0)
    real = [int(np.argmax(counts))]
    if holding.size:
        real.append(int(holding[np.argmin(counts[holding])]))
        real += rng.permutation(holding)[:_REAL].tolist()
    real = list(dict.fromkeys(real))
    histories = _made_up(store, window, rng)
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories]) + store.n_users
    items, size = np.concatenate(histories), len(users)
    kinds = len(store.type_names)
    # Some devices have events of one type, the first or the last; others of all types.
    types = np.choose(users % 3, [np.zeros(size), np.full(size, kinds - 1), rng.integers(kinds, size=size)])
    times = None
    if store.times is not None:
        own = store.times.min(initial=0) + np.cumsum(rng.choice([0, 1, 3600, 10**6], size))
        times = np.concatenate([store.times, own])
    whole = EventStore.from_columns(
        users=np.concatenate([store.users(), users]),
        items=np.concatenate([store.items, items]),
        n_users=store.n_users + len(histories),
        n_items=store.n_items,
        times=times,
        types=np.concatenate([store.types, types.astype(np.int8)]),
        # Every fourth device's events are stronger than one, each by itself.
        weights=np.concatenate([store.weights, np.where(users % 4 == 3, 1 + np.arange(size) % 5, 1)]),
        type_names=store.type_names,
    )
    devices = np.array([*real, *range(store.n_users, whole.n_users)], dtype=np.int64)
    return Probes(store=whole, devices=devices, real=len(real))


def _made_up(store: EventStore, window: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the items of made-up histories, oldest first."""
    ranked = np.argsort(-np.bincount(store.items, minlength=store.n_items), kind="stable")
    catalogue = store.n_items
    longest = max(_LONGEST, 3 * catalogue, 2 * int(store.counts().max(initial=0)))
    lengths = {0, 1, 2, 3, 10, window, window + 1, 4 * window, 101, catalogue, catalogue + 1, longest}
    lengths |= {round(2 ** (step / 2)) for step in range(4, 16)}
    # The most popular items first, each once while there are any, then again and again.
    histories = [np.resize(ranked, length) for length in sorted(lengths)]
    histories += [
        ranked[::-1],
        rng.permutation(catalogue),
        rng.integers(catalogue, size=longest),
        np.repeat(ranked[:1], 4 * window),
        np.tile(ranked[:2], 50),
        np.repeat(ranked[:2], 50),
        # Each of the rarest items twice.
        np.repeat(ranked[::-1][:8], 2),
        # One item once among many of another: the one event that tells whether long histories count for more.
        np.append(np.repeat(ranked[:1], longest), ranked[1 % catalogue]),
    ]
    return [history.astype(np.int64) for history in histories]
