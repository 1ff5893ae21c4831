"""The parts that the user's own files make: training, validation and test as they were given."""

import numpy as np

from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.parts import Repeats, Split, check_repeats, novelty, pairs_of, targets_of

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_given(dataset: Dataset, *, repeats: Repeats = "mask") -> Split:
    """Take the parts that the import was given (``fedrecall data import ... --validation FILE --test FILE``).

    A device knows its training events at validation time, and those of validation too at test time. With
    ``repeats="mask"`` an event of a later part whose item the device knows is no target, and is counted. Raises
    DataError when no parts were given, or when one has no target.
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
        found[part] = targets_of(events, chosen & ~again if repeats == "mask" else chosen)
        if not len(found[part].items):
            raise DataError(
                f"the {('validation', 'test')[part - 1]} part of {dataset.name} has no target ({known[part]:,} of"
                f" {int(chosen.sum()):,} events are of items that their user had before): give another file, or"
                " -c data.repeats=recommend where people take items again"
            )
    train, context = events.select(parts == TRAIN), events.select(parts < TEST)
    masked = f", but for {known[TEST]:,} of items that their user had before" * (repeats == "mask" and known[TEST] > 0)
    return Split(
        protocol="given",
        train=train,
        validation_context=train,
        validation=found[VALIDATION],
        test_context=context,
        test=found[TEST],
        repeats=repeats,
        held_out=f"the {int((parts == TEST).sum()):,} events of the given test file{masked}; those of the given"
        " validation file are for validation",
        notes={
            "validation_events_known_before": known[VALIDATION],
            "test_events_known_before": known[TEST],
            "validation": novelty(train, train, found[VALIDATION]),
            "test": novelty(train, context, found[TEST]),
        },
    )
