"""Candidate plans for a budget: cohorts and rounds within bounds, and the noise that each needs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from fedrecall.privacy.accounting.calibration import fit_noise
from fedrecall.privacy.accounting.composition import Composition, pld_epsilon, shift_of
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.mechanisms.correlated import best_bands
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Adjacency, Mechanism, Plan, Sampling, Trust, Unit

ROUNDS, START = "rounds", "start"
SURVIVORS = 2 / 3
"""Trust ``distributed``: noise shares are sized for this part of a cohort."""
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_HALVINGS = 7
_SEARCH = 1e-2


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a plan has to fit.

    Attributes:
        devices: enrolled, a public number.
        epsilon: of the whole plan, against ``released-model``.
        delta: of it.
        unit: of the plan.
        trust: of the plan.
        samplings: kinds of cohorts to look at; empty for those that can pay: Poisson, limited and everyone under
            unit ``user`` and trust ``central``, else everyone.
        share: of the budget's mu^2 for the rounds; what is left goes to a start of one release.
        dimension: how many numbers the rounds train; ``None`` for an answer by direction alone.
        clip_norm: the bound of a device's update. It scales ``noise_of_mean`` and nothing else.
        min_rounds: the fewest rounds that are worth training.
        max_rounds: the most.
        max_cohort: the most devices of a round; ``None`` for no bound.
        max_device_rounds: how often a device may be expected to take part; ``None`` for no bound.
    """

    devices: int
    epsilon: float
    delta: float
    unit: Unit = "user"
    trust: Trust = "central"
    samplings: tuple[Sampling, ...] = ()
    share: float = 1.0
    dimension: int | None = None
    clip_norm: float = 1.0
    min_rounds: int = 10
    max_rounds: int = 1000
    max_cohort: int | None = None
    max_device_rounds: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no plan can fit."""
        for name in ("devices", "min_rounds", "max_cohort", "dimension"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{name} is {value}: choose at least 1")
        if self.max_rounds < self.min_rounds:
            raise PlanError(f"max_rounds is {self.max_rounds}: choose at least min_rounds, {self.min_rounds}")
        if self.max_device_rounds is not None and not self.max_device_rounds > 0:
            raise PlanError(f"max_device_rounds is {self.max_device_rounds}: choose it above 0")
        if not 0.0 < self.share <= 1.0:
            raise PlanError(f"share is {self.share}: choose it above 0 and at most 1")
        for kind in self.samplings:
            if kind not in get_args(Sampling):
                raise PlanError(f"samplings name {kind!r}: choose among {', '.join(get_args(Sampling))}")


def sound_adjacency(unit: Unit, trust: Trust, sampling: Sampling) -> Adjacency:
    """Return the relation that is sound without knowing what a sample is: twice the clip wherever it may be needed.

    Under unit ``interaction`` an event may replace a block; only where it is a sample of its own is ``add_remove``
    enough.
    """
    if sampling == "limited":
        return "zero_out"
    return "replace_one" if unit == "interaction" or trust == "local" or sampling == "fixed_size" else "add_remove"


def _samplings(need: Need) -> tuple[Sampling, ...]:
    if need.samplings:
        return need.samplings
    return ("poisson", "limited", "everyone") if (need.unit, need.trust) == ("user", "central") else ("everyone",)


def candidates(need: Need) -> Iterator[Mechanism]:
    """Yield the training mechanisms within the bounds, without noise yet."""
    steps = sorted({s for s in _STEPS if need.min_rounds <= s <= need.max_rounds} | {need.min_rounds, need.max_rounds})
    largest = min(need.max_cohort or need.devices, need.devices)
    cohorts = sorted({max(1, largest >> i) for i in range(_HALVINGS)} - {need.devices}, reverse=True)
    for sampling in _samplings(need):
        for cohort in [need.devices] * (largest == need.devices) if sampling == "everyone" else cohorts:
            for rounds in steps:
                mechanism = _mechanism(need, sampling, cohort, rounds)
                if mechanism and device_rounds(mechanism) <= (need.max_device_rounds or math.inf):
                    yield mechanism


def _mechanism(need: Need, sampling: Sampling, cohort: int, rounds: int) -> Mechanism | None:
    """Return the training mechanism of these rounds; ``None`` when devices in turn would not come round once."""
    mechanism = Mechanism(
        name=ROUNDS,
        clip_norm=need.clip_norm,
        steps=rounds,
        adjacency=sound_adjacency(need.unit, need.trust, "everyone"),
        min_survivors=_survivors(need, cohort),
    )
    rate, adjacency = cohort / need.devices, sound_adjacency(need.unit, need.trust, sampling)
    if sampling != "limited":
        return replace(mechanism, sampling=sampling, sample_rate=rate, adjacency=adjacency)
    turns = round(need.devices / cohort)
    turns += need.devices / turns > min(need.max_cohort or need.devices, need.devices)
    if turns > rounds:
        return None
    times = -(-rounds // turns)
    return replace(
        mechanism,
        sampling=sampling,
        sample_rate=1 / turns,
        adjacency=adjacency,
        participations=times,
        min_gap=turns,
        bands=best_bands(rounds, times, turns),
    )


def amplified(need: Need, mechanism: Mechanism) -> bool:
    """Return whether secret sampling amplifies the mechanism against ``released-model``."""
    amplifies = (need.unit, need.trust) == ("user", "central")
    return amplifies and mechanism.sampling in ("poisson", "fixed_size") and mechanism.sample_rate < 1


def search(need: Need, mechanism: Mechanism) -> float:
    """Return a noise multiplier that spends the budget, off by about 0.2 %.

    A fixed-size cohort is ranked as if by coins, because its own accountant takes a hundred times as long.
    """
    if not amplified(need, mechanism):
        return without_coins(need, mechanism).mechanism(ROUNDS).noise_multiplier
    mu_squared = gaussian_mu(need.epsilon, need.delta) ** 2
    start = (1 - need.share) * mu_squared

    def over(log_sigma: float) -> float:
        sampled = (((mechanism.sample_rate, math.exp(log_sigma), mechanism.adjacency), mechanism.steps),)
        spent = pld_epsilon(Composition(mu_squared=start, sampled=sampled), need.delta, _SEARCH)
        return math.log(max(spent, 1e-9) / need.epsilon)

    # The central limit (Bu and others 2020) says where to look, and nothing more.
    steps, rate = mechanism.steps, mechanism.sample_rate * shift_of(mechanism.adjacency)
    at = -0.5 * math.log(math.log1p(need.share * mu_squared / (steps * rate**2)))
    before, missed_before = at - 0.05, over(at - 0.05)
    for _ in range(20):
        missed = over(at)
        if abs(missed) < 2e-3:
            break
        slope = min(-0.2, (missed - missed_before) / (at - before))
        before, missed_before, at = at, missed, at - max(-1.0, min(1.0, missed / slope))
    return math.exp(at)


def without_coins(need: Need, mechanism: Mechanism) -> Plan:
    """Return the plan of ``mechanism``, with the start if there is one, and its noise where nothing is amplified."""
    shares = {ROUNDS: need.share} | ({START: 1 - need.share} if need.share < 1 else {})
    return fit_noise(_plan(need, mechanism), need.epsilon, shares)


def _plan(need: Need, mechanism: Mechanism) -> Plan:
    replaces = mechanism.adjacency == "replace_one" and need.unit == "user"
    start = Mechanism(
        name=START,
        clip_norm=1.0,
        adjacency="replace_one" if replaces else "add_remove",
        min_survivors=_survivors(need, need.devices),
    )
    return Plan(
        unit=need.unit,
        trust=need.trust,
        delta=need.delta,
        devices=need.devices,
        mechanisms=(start, mechanism) if need.share < 1 else (mechanism,),
    )


def _survivors(need: Need, cohort: int) -> int:
    return max(1, math.floor(cohort * SURVIVORS)) if need.trust == "distributed" else 0


def device_rounds(mechanism: Mechanism) -> float:
    """Return how often a device is expected to take part; its most under ``limited``."""
    return float(mechanism.participations or mechanism.sample_rate * mechanism.steps)
