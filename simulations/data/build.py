"""From clean events and public items to a data set: which catalogue, and the k-core filter."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int8, Int64

from fedrecall.client.events.events import MICROS, Events
from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.dataset import Catalogue, Dataset
from fedrecall.simulations.data.items import ItemFile

CatalogueChoice = Literal["file", "rated"]


def build_dataset(
    *,
    name: str,
    events: Events,
    items: ItemFile | None,
    catalogue: CatalogueChoice,
    k_core: int,
    groups: Mapping[str, Mapping[str, str]],
    sha256: str,
) -> Dataset:
    """Number users by first appearance and choose the catalogue.

    The catalogue is the item file (``file``, in its order), or the items that occur (``rated``, by first
    appearance: always so without an item file), or those that survive the k-core filter (``k-core``). Without an
    item file titles and categories are those that the events gave. With an
    item file, ``events`` must have been cleaned with its ids as ``known_items``. ``groups`` maps an attribute
    to user id to label; users without one are ``unknown``.
    """
    if catalogue not in ("file", "rated"):
        raise DataError(f"catalogue is {catalogue!r}: choose 'file' or 'rated'")
    if k_core < 0:
        raise DataError(f"k_core is {k_core}: choose 0 (no filter) or more")
    kept = k_core_events(events.users, events.items, k_core)
    if not kept.any():
        raise DataError(f"no event survives the {k_core}-core filter: choose a smaller k_core")
    users, user_rows = _renumber(events.users[kept])
    item_codes = events.items[kept]
    if k_core or catalogue == "rated" or items is None:
        item_codes, item_rows = _renumber(item_codes)
        source = "k-core" if k_core else "rated"
    else:
        item_rows, source = np.arange(len(items.ids)), "file"
    public = items if items is not None else events
    titles = public.titles or ("",) * len(events.item_ids)
    categories = public.categories or ((),) * len(events.item_ids)
    user_ids = tuple(events.user_ids[u] for u in user_rows)
    cleaning = dict(events.report)
    if items is not None:
        cleaning["items"] = items.report
    if k_core:
        cleaning["k_core"] = {
            "k": k_core,
            "events_dropped": int(np.sum(~kept)),
            "users_dropped": len(np.unique(events.users)) - len(user_rows),
            "items_dropped": len(np.unique(events.items)) - len(item_rows),
        }
    columns: dict[str, Any] = {
        "users": users,
        "items": item_codes,
        "n_users": len(user_rows),
        "n_items": len(item_rows),
        "times": None if events.times is None else events.times[kept] // MICROS,
    }
    return Dataset(
        name=name,
        catalogue=Catalogue(
            ids=tuple(events.item_ids[i] for i in item_rows),
            titles=tuple(titles[i] for i in item_rows),
            categories=tuple(categories[i] for i in item_rows),
            source=source,
        ),
        user_ids=user_ids,
        events=EventStore.from_columns(
            **columns, types=events.types[kept], weights=events.weights[kept], type_names=events.type_names
        ),
        parts=_sorted_parts(events, kept, columns),
        groups={key: tuple(by_user.get(u, "unknown") for u in user_ids) for key, by_user in groups.items()},
        cleaning=cleaning,
        sha256=sha256,
    )


def _sorted_parts(
    events: Events, kept: Bool[np.ndarray, " events"], columns: Mapping[str, Any]
) -> Int8[np.ndarray, " kept"] | None:
    """Return the part of each kept event in the order of a store of ``columns``; ``None`` where no parts were given."""
    if events.parts is None or not events.parts.any():
        return None
    # A store sorts its columns alike, whatever they hold.
    return EventStore.from_columns(**columns, types=events.parts[kept]).types


def k_core_events(
    users: Int64[np.ndarray, " events"], items: Int64[np.ndarray, " events"], k: int
) -> Bool[np.ndarray, " events"]:
    """Return the events of the largest subset where every user has k items and every item has k users.

    Repeated events of one user and item count once. The filter reads private counts: a benchmark convention.
    """
    keep = np.ones(len(users), dtype=bool)
    if k == 0 or len(users) == 0:
        return keep
    width = int(items.max()) + 1
    _, first, pair = np.unique(users * width + items, return_index=True, return_inverse=True)
    pair_users, pair_items = users[first], items[first]
    alive = np.ones(len(first), dtype=bool)
    while True:
        per_user = np.bincount(pair_users[alive], minlength=int(users.max()) + 1)
        per_item = np.bincount(pair_items[alive], minlength=width)
        survives = alive & (per_user[pair_users] >= k) & (per_item[pair_items] >= k)
        if survives.sum() == alive.sum():
            return np.asarray(alive[pair])
        alive = survives


def _renumber(
    codes: Int64[np.ndarray, " events"],
) -> tuple[Int64[np.ndarray, " events"], Int64[np.ndarray, " present"]]:
    """Number the codes that occur by first appearance; returns the new codes and the old code of each."""
    order, places = np.unique(codes, return_index=True)
    present = order[np.argsort(places)]
    table = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    table[present] = np.arange(len(present))
    return table[codes], present
