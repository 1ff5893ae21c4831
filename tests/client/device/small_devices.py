"""Enrolled devices in real folders, small enough for tests, and what they were enrolled for."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedrecall.client.device.enrolment import EVENTS
from fedrecall.client.device.folder import DeviceFolder, task_of
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.events import MICROS, Events
from fedrecall.client.events.store import EventStore
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import public_rng
from fedrecall.protocol.task import Task

from ..training.engine_contract import CASES, Case, World, make_world

UNLIMITED = Budget(epsilon=None, delta=1e-5)


def world_of(case: Case | None = None, **plan: object) -> tuple[World, Task, dict[str, np.ndarray]]:
    """Return a world of the engines' contract in float32, its task, and the shared arrays to start from."""
    world = make_world(case or CASES["user, one step, clipped"])
    asked: Plan = replace(world.plan, **plan)
    task = task_of(asked, world.shape, world.local, world.trained, 5)
    fresh = initial_arrays(world.shape, 5)
    arrays = {name: fresh[name].numpy().copy() for name in shared_names(fresh)}
    table = public_rng(5, "table").standard_normal(arrays[ITEM_ID].shape)
    arrays[ITEM_ID] = table.astype(np.float32)
    return world, task, arrays


def enrol(folder: Path, world: World, task: Task, budget: Budget = UNLIMITED) -> list[Path]:
    """Enrol every device of ``world`` in a folder of its own below ``folder``."""
    return [enrol_one(folder, world, task, number, budget) for number in range(world.store.n_users)]


def enrol_one(folder: Path, world: World, task: Task, number: int, budget: Budget = UNLIMITED) -> Path:
    """Enrol one device of ``world`` in a folder of its own below ``folder``."""
    place = folder / f"device-{number}"
    place.mkdir(mode=0o700, parents=True)
    DeviceFolder.enrol(place, invitation_of(world, task, number), budget)
    ingest_store(place, world.store.only(number))
    return place


def invitation_of(world: World, task: Task, number: int) -> Invitation:
    """Return the invitation of a device of ``world``."""
    return Invitation(
        number=number,
        task=task,
        address="127.0.0.1:9092",
        root_certificates=None,
        items=tuple(f"i{item}" for item in range(world.shape.n_items)),
        event_weights=dict.fromkeys(world.store.type_names, 1.0),
        features=world.features.astype(np.float32) if world.features is not None else None,
    )


def ingest_store(place: Path, store: EventStore) -> int:
    """Put the events of a store of one device into an enrolled folder; returns how many were new."""
    events = Events(
        users=np.zeros(store.n_events, dtype=np.int64),
        items=store.items.astype(np.int64),
        times=None if store.times is None else store.times * MICROS,
        types=store.types,
        weights=store.weights,
        user_ids=("",),
        item_ids=tuple(f"i{item}" for item in range(store.n_items)),
        type_names=store.type_names,
        report={},
    )
    with EventDatabase(place / EVENTS) as database:
        return database.add(events)
