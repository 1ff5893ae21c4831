"""Small data sets made by hand, and what a split of them holds, as plain lists."""

from collections.abc import Sequence

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.data.dataset import Catalogue, Dataset
from fedrecall.simulations.data.splits import Targets

N_ITEMS = 9


def dataset(
    histories: Sequence[Sequence[tuple[int, int]]],
    *,
    timed: bool = True,
    source: str = "file",
    parts: Sequence[int] | None = None,
) -> Dataset:
    """A data set of (item, time) histories, one a user; ``parts`` of the events in their order by user and time."""
    flat = [(u, i, t) for u, history in enumerate(histories) for i, t in history]
    users, items, times = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    return Dataset(
        name="hand made",
        catalogue=Catalogue(
            ids=tuple(map(str, range(N_ITEMS))),
            titles=("",) * N_ITEMS,
            categories=((),) * N_ITEMS,
            source=source,
        ),
        user_ids=tuple(map(str, range(len(histories)))),
        events=EventStore.from_columns(
            users=users, items=items, times=times if timed else None, n_users=len(histories), n_items=N_ITEMS
        ),
        sha256="",
        parts=None if parts is None else np.array(parts, dtype=np.int8),
    )


def of(targets: Targets) -> dict[int, list[int]]:
    return {
        int(u): targets.items[targets.offsets[j] : targets.offsets[j + 1]].tolist() for j, u in enumerate(targets.users)
    }


def histories(store: EventStore) -> list[list[int]]:
    return [store.history(u).tolist() for u in range(store.n_users)]
