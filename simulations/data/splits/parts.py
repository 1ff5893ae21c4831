"""What a split is made of, and what every protocol needs.

Two ways with repeats. ``mask``: what a device knows is left out of its ranking, so only an item that is new to it can
be a target: where items repeat, an event counts as one at the item's first occurrence. ``recommend``: what people buy
or play again is recommended again, so every event can be a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError

Repeats = Literal["mask", "recommend"]
REPEATS: Sequence[Repeats] = ("mask", "recommend")
LEAST_EVENTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The relevant items of some users, grouped: ``items[offsets[j]:offsets[j + 1]]`` belong to ``users[j]``.

    ``candidates``, where given, is ``[len(users), n]``: only these items are ranked (sampled protocols).
    """

    users: Int64[np.ndarray, " evaluated"]
    offsets: Int64[np.ndarray, " evaluated_plus_1"]
    items: Int32[np.ndarray, " targets"]
    candidates: Int32[np.ndarray, "evaluated n"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One split. A context is what a device knows when it asks; with ``mask`` its items are left out of the ranking.

    Attributes:
        protocol: a name of ``PROTOCOLS``.
        train: the events that anything may be fitted on.
        validation_context: events known at validation time (for ``loo``: ``train``).
        validation: what the device did next.
        test_context: events known at test time (for ``loo``: training and validation events).
        test: what the device did next. Never read while training or choosing.
        repeats: whether what a device knows can be recommended to it, and be a target.
        held_out: exactly which events the targets of the test are, in words: ``Hidden were ...``.
        notes: conventions and counts for the report, as plain JSON data.
    """

    protocol: str
    train: EventStore
    validation_context: EventStore
    validation: Targets
    test_context: EventStore
    test: Targets
    repeats: Repeats = "mask"
    held_out: str = ""
    notes: dict[str, object]


def check_repeats(repeats: str) -> None:
    """Raise ConfigError unless ``repeats`` is one of ``REPEATS``."""
    if repeats not in REPEATS:
        raise ConfigError(f"repeats is {repeats!r}: choose one of {', '.join(REPEATS)}")


def of_new_users(context: EventStore, targets: Targets) -> Bool[np.ndarray, " evaluated"]:
    """Return which evaluated users have no event in ``context``."""
    return np.asarray(context.counts()[targets.users] == 0)


def of_new_items(train: EventStore, targets: Targets) -> Bool[np.ndarray, " targets"]:
    """Return which targets are items without training events."""
    return np.asarray(np.bincount(train.items, minlength=train.n_items)[targets.items] == 0)


def is_new(events: EventStore) -> Bool[np.ndarray, " events"]:
    """Return which events are the first of their device with their item."""
    new = np.zeros(events.n_events, dtype=bool)
    new[np.unique(pairs_of(events), return_index=True)[1]] = True
    return new


def pairs_of(events: EventStore) -> Int64[np.ndarray, " events"]:
    """Return one number for the device and the item of each event."""
    return np.asarray(events.users() * events.n_items + events.items)


def targets_of(events: EventStore, chosen: Bool[np.ndarray, " events"]) -> Targets:
    """Group the chosen events by device."""
    users, counts = np.unique(events.users()[chosen], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Targets(users=users, offsets=offsets, items=events.items[chosen])


def novelty(train: EventStore, context: EventStore, targets: Targets) -> dict[str, int]:
    """Count evaluated users and targets, and the new ones among them."""
    new_users, new_items = of_new_users(context, targets), of_new_items(train, targets)
    per_user = np.diff(targets.offsets)
    return {
        "users": len(targets.users),
        "targets": len(targets.items),
        "new_users": int(new_users.sum()),
        "targets_of_new_users": int(per_user[new_users].sum()),
        "new_items": len(np.unique(targets.items[new_items])),
        "targets_of_new_items": int(new_items.sum()),
    }


def of_known_items(context: EventStore, targets: Targets) -> Bool[np.ndarray, " targets"]:
    """Return which targets are items that the device had before: repeats."""
    rows = np.repeat(targets.users, np.diff(targets.offsets)) * context.n_items + targets.items
    return np.asarray(np.isin(rows, pairs_of(context)))


def repeated(context: EventStore, targets: Targets, repeats: Repeats) -> dict[str, object]:
    """Return the note of how many targets of the test are repeats, where they can be."""
    return {"test_items_known_before": int(of_known_items(context, targets).sum())} if repeats == "recommend" else {}
