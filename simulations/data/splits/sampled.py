"""Leave one out against 99 sampled items: for comparison with papers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import DataError
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.leave_out import leave_one_out
from fedrecall.simulations.data.splits.parts import Split, Targets, is_new

SAMPLED_NEGATIVES = 99
_CHUNK = 256


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
    split = leave_one_out(events, "ncf")
    validation = _sample(events, split.validation, seed, "validation")
    if fixed is None:
        test = _sample(events, split.test, seed, "test")
    else:
        test = replace(split.test, candidates=fixed[split.test.users])
        pairs = split.test.users[:, None] * events.n_items + fixed[split.test.users, 1:]
        had = events.users() * events.n_items + events.items
        notes |= {"negatives_in_history": int(np.isin(pairs, had).sum())}
    return replace(split, validation=validation, test=test, notes=split.notes | notes)


def _sample(events: EventStore, targets: Targets, seed: int, part: str) -> Targets:
    """Add candidates: the target, then distinct items that the device never had, drawn uniformly."""
    most = int(np.bincount(events.users()[is_new(events)]).max())
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
