"""Interaction membership from a list of recommendations: what somebody learns of a history who sees what it gets.

Devices search by themselves and show their lists to their users alone (docs/privacy.md, rule 11); this is why. A list
holds what is like the history. Where a device leaves out what it had, an item that is missing among its likes tells
too.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from fedrecall.protocol.errors import ScoreError
from fedrecall.protocol.randomness import public_rng
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.audit.attacks.interaction_membership import flip_coins, guess_coins
from fedrecall.simulations.audit.attacks.items import Scorers, whitened
from fedrecall.simulations.audit.attacks.observed import groups_of, holds
from fedrecall.simulations.audit.attacks.scores import Claim, not_tested, to_attempt
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.runs.recaller import ModelRecaller, item_vectors
from fedrecall.simulations.training.world import World

LISTS = "interaction membership: list"

_ADVERSARY = "server"
_DECOYS = 0.5


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a device shows recommendations.

    Attributes:
        length: of the list.
        masked: whether items that it had are left out.
        decoys: share of the places that show an item of the catalogue at random instead.
    """

    length: int
    masked: bool
    decoys: float = 0.0

    @property
    def name(self) -> str:
        """Of the row."""
        own = "own items left out" if self.masked else "own items shown"
        return f"{LISTS} of {self.length}, {own}{', half at random' if self.decoys else ''}, if one left"


WAYS = (
    Shown(length=10, masked=False),
    Shown(length=50, masked=False),
    Shown(length=10, masked=True),
    Shown(length=50, masked=True),
    Shown(length=10, masked=True, decoys=_DECOYS),
)


def attack_lists(world: World, arrays: Arrays, *, devices: int, seed: int) -> Iterator[Attempt]:
    """Yield one attempt for each way to show recommendations.

    Coins leave events out of histories before the devices recommend; the model is the released one either way, so that
    only the lists can tell.

    Args:
        world: of the run; towers that rounds train are fresh here.
        arrays: the released model.
        devices: how many, at most.
        seed: of coins, halves and decoys.
    """
    began = time.perf_counter()
    rng = public_rng(seed, LISTS)
    usable = np.flatnonzero(world.store.counts() >= 2)
    chosen = np.sort(rng.permutation(usable)[:devices]).astype(np.int64)
    coined, coins = flip_coins(world, chosen, rng)
    vectors = item_vectors(arrays, world.features)
    model = ModelRecaller(
        name="audit",
        arrays=arrays,
        vectors=vectors,
        shape=world.shape,
        personal=world.config.personal,
        towers=None,
        seed=world.config.seed,
    )
    scores = model.score(chosen, coined.store).astype(np.float64)
    had = holds(coined.store, chosen)
    for way in WAYS:
        lists = recommended(scores, had, way, rng)
        try:
            scorers = list_scores(lists, vectors.astype(np.float64))
            used, guesses = guess_coins(scorers, groups_of(chosen, 1), coins, rng)
        except ScoreError as error:
            yield not_tested(way.name, _ADVERSARY, world.plan.unit, str(error))
            continue
        yield to_attempt(
            guesses,
            name=way.name,
            adversary=_ADVERSARY,
            unit=world.plan.unit,
            what=(
                f"Fair coins left items out of histories and were guessed from the {way.length} items that each device "
                "would show its user; success means telling whether one event took place. No list leaves a device."
            ),
            claim=Claim(epsilon=None, delta=world.plan.delta, relation="add_remove"),
            rng=rng,
            seconds=time.perf_counter() - began,
            detail={"scorer": used, "devices": len(chosen)},
        )
        began = time.perf_counter()


def recommended(
    scores: Float64[np.ndarray, "devices items"], had: np.ndarray, way: Shown, rng: np.random.Generator
) -> Int64[np.ndarray, "devices length"]:
    """Return what each device shows, the best first; a list is cut where there are fewer items than places."""
    open_ones = np.where(had, -np.inf, scores) if way.masked else scores
    lists = np.argsort(-open_ones, axis=1, kind="stable")[:, : way.length].astype(np.int64)
    decoys = rng.integers(0, scores.shape[1], lists.shape)
    return np.where(rng.random(lists.shape) < way.decoys, decoys, lists)


def list_scores(lists: Int64[np.ndarray, "devices length"], vectors: Float64[np.ndarray, "items dim"]) -> Scorers:
    """Return every way to score all items from each list, of being in the history behind it.

    Whether it is shown speaks for it or, where devices leave out what they had, against it; the attack finds out on
    the half of the devices that it learns from.
    """
    devices, length = lists.shape
    shown = np.zeros((devices, len(vectors)))
    rows = np.arange(devices)[:, None]
    shown[rows, lists] = 1.0
    place = np.zeros_like(shown)
    place[rows, lists] = length - np.arange(length)
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    like = unit[lists].mean(axis=1) @ unit.T
    found = {
        "shown": shown,
        "not shown": -shown,
        "place in the list": place,
        "like what is shown": like,
        "like what is shown, rare directions too": whitened(vectors)[lists].mean(axis=1) @ centred.T,
        "like what is shown, and missing": np.where(shown > 0, like.min(axis=1, keepdims=True), like),
    }
    # What is usual for an item, in all lists, says nothing of one history.
    return found | {f"{name}, centred": values - values.mean(axis=0) for name, values in found.items()}
