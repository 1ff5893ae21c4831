"""The noise of a simulation: a function of seed, plan, mechanism and round, so that a replay draws it again.

Whoever knows the seed can subtract it (docs/privacy.md, rule 9): what it touches is stamped ``simulated``.
"""

import numpy as np

from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.training.world import World


def noise_key(world: World, mechanism: str, round: int) -> str:
    """Return the ledger's name of the noise of one release: a digest of seed, plan, mechanism and round."""
    return f"{derive_seed(world.config.seed, 'noise', world.plan.digest(), mechanism, round):032x}"


def server_noise(world: World, mechanism: str, round: int) -> SeededNoise:
    """Return the noise of one release; a replay draws it again."""
    return SeededNoise(world.config.seed, world.plan.digest(), mechanism, round)


def released_locally(world: World, mechanism: Mechanism, cohort: CohortSum, *, round: int = 0) -> CohortSum:
    """Under trust ``local``, add the noise of all devices to their sum: one draw, sqrt(devices) times as large."""
    if world.plan.trust != "local":
        return cohort
    rng = SeededNoise(world.config.seed, world.plan.digest(), "devices", mechanism.name, round)
    std = mechanism.noise_multiplier * (mechanism.clip_norm or 0.0) * np.sqrt(cohort.devices)
    noised = {n: cohort.arrays[n] + rng.normal(cohort.arrays[n].shape, std) for n in sorted(cohort.arrays)}
    return CohortSum(round=cohort.round, devices=cohort.devices, arrays=noised)
