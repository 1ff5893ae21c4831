"""What an adversary sees of a round: one device's update, a sum over some, or the noised sum; made as a run makes it.

The maths is the engine's: ``Cohort`` for contributions, the plan's own mechanism for noise. Worlds differ from the
run's only in what an attack asks: another defence, the item table among the trained arrays, some events left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Arrays
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.attacks.robust import Robust, aggregate_all
from fedrecall.simulations.config import parse_config
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import World, trained_names

TABLE = "item table trained, "
"""Begins the names of attacks on a run that trains the item table."""

_LOCAL: dict[str, dict[str, Any]] = {
    "privacy": {
        "unit": "interaction",
        "trust": "local",
        "clip_norm": 0.2,
        "shares": {"popularity": 0.6, "rounds": 0.4},
        "adaptive_clip": None,
    },
    "start": {"items": 0},
    "local": {"blocks": 4, "steps": 1, "tower_learning_rate": 0.0},
    "rounds": {"cohort": None},
}
"""What the shipped interaction presets set: how a plan of the same epsilon looks where each device adds the noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is seen of one round.

    Attributes:
        arrays: an update, or a sum of updates, by name.
        negatives: the round's public negatives.
        devices: whose contributions are in it.
    """

    arrays: Arrays
    negatives: Int64[np.ndarray, " negatives"]
    devices: Int64[np.ndarray, " devices"]


def what_if(world: World, *, local: bool = False) -> World:
    """Return the world with the item table trained; with ``local``, where each device adds all its noise itself.

    Its plan has the same epsilon as the run's and another split of it.
    """
    changes: dict[str, dict[str, Any]] = _LOCAL if local else {}
    settings = world.config.model_dump(mode="python")
    for section, values in changes.items():
        settings[section] |= values
    if ITEM_ID not in trained_names(world):
        settings["rounds"]["train"] = ("item.", *settings["rounds"]["train"])
    settings["server"]["learning_rate_scales"] = {}
    config = parse_config(settings)
    return replace(world, config=config, plan=plan_for(config, world.plan.devices))


def variants(world: World) -> dict[str, World]:
    """Return the world as it is, and with the item table trained where it is not, by a prefix that says which.

    Most federated recommenders train the table: the second shows what a run that does not has spared itself.
    """
    if ITEM_ID in trained_names(world):
        return {TABLE: world}
    return {"": world, TABLE: what_if(world)}


def cut_to_window(store: EventStore, window: int) -> EventStore:
    """Return each device's latest ``window + 1`` events: all of them are in every round, the worst case for it."""
    place = np.arange(store.n_events) - store.offsets[store.users()]
    return store.select(place >= (store.counts() - window - 1)[store.users()])


def observe(
    world: World,
    cohort: Cohort,
    arrays: Arrays,
    devices: Int64[np.ndarray, " devices"],
    *,
    round: int,
    clipped: bool,
    noise: SeededNoise | None = None,
    robust: Robust | None = None,
) -> View:
    """Return the sum over ``devices`` of what they contribute in ``round`` at the model ``arrays``.

    Args:
        world: of ``cohort``.
        cohort: from ``engine``.
        arrays: the released model that the round starts from.
        devices: one for an update, more for a sum.
        round: decides negatives and windows.
        clipped: whether the plan's clip holds (the norm bound); ``False`` is no defence at all.
        noise: adds the plan's noise: once to a central sum, for each device where trust is local; ``None`` for none.
        robust: takes this of the updates, times their number, instead of their sum.
    """
    mechanism = world.plan.mechanism(ROUNDS)
    bound = mechanism.clip_norm or world.config.privacy.clip_norm
    clip_norm = bound if clipped else None
    if robust is None:
        sums: Mapping[str, np.ndarray] = cohort.collect(round, arrays, devices, clip_norm=clip_norm).arrays
    else:
        single = (cohort.collect(round, arrays, devices[i : i + 1], clip_norm=clip_norm) for i in range(len(devices)))
        sums = aggregate_all((update.arrays for update in single), robust)
    if noise is not None:
        times = math.sqrt(len(devices)) if world.plan.trust == "local" else 1.0
        sums = gaussian_sum(sums, _of_the_sum(mechanism, times), noise)
    negatives = draw_negatives(world.config.seed, round, world.shape.n_items, world.config.local.negatives)
    return View(arrays=sums, negatives=negatives.astype(np.int64), devices=devices)


def groups_of(devices: Int64[np.ndarray, " devices"], size: int) -> list[Int64[np.ndarray, " size"]]:
    """Return whole groups of ``size`` of the devices, in order; the rest is left out."""
    return [devices[at : at + size] for at in range(0, len(devices) - size + 1, size)]


def holds(store: EventStore, devices: Int64[np.ndarray, " devices"]) -> Bool[np.ndarray, "devices items"]:
    """Return which of the ``devices`` hold which item."""
    found = np.zeros((len(devices), store.n_items), dtype=bool)
    for row, device in enumerate(devices.tolist()):
        found[row, store.history(device)] = True
    return found


def _of_the_sum(mechanism: Mechanism, times: float) -> Mechanism:
    """Return the mechanism with the noise of the weights alone, ``times`` as large."""
    return replace(mechanism, noise_multiplier=times * mechanism.sum_noise_multiplier, adaptive_clip=None)
