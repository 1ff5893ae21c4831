"""Canaries: devices that an auditor enrols in a normal run, each taking part for real by its own fair coin.

A canary device holds, through the event store, events of items of its own: two under unit ``user``, whose
contributions to popularity and to second moments are as large as a device's can be, and one under unit
``interaction``. Through the collector it also adds a known direction of exactly the clip norm to the rounds' sums (a
gradient canary: no history makes a larger contribution). One whose coin is out holds nothing and adds nothing, but
stays enrolled, so that the plan's number of devices is the same.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.plan import Unit
from fedrecall.protocol.randomness import derive_seed
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import World


@dataclass(frozen=True, kw_only=True, eq=False)
class Canaries:
    """Canary devices of one world.

    Attributes:
        devices: their numbers.
        coins: which are in.
        items: of each, in no other canary's history.
        seed: of their directions.
    """

    devices: Int64[np.ndarray, " canaries"]
    coins: Bool[np.ndarray, " canaries"]
    items: Int64[np.ndarray, "canaries own"]
    seed: int

    def directions(self, size: int) -> "Directions":
        """Return a direction for each, over ``size`` coordinates."""
        return directions(len(self.devices), size, self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Orthogonal unit vectors: each coordinate belongs to one canary, so that many cost no more memory than one.

    Attributes:
        entries: value of every coordinate in the direction of its owner.
        owner: the canary of every coordinate.
        count: number of canaries.
    """

    entries: Float64[np.ndarray, " coordinates"]
    owner: Int64[np.ndarray, " coordinates"]
    count: int

    def sum(self, taking_part: Bool[np.ndarray, " canaries"]) -> Float64[np.ndarray, " coordinates"]:
        """Return the sum of the directions of those that take part."""
        return np.where(taking_part[self.owner], self.entries, 0.0)

    def project(self, values: Float64[np.ndarray, " coordinates"]) -> Float64[np.ndarray, " canaries"]:
        """Return the inner product of ``values`` with each direction."""
        return np.bincount(self.owner, weights=values * self.entries, minlength=self.count)


def directions(count: int, size: int, seed: int) -> Directions:
    """Return ``count`` orthogonal directions over ``size`` coordinates; raises UsageError where there are too few."""
    if size < count:
        raise UsageError(f"{count} canaries need as many trained numbers, and rounds train {size}: use fewer")
    rng = np.random.default_rng(derive_seed(seed, "canary directions", size))
    owner = rng.permutation(np.arange(size) % count)
    signs = rng.choice([-1.0, 1.0], size)
    return Directions(entries=signs / np.sqrt(np.bincount(owner, minlength=count))[owner], owner=owner, count=count)


def enrol(world: World, count: int, seed: int) -> tuple[World, Canaries]:
    """Return ``world`` with ``count`` canary devices more, and the canaries; coins and directions follow ``seed``.

    Their items are the ones with the most events, which is where second moments are taken. Noise and clip of the plan
    stay as they are; its number of devices grows.

    Raises:
        UsageError: there are fewer items than canaries.
    """
    store, rng = world.store, np.random.default_rng(derive_seed(seed, "canary coins"))
    own = own_items(world.plan.unit)
    if not 1 <= count <= store.n_items // own:
        raise UsageError(f"canaries are {count}: choose from 1 to {store.n_items // own}, with {own} items for each")
    popular = np.argsort(-np.bincount(store.items, minlength=store.n_items), kind="stable")[: count * own]
    canaries = Canaries(
        devices=np.arange(store.n_users, store.n_users + count),
        coins=rng.random(count) < 0.5,
        items=rng.permutation(popular).astype(np.int64).reshape(count, own),
        seed=seed,
    )
    devices = store.n_users + count
    # A fixed-size cohort is a whole number of devices, which another number of devices may not allow.
    fixed = any(m.sampling == "fixed_size" for m in world.plan.mechanisms)
    plan = plan_for(world.config, devices) if fixed else replace(world.plan, devices=devices)
    return replace(world, plan=plan, store=_with_histories(store, canaries)), canaries


def own_items(unit: Unit) -> int:
    """Return the number of events of a canary: as few as reach every release of ``unit``."""
    return 2 if unit == "user" else 1


def silent(world: World) -> World:
    """Return ``world`` with devices that hold no event: whatever it releases is noise and nothing else."""
    return replace(world, store=world.store.select(np.zeros(world.store.n_events, dtype=bool)))


def _with_histories(store: EventStore, canaries: Canaries) -> EventStore:
    own = canaries.items[canaries.coins]
    times = None
    if store.times is not None:
        times = np.concatenate([store.times, np.full(own.size, store.times.max(initial=0))])
    return EventStore.from_columns(
        users=np.concatenate([store.users(), np.repeat(canaries.devices[canaries.coins], own.shape[1])]),
        items=np.concatenate([store.items, own.reshape(-1)]),
        n_users=store.n_users + len(canaries.devices),
        n_items=store.n_items,
        times=times,
        types=np.concatenate([store.types, np.zeros(own.size, dtype=np.int8)]),
        weights=np.concatenate([store.weights, np.ones(own.size, dtype=np.float32)]),
        type_names=store.type_names,
    )
