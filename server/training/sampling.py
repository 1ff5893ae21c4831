"""Who takes part in a round: the sampler does exactly what the accountant was told."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Sampling


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Draws the cohort of each round: the only sampler that the round loop uses.

    Attributes:
        sampling: as in ``Mechanism``.
        sample_rate: expected share of the devices in a round.
        devices: number of enrolled devices.
        coins: the generator of a round's cohort. It must be secret wherever the plan claims amplification: one over
            a cryptographic source in a deployment, a keyed one in a simulation, which is stamped ``simulated``.
    """

    sampling: Sampling
    sample_rate: float
    devices: int
    coins: Callable[[int], np.random.Generator]

    @classmethod
    def of(cls, mechanism: Mechanism, devices: int, coins: Callable[[int], np.random.Generator]) -> "Sampler":
        """Return the sampler that ``mechanism`` states."""
        return cls(sampling=mechanism.sampling, sample_rate=mechanism.sample_rate, devices=devices, coins=coins)

    def draw(self, round: int) -> Int64[np.ndarray, "cohort"]:
        """Return the device numbers of ``round``'s cohort, in increasing order; nobody is back-filled."""
        if self.sampling == "everyone":
            return everyone(self.devices)
        if self.sampling == "poisson":
            return poisson(self.devices, self.sample_rate, self.coins(round))
        if self.sampling == "fixed_size":
            return fixed_size(self.devices, int(np.rint(self.sample_rate * self.devices)), self.coins(round))
        return in_turn(self.devices, int(np.rint(1.0 / self.sample_rate)), round)


def everyone(devices: int) -> Int64[np.ndarray, "devices"]:
    """Return all device numbers, 0 to ``devices - 1``."""
    if devices < 0:
        raise PlanError(f"devices is {devices}: choose 0 or more")
    return np.arange(devices, dtype=np.int64)


def poisson(devices: int, sample_rate: float, rng: np.random.Generator) -> Int64[np.ndarray, "cohort"]:
    """Let each of ``devices`` join by its own coin. The cohort's size varies, may be 0, and is as secret as the coins.

    Raises:
        PlanError: ``sample_rate`` lies outside (0, 1], or ``devices`` is negative.
    """
    if not 0.0 < sample_rate <= 1.0:
        raise PlanError(f"sample_rate is {sample_rate}: choose it above 0 and at most 1")
    # One coin a device even at rate 1: random() is below 1 always, so rate 1 takes everyone.
    return np.flatnonzero(rng.random(everyone(devices).size) < sample_rate).astype(np.int64, copy=False)


def fixed_size(devices: int, size: int, rng: np.random.Generator) -> Int64[np.ndarray, "cohort"]:
    """Draw a uniform subset of ``size`` devices, without replacement."""
    if not 1 <= size <= devices:
        raise PlanError(f"cohort size is {size}: choose it from 1 to the {devices} devices")
    return np.sort(rng.choice(everyone(devices), size=size, replace=False))


def in_turn(devices: int, turns: int, round: int) -> Int64[np.ndarray, "cohort"]:
    """Return every ``turns``-th device, another one each round: each device joins exactly every ``turns`` rounds."""
    if turns < 1:
        raise PlanError(f"turns is {turns}: choose at least 1")
    return np.arange(round % turns, devices, turns, dtype=np.int64)
