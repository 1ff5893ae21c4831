"""A device's part in the private start: its distinct items for popularity, then its second moments.

Unit ``user``: the contribution of a device is scaled to norm 1, so that one device moves the sum by at most 1.
Unit ``interaction``: popularity is the 0/1 history itself, in which one event moves one coordinate by at most 1;
second moments have no useful bound under that unit and are not offered.
"""

import numpy as np
from jaxtyping import Float64, Int64

from fedrecall.client.store import EventStore
from fedrecall.protocol.plan import Unit
from fedrecall.protocol.records import CohortSum

_AT_ONCE = 2048


def popularity_sum(store: EventStore, unit: Unit) -> CohortSum:
    """Return the sum over all devices of ``privacy.mechanisms.popularity_contribution`` (unit ``user``), or of 0/1."""
    users, items = _distinct(store)
    share = np.ones(len(users))
    if unit == "user":
        share /= np.sqrt(np.maximum(np.bincount(users, minlength=store.n_users), 1))[users]
    sums = np.bincount(items, weights=share, minlength=store.n_items)
    return CohortSum(round=0, devices=store.n_users, arrays={"popularity": sums})


def taste_vectors(
    store: EventStore, users: np.ndarray, top: np.ndarray, direction: np.ndarray
) -> Float64[np.ndarray, "users top"]:
    """Return each device's 0/1 history over the ``top`` items without its part along ``direction``, with norm 1.

    Args:
        store: the events.
        users: rows of ``store``.
        top: catalogue numbers of the items that second moments are taken over.
        direction: unit vector over ``top`` that is projected out (released popularity); zeros project nothing out.
    """
    place = np.full(store.n_items, -1, dtype=np.int64)
    place[top] = np.arange(len(top))
    rows = np.zeros((len(users), len(top)))
    for row, user in enumerate(users):
        places = place[store.history(int(user))]
        rows[row, places[places >= 0]] = 1.0
    rows -= np.outer(rows @ direction, direction)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # A history that is nothing but popularity leaves rounding errors, not a taste.
    return np.where(norms > 1e-9, rows / np.maximum(norms, 1e-9), 0.0)


def second_moment_sum(store: EventStore, top: np.ndarray, direction: np.ndarray) -> CohortSum:
    """Return the sum over all devices of y y^T, y being the device's row of ``taste_vectors``."""
    total = np.zeros((len(top), len(top)))
    for begin in range(0, store.n_users, _AT_ONCE):
        part = np.arange(begin, min(begin + _AT_ONCE, store.n_users))
        y = taste_vectors(store, part, top, direction)
        total += y.T @ y
    return CohortSum(round=0, devices=store.n_users, arrays={"second_moments": total})


def _distinct(store: EventStore) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Return the distinct (device, item) pairs."""
    pairs = np.unique(store.users() * np.int64(store.n_items) + store.items)
    return pairs // store.n_items, pairs % store.n_items
