"""From a target epsilon to noise: the inverse of the accountant.

Budgets are shared out as mu^2, because that is what adds up over Gaussian releases (see
``fedrecall.privacy.accounting.gaussian``). Every result is checked with the accountant itself: at most the target, and
no further than ``TOLERANCE`` below it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedrecall.privacy.accounting.accounting import account_adversary, shift
from fedrecall.privacy.accounting.composition import COARSE, FINE, total_sensitivity
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan

TOLERANCE = 1e-3
_LIMIT = 2.0**30


def calibrate(plan_of: Callable[[float], Plan], target_epsilon: float) -> float:
    """Return the smallest scale whose plan keeps ``released-model`` within ``target_epsilon``.

    ``plan_of(scale)`` is a plan whose epsilon falls as ``scale`` grows (a noise multiplier, or a factor on
    several). Guaranteed: ``account(plan_of(scale))`` gives at most the target, and at least the target minus
    1e-3 (1 % of the target, if that is less).

    Raises:
        PlanError: the target is not a finite number above 0, a mechanism has no noise, or no scale reaches
            the target (other mechanisms of the plan spend more already, or it is met at every scale).
    """
    _check_target(target_epsilon)
    slack = min(TOLERANCE, target_epsilon / 100)
    for interval in (
        COARSE,
        FINE,
    ):  # the coarse accountant is ten times as fast and nearly always close enough
        scale = _solve(plan_of, target_epsilon, slack, interval)
        if target_epsilon - slack <= _spent(plan_of(scale), FINE) <= target_epsilon:
            return scale
    raise PlanError(f"target_epsilon is {target_epsilon}: epsilon jumps over it; plan_of must be continuous")


def split_budget(
    epsilon: float, delta: float, shares: Mapping[str, float], steps: Mapping[str, int]
) -> dict[str, float]:
    """Return the noise multiplier of each mechanism when each gets its share of mu^2, everyone taking part.

    Args:
        epsilon: the whole budget, above 0.
        delta: between 0 and 1.
        shares: mechanism -> share of mu^2; each above 0, their sum 1.
        steps: mechanism -> number of releases, at least 1; the same names.

    The multipliers are for ``add_remove``; ``replace_one`` needs twice as much. The plan then accounts to at
    most ``epsilon`` and at least ``epsilon`` - 1e-3.
    """
    _check_target(epsilon)
    _check_shares(shares, steps)
    # The PLD reports a hair more than the closed form: leave it a tenth of the tolerance.
    mu = gaussian_mu(epsilon - min(TOLERANCE, epsilon / 100) / 10, delta)
    return {name: math.sqrt(steps[name] / share) / mu for name, share in shares.items()}


def fit_noise(plan: Plan, epsilon: float, shares: Mapping[str, float]) -> Plan:
    """Return ``plan`` with every noise multiplier set so that ``released-model`` spends ``epsilon``.

    Mechanisms without a secret sample get their share of the mu^2 of ``epsilon``. Sampled ones get
    what is left: their multipliers stand in the proportion that their shares would ask for without
    sampling, and one factor on them is solved for, so that amplification becomes less noise. Beside a
    fixed-size cohort the factor is on all mechanisms.
    ``replace_one`` is allowed for. The guarantee is that of ``calibrate``.

    Raises:
        PlanError: as ``calibrate`` and ``split_budget``; also when ``shares`` does not name the plan's
            mechanisms with steps, or one of them has no ``clip_norm``.
    """
    active = {m.name: m for m in plan.mechanisms if m.steps > 0}
    unclipped = [name for name, m in active.items() if m.clip_norm is None]
    if unclipped:
        raise PlanError(f"clip_norm of {', '.join(unclipped)} is missing: noise protects nothing without a clip")
    once = split_budget(epsilon, plan.delta, shares, dict.fromkeys(active, 1))
    multipliers = {name: once[name] * shift(plan, m) * total_sensitivity(m) for name, m in active.items()}
    kinds = {name: m.sampling for name, m in active.items() if m.sample_rate < 1}
    # Renyi divergences charge every mechanism more than its share: one factor on them all.
    by_renyi = "fixed_size" in kinds.values()
    sampled = set(active) if by_renyi else {name for name, kind in kinds.items() if kind == "poisson"}

    def with_noise(factor: float) -> Plan:
        mechanisms = [
            replace(
                m,
                noise_multiplier=multipliers[m.name] * (factor if m.name in sampled else 1.0),
            )
            if m.name in active
            else m
            for m in plan.mechanisms
        ]
        return replace(plan, mechanisms=tuple(mechanisms))

    if not sampled:
        return with_noise(1.0)
    return with_noise(calibrate(with_noise, epsilon))


def _solve(plan_of: Callable[[float], Plan], target: float, slack: float, interval: float) -> float:
    """Find a scale with epsilon well inside [target - slack, target]: bracket, then false position."""
    goal = target - slack / 2

    def gap(log_scale: float) -> float:
        return math.log(max(_spent(plan_of(math.exp(log_scale)), interval), 1e-12) / goal)

    low = high = 0.0
    gap_low = gap_high = gap(0.0)
    while gap_high > 0:
        low, gap_low, high = high, gap_high, high + 1.0
        if high > math.log(_LIMIT):
            raise PlanError(f"target_epsilon is {target}: no noise reaches it; other mechanisms spend more already")
        gap_high = gap(high)
    while gap_low < 0:
        high, gap_high, low = low, gap_low, low - 1.0
        if low < -math.log(_LIMIT):
            raise PlanError(f"target_epsilon is {target}: every scale stays below it; lower it, or check plan_of")
        gap_low = gap(low)
    side = 0
    for _ in range(200):
        middle = (low * gap_high - high * gap_low) / (gap_high - gap_low)
        value = gap(middle)
        if abs(math.expm1(value)) * goal <= slack / 4:
            break
        if value > 0:
            low, gap_low = middle, value
            gap_high = gap_high / 2 if side > 0 else gap_high
            side = 1
        else:
            high, gap_high = middle, value
            gap_low = gap_low / 2 if side < 0 else gap_low
            side = -1
    return math.exp(middle)


def _spent(plan: Plan, interval: float) -> float:
    row = account_adversary(plan, "released-model", interval)
    if row.epsilon is None:
        raise PlanError(f"the plan cannot be calibrated: {row.reason}; give every mechanism noise and a clip")
    return row.epsilon


def _check_target(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PlanError(f"target epsilon is {epsilon}: choose a finite one above 0")


def _check_shares(shares: Mapping[str, float], steps: Mapping[str, int]) -> None:
    if set(shares) != set(steps):
        raise PlanError(f"shares name {sorted(shares)}, the mechanisms are {sorted(steps)}: give each one share")
    for name, share in shares.items():
        if not share > 0:
            raise PlanError(f"shares.{name} is {share}: choose it above 0, or leave the mechanism out of the plan")
        if steps[name] < 1:
            raise PlanError(f"steps.{name} is {steps[name]}: choose at least 1")
    if abs(sum(shares.values()) - 1.0) > 1e-9:
        raise PlanError(f"shares sum to {sum(shares.values())}: they share out one budget, make it 1")
