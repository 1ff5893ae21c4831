"""Attribute inference from what leaves a device in each setting, and from a query vector, which never should."""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from fedrecall.protocol.randomness import public_rng
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.audit.attacks.logistic import Features
from fedrecall.simulations.audit.attacks.scores import not_tested, to_attempt
from fedrecall.simulations.audit.attacks.settings import Setting, views_of
from fedrecall.simulations.audit.attacks.updates.attribute_inference import (
    SMALLEST,
    infer_attribute,
    query_features,
    update_features,
)
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.training.world import World

_ROUNDS = 3
"""Rounds of noised updates that are averaged; more cost time and add little."""

ATTRIBUTE = "attribute inference"


def attack_attributes(
    setting: Setting, arrays: Arrays, groups: Mapping[str, Sequence[str]], *, devices: int, seed: int
) -> Iterator[Attempt]:
    """Yield one attempt an attribute, from the updates that ``setting`` shows of ``devices`` devices, drawn at random.

    Args:
        setting: with one device in what is seen; a sum over many has nothing of one device to classify.
        arrays: the released model.
        groups: label of each device by attribute.
        devices: how many, at most.
        seed: of draws and noise.
    """
    rng = public_rng(seed, ATTRIBUTE, setting.name)
    chosen = _draw(setting.world, devices, rng)
    began = time.perf_counter()
    vectors = item_vectors(arrays, setting.world.features).astype(np.float64)
    members = [np.array([device]) for device in chosen]
    rounds = [
        update_features(views_of(setting, setting.world, arrays, members, round=r, seed=seed), vectors)
        for r in range(min(_ROUNDS, setting.rounds))
    ]
    blocks = [np.mean(block, axis=0) for block in zip(*rounds, strict=True)]
    seconds = time.perf_counter() - began
    yield from _classify(setting.name, "server", setting.unit, blocks, chosen, groups, seconds, rng)


def attack_queries(
    world: World, arrays: Arrays, groups: Mapping[str, Sequence[str]], *, devices: int, seed: int
) -> Iterator[Attempt]:
    """Yield one attempt an attribute from query vectors: what a server would learn that searched for its devices.

    Devices search by themselves (docs/privacy.md, rule 11); this is why.
    """
    rng = public_rng(seed, ATTRIBUTE, "queries")
    chosen = _draw(world, devices, rng)
    blocks = query_features(world, arrays, chosen)
    yield from _classify("query vector, if one left", "server", world.plan.unit, blocks, chosen, groups, 0.0, rng)


def _classify(
    seen: str,
    adversary: str,
    unit: str,
    blocks: list[Features],
    chosen: Int64[np.ndarray, " devices"],
    groups: Mapping[str, Sequence[str]],
    seconds: float,
    rng: np.random.Generator,
) -> Iterator[Attempt]:
    for attribute, labels in groups.items():
        name = f"{ATTRIBUTE}: {attribute}, {seen}"
        began = time.perf_counter()
        found = infer_attribute(blocks, [labels[device] for device in chosen.tolist()], rng)
        if found is None:
            why = f"fewer than two labels of {attribute} have {SMALLEST} devices"
            yield not_tested(name, adversary, unit, why)
            continue
        guesses, figures = found
        yield to_attempt(
            guesses,
            name=name,
            adversary=adversary,
            unit=unit,
            what=(
                f"A logistic regression, trained on other devices, guessed {attribute} from {seen}; success means "
                "learning who a person is from what leaves the device."
            ),
            claim=None,
            rng=rng,
            seconds=seconds + time.perf_counter() - began,
            detail=figures,
        )


def _draw(world: World, devices: int, rng: np.random.Generator) -> Int64[np.ndarray, " devices"]:
    usable = np.flatnonzero(world.store.counts() >= 2)
    return np.sort(rng.permutation(usable)[:devices]).astype(np.int64)
