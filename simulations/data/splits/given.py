"""The parts that the user's own files make: training, validation and test as they were given."""

import numpy as np
from jaxtyping import Int8

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.parts import (
    Repeats,
    Split,
    check_repeats,
    novelty,
    pairs_of,
    repeated,
    targets_of,
)

TRAIN, VALIDATION, TEST = 0, 1, 2
_NAMES = ("training", "validation", "test")


def split_given(dataset: Dataset, *, repeats: Repeats = "mask") -> Split:
    """Take the parts that the import was given (``fedrecall data import ... --validation FILE --test FILE``).

    A device knows its training events at validation time, and those of validation too at test time. With
    ``repeats="mask"`` an event of a later part whose item the device knows is no target, and is counted. Raises
    DataError when no parts were given, when one has no target, or when one, without times, holds nothing new.
    """
    check_repeats(repeats)
    events, parts = dataset.events, dataset.parts
    if parts is None:
        raise DataError(
            f"{dataset.name} was not given in parts: import it with --validation FILE and --test FILE, or choose"
            " another --protocol"
        )
    pairs = pairs_of(events)
    found, known = {}, {}
    for part in (VALIDATION, TEST):
        chosen = parts == part
        again = chosen & np.isin(pairs, pairs[parts < part])
        known[part] = int(again.sum())
        same = events.times is None and known[part] == int(chosen.sum()) > 0
        if repeats == "recommend" and same:
            raise DataError(
                f"all {known[part]:,} events of the {_NAMES[part]} part of {dataset.name} are in earlier parts too, and"
                " without times nothing tells the two apart: is it the same file?"
            )
        found[part] = targets_of(events, chosen & ~again if repeats == "mask" else chosen)
        if not len(found[part].items):
            raise DataError(
                f"the {_NAMES[part]} part of {dataset.name} has no target ({known[part]:,} of"
                f" {int(chosen.sum()):,} events are of items that their user had before): give another file, or"
                " -c data.repeats=recommend where people take items again"
            )
    train, context = events.select(parts == TRAIN), events.select(parts < TEST)
    masked = f", but for {known[TEST]:,} of items that their user had before" * (repeats == "mask" and known[TEST] > 0)
    early = _earlier(events, parts)
    late = f"; {early:,} of the test are earlier than their user's last training event" if early else ""
    return Split(
        protocol="given",
        train=train,
        validation_context=train,
        validation=found[VALIDATION],
        test_context=context,
        test=found[TEST],
        repeats=repeats,
        held_out=f"the {int((parts == TEST).sum()):,} events of the given test file{masked}; those of the given"
        f" validation file are for validation{late}",
        notes={
            "validation_events_known_before": known[VALIDATION],
            "test_events_known_before": known[TEST],
            "test_events_earlier_than_training": early,
            "validation": novelty(train, train, found[VALIDATION]),
            "test": novelty(train, context, found[TEST]),
        }
        | repeated(context, found[TEST], repeats),
    )


def _earlier(events: EventStore, parts: Int8[np.ndarray, " events"]) -> int:
    """Count the test events that are earlier than the last training event of their user."""
    if events.times is None:
        return 0
    users = events.users()
    last = np.full(events.n_users, np.iinfo(np.int64).min)
    np.maximum.at(last, users[parts == TRAIN], events.times[parts == TRAIN])
    return int(((parts == TEST) & (events.times < last[users])).sum())
