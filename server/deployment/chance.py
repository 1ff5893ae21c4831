"""Where a job's chance comes from: the operating system's generator in earnest, seeds in a simulation."""

import os
import secrets

import numpy as np

from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.task import Task
from fedrecall.server.training.rounds import ROUNDS


def noise_of(task: Task, mechanism: str, round: int) -> NoiseSource:
    """Return the server's noise of one release."""
    plan = task.plan
    return SeededNoise(task.seed, plan.digest(), mechanism, round) if plan.simulated else SecureNoise()


def key_of(task: Task, mechanism: str, round: int) -> str:
    """Return what names that noise in the ledger: the same for a replay that draws the same noise, else a nonce."""
    plan = task.plan
    simulated = f"{derive_seed(task.seed, 'noise', plan.digest(), mechanism, round):032x}"
    return simulated if plan.simulated else secrets.token_hex(16)


def coins_of(task: Task, round: int) -> np.random.Generator:
    """Return what draws a round's cohort."""
    if task.plan.simulated:
        return np.random.default_rng(derive_seed(task.seed, "cohort", task.plan.digest(), round))
    return SecretCoins()


def secret_cohorts(plan: Plan) -> bool:
    """Whether the plan claims amplification by sampling: then nothing may tell who or how many took part (rule 7)."""
    return plan.mechanism(ROUNDS).sampling in ("poisson", "fixed_size")


class SecretCoins(np.random.Generator):
    """Uniform numbers and subsets from the operating system's generator: nobody can foretell a cohort."""

    def __init__(self) -> None:
        super().__init__(np.random.Philox(secrets.randbits(128)))

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        """Return ``size`` numbers in [0, 1), 53 secure bits each."""
        bits = np.frombuffer(os.urandom(8 * size), dtype="<u8")
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def choice(self, a: np.ndarray, size: int, replace: bool) -> np.ndarray:  # type: ignore[override]
        """Return a uniform subset of ``a`` with ``size`` members, without replacement."""
        if replace:
            raise PlanError("a cohort is drawn without replacement")
        return np.asarray(a)[np.argsort(self.random(len(a)), kind="stable")[:size]]
