"""Whether the order of events is one of time at all: file order is trusted where there are no times, or equal ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fedrecall.client.events.store import EventStore

LEAST_PAIRS = 30
SURE = 0.95
"""Of events in a random order half go up; a file that was sorted has all of them so, within each user or not."""


def order_of(events: EventStore, item_ids: Sequence[str]) -> dict[str, Any]:
    """Say what orders each user's events, and whether that looks like something else than time.

    Of two events that follow each other the file decides which comes first where there are no times, or equal ones.
    Such pairs are looked at: do nearly all of them go up, or down, by the items' identifiers (as numbers, or as text),
    by their place among all items as the file lists them, or by the events' weights?

    Returns:
        ``by`` (``file`` or ``time, then file``), ``decided_by_file`` (share of pairs), ``looks_like`` (what the order
        is instead of time, ``None`` where nothing tells), ``share`` (of the pairs that go that way).
    """
    users = events.users()
    follows = users[1:] == users[:-1]
    tied = follows if events.times is None else follows & (events.times[1:] == events.times[:-1])
    apart = tied & (events.items[1:] != events.items[:-1])
    pairs = int(follows.sum())
    found: dict[str, Any] = {
        "by": "file" if events.times is None else "time, then file",
        "decided_by_file": float(tied.sum() / pairs) if pairs else 0.0,
        "looks_like": None,
        "share": None,
    }
    for what, ranks, among in _candidates(events, item_ids, users):
        rises = np.diff(ranks.astype(np.float64))
        told = (apart & among if among is not None else apart) & (rises != 0)
        if told.sum() < LEAST_PAIRS:
            continue
        up = float((rises[told] > 0).mean())
        if max(up, 1.0 - up) >= SURE:
            way = "ascending" if up >= SURE else "descending"
            return found | {"looks_like": f"{what}, {way}", "share": max(up, 1.0 - up)}
    return found


def warning_of(order: dict[str, Any], *, decides: bool = True) -> str | None:
    """Say in words what is wrong with an order of ``order_of``; ``None`` where nothing is known to be.

    ``decides``: whether it decides what is held out.
    """
    if order["looks_like"] is None:
        return None
    what = (
        "without times, and their order in the file"
        if order["by"] == "file"
        else (f"of equal times for {order['decided_by_file']:.0%} of neighbours, and their order in the file")
    )
    remedy = f"give {'--time' if order['by'] == 'file' else 'finer times'}, or run with --protocol random"
    if not decides:
        remedy = "what is held out does not depend on it, the model's view of what came last does"
    return (
        f"events are {what} is that of {order['looks_like']} ({order['share']:.0%} of neighbours): it says nothing of"
        f" what came last; {remedy}"
    )


def _candidates(
    events: EventStore, item_ids: Sequence[str], users: Int64[np.ndarray, " events"]
) -> list[tuple[str, np.ndarray, Bool[np.ndarray, " pairs"] | None]]:
    """Return what files are sorted by: its name, each event's rank in it, and the pairs that tell, if not all."""
    numbers = _numbers(item_ids)
    found: list[tuple[str, np.ndarray, Bool[np.ndarray, " pairs"] | None]] = []
    if numbers is not None:
        found.append(("item ids", numbers[events.items], None))
    by_text = np.empty(len(item_ids), dtype=np.int64)
    by_text[np.argsort(np.array(item_ids, dtype=object), kind="stable")] = np.arange(len(item_ids))
    found.append(("item ids as text", by_text[events.items], None))
    # What a user is the first to have is numbered in that user's order, which tells nothing of the file's.
    first = np.full(len(item_ids), np.iinfo(np.int64).max)
    np.minimum.at(first, events.items, users)
    known = first[events.items] < users
    found.append(("the list of items", events.items, known[1:] & known[:-1]))
    found.append(("weights", events.weights, None))
    return found


def _numbers(item_ids: Sequence[str]) -> np.ndarray | None:
    """Return identifiers as numbers, ``None`` where one of them is none."""
    if not all(text.isascii() and text.lstrip("-").isdigit() for text in item_ids):
        return None
    return np.array([float(text) for text in item_ids])
