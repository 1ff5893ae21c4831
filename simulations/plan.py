"""From a run's configuration to its privacy plan: which mechanisms release what, with which noise."""

import math

from fedrecall.privacy.calibration import fit_noise
from fedrecall.privacy.gaussian import gaussian_mu
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.simulations.config import RunConfig


def plan_for(config: RunConfig, devices: int) -> Plan:
    """Return the plan of a run with ``devices`` enrolled devices.

    With a target epsilon, every mechanism that runs gets its share of mu^2, scaled to sum to 1, and the noise
    follows; without one nothing is clipped or noised, and every adversary is unbounded.
    """
    private = config.privacy.epsilon is not None
    cohort = config.rounds.cohort
    sampled = cohort is not None and cohort < devices
    mechanisms = []
    if config.start.enabled:
        mechanisms.append(Mechanism(name="popularity", clip_norm=1.0 if private else None))
        if config.start.items and config.privacy.unit == "user":
            mechanisms.append(Mechanism(name="second_moments", clip_norm=1.0 if private else None))
    mechanisms.append(
        Mechanism(
            name="rounds",
            sampling="poisson" if sampled else "everyone",
            sample_rate=cohort / devices if cohort is not None and sampled else 1.0,
            clip_norm=config.privacy.clip_norm if private else None,
            steps=config.rounds.count,
            adjacency="replace_one" if config.privacy.unit == "interaction" else "add_remove",
        )
    )
    plan = Plan(
        unit=config.privacy.unit,
        trust=config.privacy.trust,
        delta=config.privacy.delta,
        devices=devices,
        mechanisms=tuple(mechanisms),
        simulated=True,
    )
    if config.privacy.epsilon is None:
        return plan
    running = {m.name for m in plan.mechanisms if m.steps > 0}
    shares = {name: share for name, share in config.privacy.shares.items() if name in running}
    if not running:
        return plan
    total = sum(shares.values())
    return fit_noise(plan, config.privacy.epsilon, {name: share / total for name, share in shares.items()})


def moment_items(config: RunConfig, plan: Plan, n_items: int) -> int:
    """Return over how many items second moments are taken: a function of public numbers alone.

    The noise's largest eigenvalue grows with sqrt(items) and the signal's with devices, so the count that pays grows
    with devices times mu.
    """
    if not any(m.name == "second_moments" for m in plan.mechanisms):
        return 0
    most = min(config.start.items, n_items)
    if config.privacy.epsilon is None:
        return most
    share = config.privacy.shares["second_moments"]
    mu = gaussian_mu(config.privacy.epsilon, config.privacy.delta) * math.sqrt(share)
    return min(most, max(50, round(config.start.items_per_signal * plan.devices * mu)))
