"""Attacks on one round's updates and sums, in every setting: interaction membership and history reconstruction."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.protocol.errors import ScoreError
from fedrecall.protocol.randomness import public_rng
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.audit.attacks.interaction_membership import flip_coins, guess_coins
from fedrecall.simulations.audit.attacks.items import Scorers, averaged, item_scores
from fedrecall.simulations.audit.attacks.observed import holds
from fedrecall.simulations.audit.attacks.scores import Guesses, auc, not_tested, to_attempt
from fedrecall.simulations.audit.attacks.settings import Setting, claim_of, members_of, views_of
from fedrecall.simulations.audit.attacks.updates.history_reconstruction import against, reconstruct
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.training.world import World

MEMBERSHIP = "interaction membership"
RECONSTRUCTION = "history reconstruction"

_SUMMED = 5
"""Times as many devices where sums are attacked, which tell less of each."""


_WHAT = {
    MEMBERSHIP: (
        "Fair coins left items out of histories and were guessed from {seen}; success means telling whether one event "
        "took place."
    ),
    RECONSTRUCTION: (
        "Items of a device's history were told from items as popular that it lacks, by {seen}; success means reading "
        "the history."
    ),
}


def attack_updates(setting: Setting, arrays: Arrays, *, devices: int, seed: int) -> Iterator[Attempt]:
    """Yield interaction membership, then history reconstruction, both on one observation of the same devices.

    Args:
        setting: from ``settings_of``.
        arrays: the released model that rounds start from.
        devices: attacked, at most; five times as many where sums are.
        seed: of coins, noise and halves.
    """
    began = time.perf_counter()
    rng = public_rng(seed, "attack on updates", setting.name)
    usable = np.flatnonzero(setting.world.store.counts() >= 2)
    chosen = rng.permutation(usable)[: devices if setting.size == 1 else _SUMMED * devices].astype(np.int64)
    members = members_of(setting, chosen)
    if not members:
        for attack in (MEMBERSHIP, RECONSTRUCTION):
            why = f"{len(chosen)} devices have two events: too few for a {setting.name}"
            yield not_tested(f"{attack}: {setting.name}", setting.adversary, setting.unit, why)
        return
    coined, coins = flip_coins(setting.world, chosen, rng)
    scorers = _scorers(setting, coined, arrays, members, seed)
    found: dict[str, Callable[[], tuple[str, Guesses, dict[str, Any]]]] = {
        MEMBERSHIP: lambda: (*guess_coins(scorers, members, coins, rng), {}),
        RECONSTRUCTION: lambda: _reconstruct(setting, coined, scorers, members, chosen[:devices], rng),
    }
    for attack, attempt in found.items():
        name = f"{attack}: {setting.name}"
        try:
            used, guesses, detail = attempt()
        except ScoreError as error:
            yield not_tested(name, setting.adversary, setting.unit, str(error))
            continue
        yield to_attempt(
            guesses,
            name=name,
            adversary=setting.adversary,
            unit=setting.unit,
            what=_WHAT[attack].format(seen=_seen(setting)),
            claim=claim_of(setting) if attack == MEMBERSHIP else None,
            rng=rng,
            seconds=time.perf_counter() - began,
            detail={"scorer": used, "rounds": setting.rounds, "views": len(members), **detail},
        )


def _reconstruct(
    setting: Setting,
    world: World,
    scorers: Scorers,
    members: list[Int64[np.ndarray, " members"]],
    chosen: Int64[np.ndarray, " devices"],
    rng: np.random.Generator,
) -> tuple[str, Guesses, dict[str, Any]]:
    view_of = {int(device): view for view, group in enumerate(members) for device in group}
    seen = np.array([device for device in chosen.tolist() if device in view_of], dtype=np.int64)
    rows = np.array([view_of[device] for device in seen.tolist()], dtype=np.int64)
    held = holds(world.store, seen)
    used, guesses = reconstruct(scorers, rows, held, _holders(world.store), rng)
    detail: dict[str, Any] = {"devices": len(seen)}
    if setting.size == 1 and not setting.noised:
        detail |= _by_rival(scorers, setting, held)
    return used, guesses, detail


def _scorers(
    setting: Setting, world: World, arrays: Arrays, members: list[Int64[np.ndarray, " members"]], seed: int
) -> Scorers:
    vectors: Float64[np.ndarray, "items dim"] = item_vectors(arrays, world.features).astype(np.float64)
    return averaged(
        [
            item_scores(views_of(setting, world, arrays, members, round=r, seed=seed), vectors)
            for r in range(setting.rounds)
        ]
    )


def _by_rival(scorers: Scorers, setting: Setting, held: np.ndarray) -> dict[str, float]:
    """Return the AUC of the row's direction against the round's negatives, and against all untouched items."""
    if "direction of the row" not in scorers:
        return {}
    negative = np.zeros(held.shape[1], dtype=bool)
    config = setting.world.config
    negative[draw_negatives(config.seed, 0, held.shape[1], config.local.negatives)] = True
    scores = scorers["direction of the row"][: len(held)]
    rivals = {"negatives": negative & ~held, "untouched": ~negative & ~held}
    return {
        f"auc against {name}": auc(against(scores, held, lacked)) for name, lacked in rivals.items() if lacked.any()
    }


def _holders(store: EventStore) -> Int64[np.ndarray, " items"]:
    pairs = np.unique(store.users() * np.int64(store.n_items) + store.items)
    return np.bincount(pairs % store.n_items, minlength=store.n_items)


def _seen(setting: Setting) -> str:
    """Return in words what the adversary looked at."""
    if setting.size == 1:
        words = "one device's update"
    elif setting.size:
        words = f"the {setting.robust or 'sum'} of {setting.size} devices' updates"
    else:
        words = "the sum over the cohort"
    words += (", clipped" if setting.clipped else "") + (" and noised" if setting.noised else "")
    return f"{words}, {setting.rounds} round{'s' if setting.rounds > 1 else ''} averaged"
