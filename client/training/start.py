"""A device's part in the private start: its distinct items for popularity, then which of them stood close together.

Unit ``user``: the contribution of a device is scaled to norm 1, so that one device moves the sum by at most 1. In
popularity its latest items weigh most: what people take up now says more about what they take up next.
Unit ``interaction``: popularity is the 0/1 history itself, in which one event moves one coordinate by at most 1;
second moments have no useful bound under that unit and are not offered.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.allow_list import SCALE
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan, Unit
from fedrecall.protocol.records import Arrays, CohortSum, Comparison
from fedrecall.protocol.statistics import (
    NEGLIGIBLE,
    POPULARITY,
    SECOND_MOMENTS,
    Popularity,
    SecondMoments,
    Statistic,
    comparison_of,
    projected,
    scale_of,
)

_CODES = 127
"""Largest code of a number that is sent in a byte."""

_LATEST = 600
"""Items of a device that are compared: bounds its work."""

_ALWAYS, _LATELY = 0.3, 3.0
"""What an old item weighs in popularity, beside 1 for the latest, and over how many items the rest falls to 1 / e."""


def popularity(history: np.ndarray, n_items: int) -> Float64[np.ndarray, "items"]:
    """Return what one device contributes under unit ``user``: its distinct items, weighted, with L2 norm 1 at most.

    An item of age a, in distinct items since it was met last, weighs ``0.3 + 0.7 exp(-a / 3)``, rounded to 127 levels.
    The device sends the levels as bytes and one scale. Sensitivity 1 under add/remove of a device, sqrt(2) under
    replacement: no entry is negative. An empty history contributes zeros.
    """
    items, codes = _popularity_codes(history, np.array([0, len(history)]), n_items)[1:]
    return np.bincount(items, weights=codes, minlength=n_items) * np.float64(_scale(codes))


def popularity_sum(store: EventStore, unit: Unit) -> CohortSum:
    """Return the sum over all devices of ``popularity`` (unit ``user``), or of 0/1: there no weight may follow others.

    Under unit ``interaction`` an event more would make all before it older, and move more than its own coordinate.
    """
    users, items, codes = _popularity_codes(store.items, store.offsets, store.n_items)
    shares = np.ones(len(users))
    if unit == "user":
        squares = np.bincount(users, weights=codes**2, minlength=store.n_users)
        shares = codes * scale_of(np.sqrt(squares))[users].astype(np.float64)
    sums = np.bincount(items, weights=shares, minlength=store.n_items)
    return CohortSum(round=0, devices=store.n_users, arrays={"popularity": sums})


def statistic_of(name: object, arrays: Arrays, plan: Plan, n_items: int) -> Statistic:
    """Return the statistic that an ask of the start is for.

    Raises:
        PlanError: the plan has no such mechanism, or is one under which no device sends it; ``arrays`` are not its.
    """
    if name not in (POPULARITY, SECOND_MOMENTS):
        raise PlanError(f"the ask is for {str(name)[:100]!r}: this device answers rounds and the private start")
    if (plan.unit, plan.trust) != ("user", "central"):
        raise PlanError(f"the start of unit {plan.unit!r} and trust {plan.trust!r} runs in simulations alone")
    # The noise is sized by the clip, and contributions have norm 1: the ledger would count too little.
    if plan.mechanism(name).clip_norm not in (None, 1.0):
        raise PlanError(f"{name}.clip_norm is {plan.mechanism(name).clip_norm}: contributions have norm 1; make it 1")
    if name == SECOND_MOMENTS:
        return SecondMoments(comparison=comparison_of(arrays, n_items))
    if arrays:
        raise PlanError("the ask for popularity brings arrays: refused")
    return Popularity(n_items=n_items)


def codes_of(statistic: Statistic, store: EventStore) -> dict[str, np.ndarray]:
    """Return what the one device of ``store`` sends for ``statistic``."""
    if isinstance(statistic, SecondMoments):
        return _second_moment_codes(store.history(0), statistic)
    items, codes = _popularity_codes(store.items, store.offsets, store.n_items)[1:]
    sent = np.zeros(store.n_items, dtype=np.uint8)
    sent[items] = codes
    return {statistic.name: sent, SCALE: _scale(codes)}


def second_moments(history: np.ndarray, comparison: Comparison) -> Float64[np.ndarray, "top top"]:
    """Return what one device contributes: P K P, scaled to Frobenius norm 1; zeros for fewer than two items.

    K compares the device's items, each at its latest place: ``exp(-(places apart - 1) / reach)`` times both weights,
    rounded to 127 levels, and 0 for an item with itself. The device sends K as bytes and one scale; P projects
    ``comparison.direction`` out, which popularity alone would fill.
    """
    size = len(comparison.top)
    total = np.zeros((size, size))
    places, codes, scale = _block(history, _places(comparison, int(comparison.top.max(initial=-1)) + 1), comparison)
    total[np.ix_(places, places)] += codes * np.float64(scale)
    return projected(total, comparison.direction)


def second_moment_sum(store: EventStore, comparison: Comparison) -> CohortSum:
    """Return the sum over all devices of ``second_moments``; the projection, being linear, is taken once."""
    size = len(comparison.top)
    total, place = np.zeros((size, size)), _places(comparison, store.n_items)
    for user in range(store.n_users):
        places, codes, scale = _block(store.history(user), place, comparison)
        total[np.ix_(places, places)] += codes * np.float64(scale)
    moments = projected(total, comparison.direction)
    return CohortSum(round=0, devices=store.n_users, arrays={"second_moments": moments})


def _second_moment_codes(history: np.ndarray, statistic: SecondMoments) -> dict[str, np.ndarray]:
    """Return what one device sends for ``second_moments``: a byte a pair of compared items, and one scale."""
    comparison = statistic.comparison
    size = len(comparison.top)
    total = np.zeros((size, size))
    places, codes, scale = _block(history, _places(comparison, int(comparison.top.max(initial=-1)) + 1), comparison)
    total[np.ix_(places, places)] = codes
    return {statistic.name: statistic.codes(total), SCALE: np.asarray(scale)}


def _places(comparison: Comparison, n_items: int) -> Int64[np.ndarray, "items"]:
    place = np.full(n_items, -1, dtype=np.int64)
    place[comparison.top] = np.arange(len(comparison.top))
    return place


def _block(
    history: np.ndarray, place: np.ndarray, comparison: Comparison
) -> tuple[Int64[np.ndarray, "own"], Float64[np.ndarray, "own own"], Float32[np.ndarray, ""]]:
    """Return a device's places among the top items, its K over them in whole numbers, and the scale of P K P."""
    places = place[history[history < len(place)]]
    places = places[places >= 0][::-1]
    latest = np.sort(np.unique(places, return_index=True)[1])[:_LATEST]
    own = places[latest]
    weights, along = comparison.weights[own], comparison.direction[own]
    steps = np.arange(len(own))
    block = np.exp((1.0 - np.abs(steps[:, None] - steps)) / comparison.reach) * np.outer(weights, weights)
    np.fill_diagonal(block, 0.0)
    # A byte a number is sent, and one scale: what is scaled to norm 1 is what they say.
    largest = float(block.max(initial=0.0))
    block = np.rint(block * (_CODES / largest)) if largest > 0 else block
    # |P K P|^2 = tr(K K) - 2 |K d|^2 + (d K d)^2, without the matrix over all items.
    crossed = block @ along
    square = float(np.sum(block * block) - 2.0 * crossed @ crossed + (along @ crossed) ** 2)
    # What is hardly anything but popularity leaves rounding errors, not a taste: scaled up, they would break the norm.
    if square <= NEGLIGIBLE * float(np.sum(block * block)):
        return own[:0], block[:0, :0], np.zeros((), dtype=np.float32)
    return own, block, np.asarray(scale_of(np.asarray(np.sqrt(square))))


def _popularity_codes(
    events: np.ndarray, offsets: Int64[np.ndarray, "devices_plus_1"], n_items: int
) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"], Float64[np.ndarray, "pairs"]]:
    """Return the distinct (device, item) pairs of ``events``, grouped by device, and each one's code of 38 to 127."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = users * np.int64(n_items) + events
    # Where each pair occurs last, in the order of events.
    latest = np.sort(len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1])
    owners = users[latest]
    ages = np.cumsum(np.bincount(owners, minlength=len(offsets) - 1))[owners] - 1 - np.arange(len(latest))
    weights = _ALWAYS + (1.0 - _ALWAYS) * np.exp(-ages / _LATELY)
    return owners, pairs[latest] % n_items, np.rint(_CODES * weights)


def _scale(codes: Float64[np.ndarray, "own"]) -> Float32[np.ndarray, ""]:
    return np.asarray(scale_of(np.asarray(np.sqrt(np.sum(codes**2)))))
