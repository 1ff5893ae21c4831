"""What a simulation trains: configuration, plan, events, public features; and both paths of a device's work on it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedrecall.client.events.store import EventStore
from fedrecall.client.recall.retrieval import fresh_towers
from fedrecall.client.training.cohort import Cohort, Towers
from fedrecall.models.recall import initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.simulations.config import RunConfig

if TYPE_CHECKING:
    from scipy import sparse

    from fedrecall.client.training.trainer import Trainer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Everything that training reads: configuration, plan, the devices' training events, public features.

    Attributes:
        config: of the run.
        plan: what devices agree to.
        store: training events.
        features: the item tower's public features [items, features], or ``None``.
        shape: of the model.
        content: public features of items for the start (``fedrecall.server.training.content_features``), or ``None``.
    """

    config: RunConfig
    plan: Plan
    store: EventStore
    features: np.ndarray | None
    shape: ModelShape
    content: "sparse.csr_array | None" = None


def shape_of(config: RunConfig, n_items: int, n_features: int, n_types: int) -> ModelShape:
    """Return the model's shape for a catalogue."""
    m = config.model
    return ModelShape(
        n_items=n_items,
        n_features=n_features if m.features else 0,
        n_types=n_types,
        dim=m.dim,
        window=m.window,
        blocks=m.blocks,
        heads=m.heads,
        hidden=m.hidden,
        user_dim=m.user_dim,
        user_hidden=m.user_hidden,
    )


def threads(config: RunConfig) -> int:
    """Return how many threads work at once: the configured number, or all cores that this process may use."""
    if config.threads:
        return config.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def trained_names(world: World) -> tuple[str, ...]:
    """Return the names of the shared arrays that rounds train; raises UsageError for a prefix that names none."""
    names = shared_names(initial_arrays(world.shape, 0))
    for prefix in world.config.rounds.train:
        if not any(name.startswith(prefix) for name in names):
            raise UsageError(f"rounds.train: {prefix!r} names no shared array; they are {', '.join(names)}")
    return tuple(name for name in names if name.startswith(world.config.rounds.train))


def cohort_of(world: World, *, workers: int = 1) -> Cohort:
    """Return the batched path of a world, in this process."""
    return Cohort(
        store=world.store,
        shape=world.shape,
        features=world.features,
        local=world.config.local,
        unit=world.plan.unit,
        trained=trained_names(world),
        seed=world.config.seed,
        device=torch.device("cpu"),
        workers=workers,
    )


def trainer_of(world: World) -> "Trainer":
    """Return the device path of a world."""
    from fedrecall.client.training.trainer import Trainer  # Opacus takes seconds to load

    return Trainer(
        shape=world.shape,
        features=world.features,
        local=world.config.local,
        plan=world.plan,
        trained=trained_names(world),
        seed=world.config.seed,
    )


def in_process(world: World) -> World:
    """Return a world whose rounds end with the same weights without Flower's engine, which takes long to start."""
    if world.config.engine != "flower":
        return world
    engine = "device" if world.config.flower.shards == "users" else "cohort"
    return replace(world, config=world.config.model_copy(update={"engine": engine}))


def initial_towers(world: World) -> Towers:
    """Return the towers of all devices before their first round."""
    seed = derive_seed(world.config.seed, "model")
    return fresh_towers(initial_arrays(world.shape, seed), world.store.n_users)
