"""How long a history is, from how long a device takes to answer and how much it sends: what a network sees.

The size is the same for all by design. The time is measured on the device path, one device after another on this
machine: other programs that run on it only blur it, and a real device's own speed would blur it more.
"""

import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

from fedrecall.client.training.trainer import Device
from fedrecall.models.recall import initial_arrays
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.randomness import derive_seed, public_rng
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.tensors import pack
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.attacks.scores import Guesses, halves, not_tested, to_attempt
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.training.world import World, trainer_of

LENGTH = "history length"
REPEATS = 5
"""Rounds over which the adversary takes the median of a device's times."""

_ADVERSARY = "network"
_SLACK = 2.0
"""A fixed wait is so many times the slowest answer of the devices that it was chosen on."""


def attack_timing(world: World, arrays: Arrays, *, devices: int, seed: int) -> Iterator[Attempt]:
    """Yield the attempts on the time of an answer, on that time with a fixed wait, and on the size of an update.

    Args:
        world: of the run.
        arrays: the released model.
        devices: so many with the fewest events, and with the most, in all.
        seed: of noise and order.
    """
    began = time.perf_counter()
    rng = public_rng(seed, LENGTH)
    chosen, longer = shortest_and_longest(world.store.counts(), devices)
    unit = world.plan.unit
    if not longer.any() or longer.all():
        yield not_tested(f"{LENGTH}: time of an answer", _ADVERSARY, unit, "all histories are of one length")
        return
    times, sizes = answers(world, arrays, chosen, rng, seed)
    # The wait is chosen on half of the devices, and judged on the others.
    judged = ~halves(chosen, rng)
    wait = _SLACK * float(times[~judged].max())
    guesses = Guesses(scores=np.median(times, axis=1), truth=longer, clusters=chosen)
    waited = Guesses(scores=np.median(np.maximum(times, wait), axis=1), truth=longer, clusters=chosen).of(judged)
    detail = _figures(world.store.counts()[chosen], guesses, wait)
    for name, seen, words in (
        ("time of an answer", guesses, ""),
        ("time of an answer, sent after a fixed wait", waited, ", where every device waits as long before it sends"),
    ):
        yield to_attempt(
            seen,
            name=f"{LENGTH}: {name}",
            adversary=_ADVERSARY,
            unit=unit,
            what=(
                "Devices with long histories were told from those with short ones by the time that they took to "
                f"answer a round, the median of {REPEATS}{words}; success means learning how active somebody is."
            ),
            claim=None,
            rng=rng,
            seconds=time.perf_counter() - began,
            detail=detail,
        )
        began = time.perf_counter()
    yield _sizes(unit, sizes)


def shortest_and_longest(
    counts: Int64[np.ndarray, " devices"], devices: int
) -> tuple[Int64[np.ndarray, " chosen"], np.ndarray]:
    """Return as many devices with the fewest events (at least 2) as with the most, and which are which."""
    usable = np.flatnonzero(counts >= 2)
    order = usable[np.argsort(counts[usable], kind="stable")]
    side = min(devices // 2, len(order) // 2)
    chosen = np.concatenate([order[:side], order[len(order) - side :]]).astype(np.int64)
    # Devices as long as the longest of the short ones are neither: without them the two sides differ.
    longer = np.arange(len(chosen)) >= side
    differ = ~longer | (counts[chosen] > counts[chosen[:side]].max(initial=0))
    return chosen[differ], longer[differ]


def answers(
    world: World, arrays: Arrays, devices: Int64[np.ndarray, " devices"], rng: np.random.Generator, seed: int
) -> tuple[Float64[np.ndarray, "devices rounds"], Int64[np.ndarray, "devices rounds"]]:
    """Return the seconds that each device took for each of some rounds, and the bytes that it then sent."""
    trainer = trainer_of(world)
    fresh = initial_arrays(world.shape, derive_seed(world.config.seed, "model"))
    trains = world.config.local.tower_learning_rate > 0
    clip_norm = world.plan.mechanism(ROUNDS).clip_norm
    times = np.zeros((len(devices), REPEATS))
    sizes = np.zeros((len(devices), REPEATS), dtype=np.int64)
    # Round -1 warms up: the first answers of a process are slow whoever gives them.
    for round in range(-1, REPEATS):
        for place in rng.permutation(len(devices)).tolist():
            number = int(devices[place])
            tower = {name: weight.clone() for name, weight in fresh.items() if name.startswith("user.") and trains}
            device = Device(store=world.store.only(number), key=number, tower=tower)
            noise = SeededNoise(seed, "timing", number, round)
            clock = time.perf_counter()
            update = trainer.update(max(0, round), arrays, device, noise, clip_norm=clip_norm)
            data = pack(update.arrays, {"round": update.round, "nonce": update.nonce})
            if round >= 0:
                times[place, round], sizes[place, round] = time.perf_counter() - clock, len(data)
    return times, sizes


def _figures(counts: Int64[np.ndarray, " devices"], guesses: Guesses, wait: float) -> dict[str, float]:
    """Return medians of both sides, for the report."""
    found = {"wait_ms": 1e3 * wait}
    for side, which in (("short", ~guesses.truth), ("long", guesses.truth)):
        found[f"median_ms_{side}"] = 1e3 * float(np.median(guesses.scores[which]))
        found[f"events_{side}"] = float(np.median(counts[which]))
    return found


def _sizes(unit: str, sizes: Int64[np.ndarray, "devices rounds"]) -> Attempt:
    different = int(sum(len(np.unique(row)) - 1 for row in sizes.T))
    return Attempt(
        name=f"{LENGTH}: size of an update",
        adversary=_ADVERSARY,
        unit=unit,
        what=(
            "The updates of devices with short and with long histories were compared in size, as they are packed; "
            "counted are sizes beyond the first of a round, of which there must be none."
        ),
        score=float(different),
        metric="hits",
        chance=0.0,
        power="one byte more or less, of any device",
        verdict="broken" if different else "held",
        trials=int(sizes.size),
        seconds=0.0,
        detail={"bytes": int(sizes.max())},
    )
