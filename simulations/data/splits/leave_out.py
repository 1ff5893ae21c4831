"""One event of each device held out for the test and one for validation: the last ones, or random ones."""

import numpy as np
from jaxtyping import Bool, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.parts import (
    LEAST_EVENTS,
    Repeats,
    Split,
    check_repeats,
    is_new,
    pairs_of,
    repeated,
    targets_of,
)


def split_loo(dataset: Dataset, *, repeats: Repeats = "mask") -> Split:
    """Leave one out: the last new item of each device is test, the one before is validation.

    Training events are those before the validation target, the test context those before the test target;
    what a device did after its test target is left out and counted. Devices with fewer than 3 different items
    train only. With ``repeats="recommend"`` the last event is test, whether or not its item is new, and devices need
    3 events. Raises DataError when no device can be evaluated.
    """
    return leave_one_out(dataset.events, "loo", repeats=repeats)


def split_random(dataset: Dataset, *, seed: int = 0, repeats: Repeats = "mask") -> Split:
    """Hold out one random item of each device for the test and another for validation, with all events of theirs.

    For events in no order of time. Everything else is training, whenever it was. Devices with fewer than 3 different
    items train only. With ``repeats="recommend"`` one random event each is held out, and other events with its item
    stay. Draws are public: they depend on the seed and the event's number. Raises DataError when no device can be
    evaluated.
    """
    check_repeats(repeats)
    events = dataset.events
    users, able, counted = _able(events, repeats)
    held = able[users] & counted
    drawn = np.where(held, public_rng(seed, "random split").random(events.n_events), -1.0)
    rank = _rank(drawn, events.offsets, users)
    is_test, is_validation = held & (rank == 0), held & (rank == 1)
    hidden_test, hidden_validation = is_test, is_validation
    if repeats == "mask":
        pairs = pairs_of(events)
        hidden_test = np.isin(pairs, pairs[is_test])
        hidden_validation = np.isin(pairs, pairs[is_validation])
    train, context = events.select(~(hidden_test | hidden_validation)), events.select(~hidden_test)
    test = targets_of(events, is_test)
    what = "one item, with all of its events," if repeats == "mask" else "one event"
    things = "different items" if repeats == "mask" else "events"
    return Split(
        protocol="random",
        train=train,
        validation_context=train,
        validation=targets_of(events, is_validation),
        test_context=context,
        test=test,
        repeats=repeats,
        held_out=(
            f"{what} of each person with at least {LEAST_EVENTS} {things}, drawn at random, whenever it was; another"
            " is for validation"
        ),
        notes=_counts(able) | {"order": "none: drawn at random"} | repeated(context, test, repeats),
    )


def leave_one_out(events: EventStore, protocol: str, *, repeats: Repeats = "mask") -> Split:
    """Hold out the last events that count as targets; ``protocol`` is what the split is called."""
    check_repeats(repeats)
    users, evaluated, counted = _able(events, repeats)
    totals = np.bincount(users, weights=counted, minlength=events.n_users).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(totals)])[users]
    nth = np.cumsum(counted) - before
    held = evaluated[users]
    at_validation, at_test = nth >= totals[users] - 1, nth >= totals[users]
    train = events.select(~(held & at_validation))
    is_test = held & counted & at_test
    after = int(np.sum(held & at_test) - is_test.sum())
    order = "file order" if events.times is None else "time, then file order"
    context, test = events.select(~(held & at_test)), targets_of(events, is_test)
    what = "the last item that each person with at least 3 different items met for the first time"
    if repeats == "recommend":
        what = "the last event of each person with at least 3, whether or not its item was met before"
    left_out = f"; {after:,} events after it are left out" if after else ""
    return Split(
        protocol=protocol,
        train=train,
        validation_context=train,
        validation=targets_of(events, held & counted & at_validation & ~at_test),
        test_context=context,
        test=test,
        repeats=repeats,
        held_out=f"{what} (by {order}); the one before it is for validation{left_out}",
        notes=_counts(evaluated) | {"events_after_test": after, "order": order} | repeated(context, test, repeats),
    )


def _able(
    events: EventStore, repeats: Repeats
) -> tuple[Int64[np.ndarray, " events"], Bool[np.ndarray, " devices"], Bool[np.ndarray, " events"]]:
    """Return each event's device, which devices have enough events that can be targets, and which events can be."""
    users = events.users()
    counted = is_new(events) if repeats == "mask" else np.ones(events.n_events, dtype=bool)
    able = np.bincount(users, weights=counted, minlength=events.n_users) >= LEAST_EVENTS
    if not able.any():
        what = "different items" if repeats == "mask" else "events"
        raise DataError(
            f"no device has {LEAST_EVENTS} {what} or more, which leave-one-out needs: bring longer"
            " histories, or choose --protocol temporal"
        )
    return users, able, counted


def _rank(
    values: np.ndarray, offsets: Int64[np.ndarray, "devices_plus_1"], users: Int64[np.ndarray, " events"]
) -> Int64[np.ndarray, " events"]:
    """Return the place of each value among its device's, 0 for the largest."""
    order = np.lexsort((-values, users))
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values)) - offsets[users[order]]
    return rank


def _counts(evaluated: Bool[np.ndarray, " devices"]) -> dict[str, object]:
    return {"evaluated_users": int(evaluated.sum()), "train_only_users": int((~evaluated).sum())}
