"""Who takes part in a round: the sampler does exactly what the accountant was told."""

import numpy as np
from jaxtyping import Int64

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism


def draw_cohort(mechanism: Mechanism, devices: int, rng: np.random.Generator) -> Int64[np.ndarray, "cohort"]:
    """Draw one round's cohort as ``mechanism`` states it: the only sampler that the round loop uses."""
    if mechanism.sampling == "everyone":
        return everyone(devices)
    return poisson(devices, mechanism.sample_rate, rng)


def everyone(devices: int) -> Int64[np.ndarray, "devices"]:
    """Return all device numbers, 0 to ``devices - 1``."""
    if devices < 0:
        raise PlanError(f"devices is {devices}: choose 0 or more")
    return np.arange(devices, dtype=np.int64)


def poisson(devices: int, sample_rate: float, rng: np.random.Generator) -> Int64[np.ndarray, "cohort"]:
    """Let each of ``devices`` join by its own coin; returns those that did, in increasing order.

    The cohort's size varies, may be 0, and is as secret as the coins. ``rng`` must be secret wherever the
    plan claims amplification: a generator over a cryptographic source in a deployment, a keyed one in a
    simulation, which is stamped ``simulated``. Nobody is back-filled.

    Raises:
        PlanError: ``sample_rate`` lies outside (0, 1], or ``devices`` is negative.
    """
    if not 0.0 < sample_rate <= 1.0:
        raise PlanError(f"sample_rate is {sample_rate}: choose it above 0 and at most 1")
    # One coin a device even at rate 1: random() is below 1 always, so rate 1 takes everyone.
    return np.flatnonzero(rng.random(everyone(devices).size) < sample_rate).astype(np.int64, copy=False)
