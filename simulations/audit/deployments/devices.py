"""Canaries in a deployment: devices of the auditor's, in a round or out of it by coins, against what was released.

A canary is a pair of a device and a round. Where its coin says in, the device answers with a direction of exactly the
clip norm, as a device may; where it says out, the device declines, as one whose budget is spent does. Nothing of the
server is watched or wrapped: each round's noised sum is read back from the releases, with the public optimiser.

The claim that is tested is that of ONE round: its sum, with or without one device (``add_remove``), whose part has norm
C at most, under noise of sigma C, has a mu of 1 / sigma. The sum is divided by the expected cohort whoever declines, so
that a coin changes nothing but its own direction; a round's directions are orthogonal, the noise along them is
independent, and so are the coins. What the other devices send adds to both sides alike, unknown to the auditor.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import AuditResult, clopper_pearson_bound, gaussian_bound, white_box_bound
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.tensors import pack
from fedrecall.server.deployment.job import LEDGER, Job
from fedrecall.server.deployment.publish import RELEASES, found
from fedrecall.server.recall.release import load_release
from fedrecall.server.training import optimiser
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.checks.white_box import SHOWN, power, scored
from fedrecall.simulations.audit.watching.attempt import Attempt, Verdict
from fedrecall.simulations.audit.watching.canaries import Directions, directions
from fedrecall.simulations.audit.watching.trial import FAMILY
from fedrecall.simulations.audit.watching.watch import Flat, flat, shaped

_HALF = 0.5
_BOUNDS: dict[str, Callable[..., AuditResult]] = {
    "white box": partial(white_box_bound, releases=1),
    "Gaussian mu": partial(gaussian_bound, thresholds=[_HALF]),
    "Clopper-Pearson": partial(clopper_pearson_bound, thresholds=[_HALF]),
}
"""From projections in clips, which are 1 higher where the canary is in; the threshold was fixed before any was seen."""
_LEVEL = FAMILY / len(_BOUNDS)


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployedCanaries:
    """The coins and directions of an auditor's devices; theirs alone until the last round is released.

    Attributes:
        coins: which device is in which round.
        seed: of coins and directions.
    """

    coins: Bool[np.ndarray, "rounds devices"]
    seed: int

    @classmethod
    def flip(cls, rounds: int, devices: int, seed: int) -> "DeployedCanaries":
        """Flip an independent fair coin for each device and round; ``seed`` is secret, and drawn at random."""
        rng = np.random.default_rng(derive_seed(seed, "coins in a deployment"))
        return cls(coins=rng.random((rounds, devices)) < _HALF, seed=seed)

    def directions(self, round: int, size: int) -> Directions:
        """Return the directions of ``round`` over ``size`` coordinates, one a device, orthogonal."""
        return directions(self.coins.shape[1], size, derive_seed(self.seed, "round in a deployment", round))

    def answers(self, device: int, job: Job) -> bytes:
        """Return what a device answers: its arrays [rounds, ...] of norm C, and its ``coins`` in the header.

        Raises:
            UsageError: the job's plan, or what it makes of sums, is not one that this audit reads, or has other rounds.
        """
        mechanism = _mechanism(job)
        if len(self.coins) != mechanism.steps:
            raise UsageError(f"coins are for {len(self.coins)} rounds, the plan has {mechanism.steps}: flip so many")
        like, names = job.start(), sorted(job.task.trained)
        size, own = sum(like[name].size for name in names), np.arange(self.coins.shape[1]) == device
        clip_norm = float(mechanism.clip_norm or 0.0)
        rows = [clip_norm * self.directions(r, size).sum(own) for r in range(len(self.coins))]
        each = [shaped(row.astype(np.float32), names, like) for row in rows]
        arrays = {name: np.stack([one[name] for one in each]) for name in names}
        return pack(arrays, {"coins": self.coins[:, device].tolist()})


def audit_deployed(folder: Path, canaries: DeployedCanaries) -> list[Attempt]:
    """Judge a deployment by its job's ``folder``, in which every release still is.

    Raises:
        UsageError: the job is not one that this audit reads, or releases are gone.
        CorruptArtefact: a release is altered, of another plan, or was not charged.
        ScoreError: so few rounds were released that hardly a canary was in, or out.
    """
    job = Job.load(folder)
    mechanism = _mechanism(job)
    scores, coins = [], []
    for round, total in released_sums(job):
        scores.append(canaries.directions(round, total.size).project(total) / float(mechanism.clip_norm or 0.0))
        coins.append(canaries.coins[round])
    values, inside = np.array(scores), np.array(coins, dtype=bool)
    return verdicts(job.task.plan, values[inside], values[~inside])


def released_sums(job: Job) -> Iterator[tuple[int, Flat]]:
    """Yield the noised sum of each round, flat, trained arrays in the order of their names.

    A step of the server's optimiser is linear in the mean that it is given: from the step of a mean of zeros and that
    of a mean of ones follows which mean made the released model. A round that moved nothing was void or was left out
    after a crash, and is passed over. Raises as ``audit_deployed``.
    """
    mechanism, plan, names = _mechanism(job), job.task.plan, sorted(job.task.trained)
    ledger, start = Ledger.read(job.folder / LEDGER), job.start()
    before: Arrays = {name: start[name].astype(np.float64) for name in names}
    state = optimiser.init(job.config, before)
    step = partial(optimiser.step, job.config, rounds=mechanism.steps)
    released = sorted(found(job.folder))
    if released != list(range(1, len(released) + 1)):
        raise UsageError(f"releases of {job.folder} are gone: keep them all (`server init --keep {mechanism.steps}`)")
    for number in released:
        release, round = load_release(job.folder / RELEASES / f"{number:06d}"), number - 1
        if release.manifest.plan_digest != plan.digest() or not ledger.charged(ROUNDS, round):
            raise CorruptArtefact(f"release {number} is of another plan, or was never charged: restore the job")
        after = {name: release.model[name].astype(np.float64) for name in names}
        if all(np.array_equal(after[name], before[name]) for name in names):
            continue
        still, moved = (step(state, before, {n: np.full(a.shape, v) for n, a in before.items()})[0] for v in (0.0, 1.0))
        mean = {name: (after[name] - still[name]) / (moved[name] - still[name]) for name in names}
        yield round, flat(mean, names) * mechanism.sample_rate * plan.devices
        before, state = after, step(state, before, mean)[1]


def _mechanism(job: Job) -> Mechanism:
    """Return the mechanism of the rounds; raises UsageError for a job whose releases do not give its sums away."""
    plan, config, mechanism = job.task.plan, job.config, job.task.plan.mechanism(ROUNDS)
    needs = {
        "unit 'user' and trust 'central'": (plan.unit, plan.trust) == ("user", "central"),
        "sampling 'everyone', a fixed clip and noise": mechanism.sampling == "everyone"
        and mechanism.adaptive_clip is None
        and mechanism.noise_multiplier > 0,
        "server.optimiser 'sgd' or 'fedavgm', and no average": config.optimiser != "fedadam"
        and config.average == "none",
        "no factor 0 among server.learning_rate_scales": all(config.learning_rate_scales.values()),
        "start.enabled=false": job.starting is None,
    }
    for need, met in needs.items():
        if not met:
            raise UsageError(f"{job.folder} cannot be audited from its releases alone: that needs {need}")
    return mechanism


def verdicts(
    plan: Plan, present: Float64[np.ndarray, " trials"], absent: Float64[np.ndarray, " trials"]
) -> list[Attempt]:
    """Return an attempt for each bound: whether a round shows more of a device than ``plan`` claims.

    ``present`` and ``absent`` are projections, in clips, of sums on canaries that were in and that were out. A sound
    server raises any alarm with a probability of at most ``FAMILY``. Raises ScoreError with fewer than two a side.
    """
    mechanism = plan.mechanism(ROUNDS)
    claimed_mu, whole = 1 / mechanism.sum_noise_multiplier, math.sqrt(mechanism.steps)
    attempts = judged(
        plan,
        present,
        absent,
        claimed_mu=claimed_mu,
        adversary="released-model",
        what="Devices of the auditor's answered rounds by fair coins with a contribution of the largest size "
        "that is allowed, and the sums that releases give away were compared with it. Score: a lower bound of "
        "the epsilon of one round.",
    )
    for attempt in attempts:
        mu = attempt.detail["mu"]
        if mu is not None:
            # A device that is in every round: its mu is larger by the root of their number.
            attempt.detail["whole_run"] = gaussian_epsilon(mu * whole, plan.delta)
            attempt.detail["whole_run_claimed"] = gaussian_epsilon(claimed_mu * whole, plan.delta)
    return attempts


def judged(
    plan: Plan,
    present: Float64[np.ndarray, " trials"],
    absent: Float64[np.ndarray, " trials"],
    *,
    claimed_mu: float,
    adversary: str,
    what: str,
    reach: float = 1.0,
) -> list[Attempt]:
    """Return an attempt for each bound on scores that are 1 higher where a canary is in, against ``claimed_mu``.

    A sound deployment raises any alarm with a probability of at most ``FAMILY``; ``reach`` is the share of the largest
    contribution that canaries make, which their power is told by. Raises as ``verdicts``.
    """
    mechanism, began = plan.mechanism(ROUNDS), time.perf_counter()
    claimed = gaussian_epsilon(claimed_mu, plan.delta)
    ideal = np.ones(len(present)), np.zeros(len(absent))
    attempts = []
    for name, bound in _BOUNDS.items():
        judge = partial(bound, delta=plan.delta, relation=mechanism.adjacency)
        shown, decided = judge(present, absent, alpha=SHOWN), judge(present, absent, alpha=_LEVEL)
        most = judge(*ideal, alpha=_LEVEL).epsilon
        # Where not even scores without any noise would refute the claim, a failure to refute it is no evidence.
        verdict: Verdict = "broken" if decided.epsilon > claimed else "held" if most > claimed else "shows"
        seen = f"an epsilon of {most:.2f} at most, were there no noise at all; the claim is {claimed:.2f}"
        if bound is _BOUNDS["white box"]:
            seen = power(len(present), len(absent), 1, claimed_mu, plan.delta, _LEVEL, reach)
        detail = {"mu": shown.mu, "claimed_mu": claimed_mu, "epsilon_at_level": decided.epsilon, "level": _LEVEL}
        detail |= {"mean_in": float(present.mean()), "mean_out": float(absent.mean())}
        attempts.append(
            Attempt(
                name=f"deployed: {name}",
                adversary=adversary,
                unit=plan.unit,
                what=what,
                **scored(shown, claimed),
                power=seen,
                verdict=verdict,
                trials=len(present) + len(absent),
                seconds=round(time.perf_counter() - began, 3),
                detail=detail,
            )
        )
    return attempts
