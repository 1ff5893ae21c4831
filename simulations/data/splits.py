"""Splits of a data set into training, validation and test (``loo``, ``temporal``, ``ncf``).

A context is masked from the ranking, so only an item that is new to the device can be a target: where items
repeat, an event counts as a target at the item's first occurrence. Where no item repeats, this is the plain
last event.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.data.dataset import Dataset

PROTOCOLS = ("loo", "temporal", "ncf")
LEAST_EVENTS = 3
SAMPLED_NEGATIVES = 99
_CHUNK = 256


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
    """One split. A context is what a device knows when it asks; its items are masked from the ranking.

    Attributes:
        protocol: ``loo``, ``temporal`` or ``ncf``.
        train: the events that anything may be fitted on.
        validation_context: events known at validation time (for ``loo``: ``train``).
        validation: what the device did next.
        test_context: events known at test time (for ``loo``: training and validation events).
        test: what the device did next. Never read while training or choosing.
        notes: conventions and counts for the report, as plain JSON data.

    """

    protocol: str
    train: EventStore
    validation_context: EventStore
    validation: Targets
    test_context: EventStore
    test: Targets
    notes: dict[str, object]


def make_split(dataset: Dataset, protocol: str, seed: int = 0) -> Split:
    """Split by the protocol's name; ``seed`` matters to the sampled negatives of ``ncf`` alone."""
    if protocol == "loo":
        return split_loo(dataset)
    if protocol == "temporal":
        return split_temporal(dataset)
    if protocol == "ncf":
        return split_ncf(dataset, seed=seed)
    raise ConfigError(f"protocol is {protocol!r}: choose one of {', '.join(PROTOCOLS)}")


def split_loo(dataset: Dataset) -> Split:
    """Leave one out: the last new item of each device is test, the one before is validation.

    Training events are those before the validation target, the test context those before the test target;
    what a device did after its test target is left out and counted. Devices with fewer than 3 different items
    train only. Raises DataError when no device can be evaluated.
    """
    return _leave_one_out(dataset.events, "loo")


def split_temporal(dataset: Dataset, *, test_share: float = 0.1, validation_share: float = 0.1) -> Split:
    """Cut all devices at the same two moments, so that about these shares of the events lie behind them.

    Targets are the new items of a device in its validation or test time; devices with none are not evaluated.
    ``notes`` counts devices without earlier events and items without training events; ``of_new_users`` and
    ``of_new_items`` find them. Raises DataError without times, or when a part is empty.
    """
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
    new = _is_new(events)
    train = events.select(events.times < validation_cut)
    context = events.select(events.times < test_cut)
    validation = _targets(events, new & (events.times >= validation_cut) & (events.times < test_cut))
    test = _targets(events, new & (events.times >= test_cut))
    if not (train.n_events and len(validation.items) and len(test.items)):
        raise DataError(f"{dataset.name} spans too few different times for a temporal split: choose --protocol loo")
    notes: dict[str, object] = {
        "cuts": {"validation": int(validation_cut), "test": int(test_cut)},
        "validation": _novelty(train, train, validation),
        "test": _novelty(train, context, test),
    }
    return Split(
        protocol="temporal",
        train=train,
        validation_context=train,
        validation=validation,
        test_context=context,
        test=test,
        notes=notes,
    )


def split_ncf(dataset: Dataset, *, negatives_file: Path | None = None, seed: int = 0) -> Split:
    """Leave one out, ranking each target against 99 sampled items only: for comparison with papers.

    ``candidates`` hold the target first, then public draws from the items that the device never had. With
    ``negatives_file`` (the well-known format: ``(user,item)``, then negatives, by tabs, numbered from 0 in
    order of first appearance in the source), test targets and candidates come from it; load the data set with
    ``catalogue="rated"`` then. Raises DataError when an item or user of the file does not exist, or when
    there are fewer than 99 items to draw from.
    """
    events, fixed = dataset.events, None
    notes: dict[str, object] = {"sampled": True, "negatives": SAMPLED_NEGATIVES}
    if negatives_file is not None:
        if dataset.catalogue.source == "file":
            raise DataError("the negatives file numbers rated items: load the data set with catalogue='rated'")
        fixed = _read_negatives(Path(negatives_file), events.n_users, events.n_items)
        events, late = _with_last(events, fixed[:, 0])
        notes |= {"negatives_file": Path(negatives_file).name, "targets_before_the_last_event": late}
    split = _leave_one_out(events, "ncf")
    validation = _sample(events, split.validation, seed, "validation")
    if fixed is None:
        test = _sample(events, split.test, seed, "test")
    else:
        test = replace(split.test, candidates=fixed[split.test.users])
        pairs = split.test.users[:, None] * events.n_items + fixed[split.test.users, 1:]
        had = events.users() * events.n_items + events.items
        notes |= {"negatives_in_history": int(np.isin(pairs, had).sum())}
    return replace(split, validation=validation, test=test, notes=split.notes | notes)


def of_new_users(context: EventStore, targets: Targets) -> Bool[np.ndarray, " evaluated"]:
    """Return which evaluated users have no event in ``context``."""
    return np.asarray(context.counts()[targets.users] == 0)


def of_new_items(train: EventStore, targets: Targets) -> Bool[np.ndarray, " targets"]:
    """Return which targets are items without training events."""
    return np.asarray(np.bincount(train.items, minlength=train.n_items)[targets.items] == 0)


def _is_new(events: EventStore) -> Bool[np.ndarray, " events"]:
    """Return which events are the first of their device with their item."""
    new = np.zeros(events.n_events, dtype=bool)
    new[np.unique(events.users() * events.n_items + events.items, return_index=True)[1]] = True
    return new


def _targets(events: EventStore, chosen: np.ndarray) -> Targets:
    """Group the chosen events by device."""
    users, counts = np.unique(events.users()[chosen], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Targets(users=users, offsets=offsets, items=events.items[chosen])


def _leave_one_out(events: EventStore, protocol: str) -> Split:
    users, new = events.users(), _is_new(events)
    totals = np.bincount(users, weights=new, minlength=events.n_users).astype(np.int64)
    evaluated = totals >= LEAST_EVENTS
    if not evaluated.any():
        raise DataError(
            f"no device has {LEAST_EVENTS} different items or more, which leave-one-out needs: bring longer"
            " histories, or choose --protocol temporal"
        )
    before = np.concatenate([[0], np.cumsum(totals)])[users]
    nth = np.cumsum(new) - before
    held = evaluated[users]
    at_validation, at_test = nth >= totals[users] - 1, nth >= totals[users]
    train = events.select(~(held & at_validation))
    is_test = held & new & at_test
    return Split(
        protocol=protocol,
        train=train,
        validation_context=train,
        validation=_targets(events, held & new & at_validation & ~at_test),
        test_context=events.select(~(held & at_test)),
        test=_targets(events, is_test),
        notes={
            "evaluated_users": int(evaluated.sum()),
            "train_only_users": int((~evaluated).sum()),
            "events_after_test": int(np.sum(held & at_test) - is_test.sum()),
            "order": "file order" if events.times is None else "time, then file order",
        },
    )


def _novelty(train: EventStore, context: EventStore, targets: Targets) -> dict[str, int]:
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


def _sample(events: EventStore, targets: Targets, seed: int, part: str) -> Targets:
    """Add candidates: the target, then distinct items that the device never had, drawn uniformly."""
    most = int(np.bincount(events.users()[_is_new(events)]).max())
    if events.n_items - most < SAMPLED_NEGATIVES:
        raise DataError(
            f"a device has {most} of {events.n_items} items, which leaves fewer than {SAMPLED_NEGATIVES} to"
            " draw from: choose --protocol loo"
        )
    rng = public_rng(seed, "ncf", part)
    candidates = np.empty((len(targets.users), SAMPLED_NEGATIVES + 1), dtype=np.int32)
    candidates[:, 0] = targets.items
    for start in range(0, len(targets.users), _CHUNK):
        users = targets.users[start : start + _CHUNK]
        keys = rng.random((len(users), events.n_items), dtype=np.float32)
        for row, user in enumerate(users):
            keys[row, events.history(int(user))] = 2.0
        drawn = np.argpartition(keys, SAMPLED_NEGATIVES - 1, axis=1)[:, :SAMPLED_NEGATIVES]
        candidates[start : start + _CHUNK, 1:] = drawn
    return replace(targets, candidates=candidates)


def _read_negatives(path: Path, n_users: int, n_items: int) -> Int32[np.ndarray, "users candidates"]:
    """Return target and negatives of each user, in the order of users."""
    table = np.full((n_users, SAMPLED_NEGATIVES + 1), -1, dtype=np.int32)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {error}; check the path") from error
    for number, line in enumerate(lines, 1):
        pair, *negatives = line.split("\t")
        try:
            user, target = (int(x) for x in pair.strip("()").split(","))
            row = np.array([target, *map(int, negatives)])
            if len(row) != table.shape[1] or row.min() < 0 or row.max() >= n_items or not 0 <= user < n_users:
                raise ValueError(f"needs a user below {n_users} and 1 + 99 items below {n_items}")
        except ValueError as error:
            raise DataError(f"{path.name} line {number}: {error}; is it the file of this data set?") from error
        table[user] = row
    if np.any(table < 0):
        raise DataError(f"{path.name} lacks {int(np.sum(table[:, 0] < 0))} of {n_users} users")
    return table


def _with_last(events: EventStore, last: Int32[np.ndarray, " users"]) -> tuple[EventStore, int]:
    """Move each device's events with item ``last[device]`` to its end; counts those that were not latest."""
    users = events.users()
    chosen = events.items == last[users]
    found = np.bincount(users[chosen], minlength=events.n_users) > 0
    if not found.all():
        raise DataError(
            f"{int(np.sum(~found))} targets of the negatives file are not in their user's history: is it the"
            " file of this data set?"
        )
    late = 0
    if events.times is not None:
        newest = np.maximum.reduceat(events.times, events.offsets[:-1])
        late = int(np.sum(events.times[chosen] < newest[users[chosen]]))
    order = np.lexsort((chosen, users))
    moved = EventStore(
        offsets=events.offsets,
        items=events.items[order],
        times=None if events.times is None else events.times[order],
        types=events.types[order],
        weights=events.weights[order],
        n_items=events.n_items,
        type_names=events.type_names,
    )
    return moved, late
