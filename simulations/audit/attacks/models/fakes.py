"""Malicious devices: the histories that they make up to promote an item, and the devices added to a world."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import World

Strategy = Literal["scaled", "popular", "random"]
"""``random``: made-up histories with the target among random items, sent through honest code; ``popular``: among the
most popular items; ``scaled``: as ``popular`` in the start, then crafted updates as long as it takes to be the mean."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Staged:
    """A world with malicious devices, the last ``fakes`` of its store, that promote the item ``target``."""

    world: World
    fakes: int
    target: int

    @property
    def honest(self) -> int:
        """Number of honest devices, which come first."""
        return self.world.store.n_users - self.fakes


def fake_histories(
    store: EventStore, target: int, *, popular: bool, fakes: int, length: int, rng: np.random.Generator
) -> list[Int64[np.ndarray, " events"]]:
    """Return histories of ``length`` events in which the target follows every other item.

    The others are drawn evenly, or with ``popular`` as often as honest devices have them, from the most popular tenth.
    """
    counts = np.bincount(store.items, minlength=store.n_items).astype(np.float64)
    counts[target] = 0.0
    chance = np.where(counts >= np.quantile(counts, 0.9), counts, 0.0) if popular else np.ones(store.n_items)
    chance[target] = 0.0
    chance /= chance.sum()
    made = []
    for _ in range(fakes):
        history = np.full(length, target, dtype=np.int64)
        history[::2] = rng.choice(store.n_items, len(history[::2]), p=chance)
        made.append(history)
    return made


def with_fakes(world: World, target: int, histories: list[Int64[np.ndarray, " events"]]) -> Staged:
    """Return the world with one more enrolled device for each history, and the plan of so many devices."""
    store = world.store
    lengths = [len(history) for history in histories]
    items = np.concatenate([store.items, *histories]).astype(np.int32)
    added = sum(lengths)
    last = int(store.times.max()) + 1 if store.times is not None and store.n_events else 0
    grown = EventStore(
        offsets=np.concatenate([store.offsets, store.offsets[-1] + np.cumsum(lengths, dtype=np.int64)]),
        items=items,
        times=None if store.times is None else np.concatenate([store.times, last + np.arange(added)]),
        types=np.concatenate([store.types, np.zeros(added, dtype=np.int8)]),
        weights=np.concatenate([store.weights, np.ones(added, dtype=np.float32)]),
        n_items=store.n_items,
        type_names=store.type_names,
    )
    plan = plan_for(world.config, world.plan.devices + len(histories)) if histories else world.plan
    return Staged(world=replace(world, store=grown, plan=plan), fakes=len(histories), target=target)


def with_idle(world: World, target: int, fakes: int) -> Staged:
    """Return the world before an attack: as many malicious devices are enrolled, and have no events.

    It has the attacked world's plan, hence its noise: what differs between the two is what the devices send.
    """
    return with_fakes(world, target, [np.zeros(0, dtype=np.int64)] * fakes)


def choose_target(store: EventStore, rng: np.random.Generator) -> int:
    """Return an item to promote: one that some devices have, of the less popular half; UsageError without events."""
    counts = np.bincount(store.items, minlength=store.n_items)
    known = np.flatnonzero(counts)
    if not len(known):
        raise UsageError("the world has no events: there is nothing to promote an item against")
    rare = known[counts[known] <= np.median(counts[known])]
    return int(rng.choice(rare))
