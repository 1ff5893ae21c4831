"""What the probed devices answer: their sum, each by itself, and each with one event less or more."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.samples import blocks_of_items
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import Environment
from fedrecall.simulations.audit.watching.histories import Probes
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import flat

_ROUNDS = 6
_STEEP = 30.0
_HEAVY = 1e4
_CLIPS = (1.0, 0.25, 4.0)
"""Where a clip adapts, it is asked at these shares of the plan's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers of a round.

    Attributes:
        round: its number.
        arrays: the weights that were shown.
        clip_norm: that was asked for.
        whole: what the collector summed when all were asked, flat, trained arrays in the order of their names.
        rows: what it gave when each was asked, in the order of the probes.
        changed: the same with one event less, or more, or without one block, under unit ``interaction``; else empty.
            Beside each: by how many clips a row may have moved.
        count: of ``whole``, the contributions within the clip; ``None`` where the clip is fixed.
        counts: of each.
        one_by_one: whether updates came, and not sums.
    """

    round: int
    arrays: Arrays
    clip_norm: float
    whole: Float64[np.ndarray, " coordinates"]
    rows: Float64[np.ndarray, "devices coordinates"]
    changed: Sequence[tuple[Float64[np.ndarray, "devices coordinates"], float]]
    count: float | None
    counts: Float64[np.ndarray, " devices"] | None
    one_by_one: bool


def answered(trial: Trial) -> Iterator[Answers]:
    """Ask the probed devices in some rounds of the plan; at steep weights in all but the first."""
    first, mechanism, devices = trial.wired[0], trial.rounds, trial.probed.devices
    clips = _CLIPS if mechanism.adaptive_clip is not None else (1.0,)
    names = sorted(first.trained) + ([WITHIN_CLIP] if mechanism.adaptive_clip is not None else [])
    for number, round in enumerate(trial.some_rounds(_ROUNDS)):
        steep = np.float32(_STEEP if number or mechanism.steps == 1 else 1.0)
        arrays = {name: array * steep for name, array in first.arrays.items()}
        clip_norm = (mechanism.clip_norm or 0.0) * clips[number % len(clips)]

        def ask(store: EventStore, round: int = round, shown: Arrays = arrays, bound: float = clip_norm) -> _Asked:
            return _ask(trial, store, round, shown, devices, bound, names)

        asked = ask(trial.probed.store)
        changed: list[tuple[np.ndarray, float]] = []
        if trial.plan.unit == "interaction":
            rng = np.random.default_rng([trial.seed, round])
            allowed = 2.0 if mechanism.adjacency == "replace_one" else 1.0
            changed += [(ask(change(trial.probed, rng)).rows, allowed) for change in _CHANGES]
            changed += [(ask(without_block(trial)).rows, 1.0)] if number else []
        counted = mechanism.adaptive_clip is not None
        yield Answers(
            round=round,
            arrays=arrays,
            clip_norm=clip_norm,
            whole=asked.whole[:-1] if counted else asked.whole,
            rows=asked.rows[:, :-1] if counted else asked.rows,
            changed=changed,
            count=float(asked.whole[-1]) if counted else None,
            counts=asked.rows[:, -1] if counted else None,
            one_by_one=asked.one_by_one,
        )


@dataclass(frozen=True, eq=False)
class _Asked:
    whole: np.ndarray
    rows: np.ndarray
    one_by_one: bool


def _ask(
    trial: Trial,
    store: EventStore,
    round: int,
    arrays: Arrays,
    devices: np.ndarray,
    clip_norm: float,
    names: Sequence[str],
) -> _Asked:
    """Ask ``devices`` of ``store``, all and each.

    Towers that train in rounds move with every question: each question then gets devices as they were at first.
    """

    def asking() -> Environment:
        return trial.wired_with(replace(trial.world, store=store))

    steady = None if trial.world.config.local.tower_learning_rate > 0 else asking()

    def ask(some: np.ndarray) -> CohortSum | list[np.ndarray]:
        got = (steady or asking()).collect(round, arrays, some, clip_norm)
        return got if isinstance(got, CohortSum) else [flat(update.arrays, names) for update in got]

    def summed(some: np.ndarray) -> np.ndarray:
        got = ask(some)
        return flat(got.arrays, names) if isinstance(got, CohortSum) else np.sum(got, axis=0)

    every = ask(devices)
    if not isinstance(every, CohortSum):
        rows = np.array(every)
        return _Asked(rows.sum(axis=0), rows, True)
    return _Asked(flat(every.arrays, names), np.array([summed(devices[[i]]) for i in range(len(devices))]), False)


def without_latest(probes: Probes, rng: np.random.Generator) -> EventStore:
    """Return the store without the latest event of each probed device."""
    return _without(probes, probes.store.offsets[probes.devices + 1] - 1)


def without_any(probes: Probes, rng: np.random.Generator) -> EventStore:
    """Return the store without one event of each probed device."""
    first, end = probes.store.offsets[probes.devices], probes.store.offsets[probes.devices + 1]
    return _without(probes, first + np.floor(rng.random(len(first)) * (end - first)).astype(np.int64))


def with_heavy(probes: Probes, rng: np.random.Generator) -> EventStore:
    """Return the store with one event more of each probed device, so heavy that it turns its sample's gradient.

    Its item is one that the device holds, and so in a sample with other events; the empty device gets its first.
    """
    store, devices = probes.store, probes.devices
    own = [store.history(int(device)) for device in devices]
    items = [int(rng.choice(history)) if history.size else 0 for history in own]
    times = store.times
    return EventStore.from_columns(
        users=np.concatenate([store.users(), devices]),
        items=np.concatenate([store.items, items]),
        n_users=store.n_users,
        n_items=store.n_items,
        times=None if times is None else np.concatenate([times, np.full(len(devices), times.max())]),
        types=np.concatenate([store.types, np.zeros(len(devices), dtype=np.int8)]),
        weights=np.concatenate([store.weights, np.full(len(devices), _HEAVY, dtype=np.float32)]),
        type_names=store.type_names,
    )


def _without(probes: Probes, events: np.ndarray) -> EventStore:
    """Return the store without one event of each probed device that has any."""
    keep = np.ones(probes.store.n_events, dtype=bool)
    keep[events[probes.store.counts()[probes.devices] > 0]] = False
    return probes.store.select(keep)


def without_block(trial: Trial) -> EventStore:
    """Return the store without all events of one block of each probed device: that of its latest event."""
    store, devices = trial.probed.store, trial.probed.devices
    block = blocks_of_items(store.n_items, trial.world.config.local.blocks, trial.world.config.seed)[store.items]
    latest = np.full(store.n_users, -1)
    holding = devices[store.counts()[devices] > 0]
    latest[holding] = block[store.offsets[holding + 1] - 1]
    return store.select(block != latest[store.users()])


_CHANGES: tuple[Callable[[Probes, np.random.Generator], EventStore], ...] = (
    without_latest,
    with_heavy,
    without_any,
)
"""How one event of each probed device changes, in every round."""
