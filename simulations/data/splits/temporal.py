"""All devices cut at the same two moments."""

from datetime import UTC, datetime

import numpy as np

from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.parts import Repeats, Split, check_repeats, is_new, novelty, repeated, targets_of


def split_temporal(
    dataset: Dataset, *, test_share: float = 0.1, validation_share: float = 0.1, repeats: Repeats = "mask"
) -> Split:
    """Cut all devices at the same two moments, so that about these shares of the events lie behind them.

    Targets are the new items of a device in its validation or test time, with ``repeats="recommend"`` all of its
    items there; devices with none are not evaluated. ``notes`` counts devices without earlier events and items without
    training events; ``of_new_users`` and ``of_new_items`` find them. Raises DataError without times, or when a part is
    empty.
    """
    check_repeats(repeats)
    for name, share in (("test_share", test_share), ("validation_share", validation_share)):
        if not 0.0 < share < 0.5:
            raise ConfigError(f"{name} is {share}: choose it between 0 and 0.5")
    events = dataset.events
    if events.times is None or not events.n_events:
        raise DataError(
            f"{dataset.name} has no times, which a temporal split needs: choose --protocol loo, or import the"
            " data again with --time"
        )
    ordered = np.sort(events.times)
    test_cut = ordered[int(len(ordered) * (1.0 - test_share))]
    validation_cut = ordered[int(len(ordered) * (1.0 - test_share - validation_share))]
    counted = is_new(events) if repeats == "mask" else np.ones(events.n_events, dtype=bool)
    train = events.select(events.times < validation_cut)
    context = events.select(events.times < test_cut)
    validation = targets_of(events, counted & (events.times >= validation_cut) & (events.times < test_cut))
    test = targets_of(events, counted & (events.times >= test_cut))
    if not (train.n_events and len(validation.items) and len(test.items)):
        raise DataError(f"{dataset.name} spans too few different times for a temporal split: choose --protocol loo")
    notes: dict[str, object] = {
        "cuts": {"validation": int(validation_cut), "test": int(test_cut)},
        "validation": novelty(train, train, validation),
        "test": novelty(train, context, test),
    } | repeated(context, test, repeats)
    what = "met for the first time" if repeats == "mask" else "had an event with, met before or not,"
    days = [
        datetime.fromtimestamp(int(cut), UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for cut in (test_cut, validation_cut)
    ]
    return Split(
        protocol="temporal",
        train=train,
        validation_context=train,
        validation=validation,
        test_context=context,
        test=test,
        repeats=repeats,
        held_out=f"all items that a person {what} from {days[0]} on; those from {days[1]} on are for validation",
        notes=notes,
    )
