"""Whether one event is in a history: fair coins leave events out, the adversary guesses them from what it sees.

In and out differ by the coin alone, so that popularity helps nobody: chance is an AUC of exactly 0.5.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.audit.attacks.items import Scorers
from fedrecall.simulations.audit.attacks.scores import Guesses, best_of
from fedrecall.simulations.training.world import World

_LEAST = 5
"""Items of a device that enters the game: one of fewer would lose its history to the coins."""

_FEW = 20
"""Views below which pairs are not resampled by view."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Coins:
    """A (device, item) pair and its coin each: heads, and the device keeps its events with the item."""

    devices: Int64[np.ndarray, " pairs"]
    items: Int64[np.ndarray, " pairs"]
    kept: Bool[np.ndarray, " pairs"]


def flip_coins(world: World, devices: Int64[np.ndarray, " devices"], rng: np.random.Generator) -> tuple[World, Coins]:
    """Return the world without the events whose coin fell tails: for a quarter of each device's items, a coin each.

    Devices with fewer than 5 items keep all and have no pairs.
    """
    chosen: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    for device in devices.tolist():
        items = np.unique(world.store.history(device)).astype(np.int64)
        if len(items) < _LEAST:
            continue
        some = rng.choice(items, max(1, len(items) // 4), replace=False)
        chosen.append(some)
        owner.append(np.full(len(some), device, dtype=np.int64))
    coins = Coins(
        devices=np.concatenate([np.zeros(0, dtype=np.int64), *owner]),
        items=np.concatenate([np.zeros(0, dtype=np.int64), *chosen]),
        kept=rng.random(sum(map(len, chosen))) < 0.5,
    )
    return replace(world, store=_without(world.store, coins)), coins


def _without(store: EventStore, coins: Coins) -> EventStore:
    out = ~coins.kept
    dropped = coins.devices[out] * store.n_items + coins.items[out]
    return store.select(~np.isin(store.users() * store.n_items + store.items, dropped))


def guess_coins(
    scorers: Scorers, members: list[Int64[np.ndarray, " devices"]], coins: Coins, rng: np.random.Generator
) -> tuple[str, Guesses]:
    """Return the scorer used and its guesses of the coins of the devices in each view.

    Args:
        scorers: from ``item_scores``: views by items.
        members: the devices behind each view.
        coins: from ``flip_coins``.
        rng: draws the halves to choose a scorer on and to judge it by.
    """
    view_of = {int(device): view for view, devices in enumerate(members) for device in devices}
    seen = np.array([int(device) in view_of for device in coins.devices], dtype=bool)
    views = np.array([view_of[int(device)] for device in coins.devices[seen]], dtype=np.int64)
    items = coins.items[seen]
    # With few views, what ties pairs together is the item's row.
    clusters = views if len(members) >= _FEW else items
    guesses = Guesses(scores=np.zeros(len(items)), truth=coins.kept[seen], clusters=clusters)
    return best_of({name: scores[views, items] for name, scores in scorers.items()}, guesses, rng)
