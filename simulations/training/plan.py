"""From a run's configuration to its privacy plan: which mechanisms release what, with which noise."""

import math
from dataclasses import replace

from fedrecall.privacy.accounting.calibration import fit_noise
from fedrecall.privacy.accounting.delta import delta_for
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.mechanisms.correlated import best_bands
from fedrecall.protocol.plan import AdaptiveClip, Adjacency, Mechanism, Plan
from fedrecall.simulations.config import RunConfig


def plan_for(config: RunConfig, devices: int) -> Plan:
    """Return the plan of a run with ``devices`` enrolled devices.

    With a target epsilon, every mechanism that runs gets its share of mu^2, scaled to sum to 1, and the noise
    follows; without one nothing is clipped or noised, and every adversary is unbounded.
    """
    private = config.privacy.epsilon is not None
    rounds = _rounds(config, devices)
    # A fixed-size cohort is accounted for the replacement of a device, and a plan has one relation.
    adjacency: Adjacency = "replace_one" if rounds.sampling == "fixed_size" else "add_remove"
    mechanisms = []
    if config.start.enabled:
        names = ["popularity"]
        if config.start.items and config.privacy.unit == "user":
            names.append("second_moments")
        mechanisms = [Mechanism(name=name, clip_norm=1.0 if private else None, adjacency=adjacency) for name in names]
    plan = Plan(
        unit=config.privacy.unit,
        trust=config.privacy.trust,
        delta=config.privacy.delta or delta_for(devices),
        devices=devices,
        mechanisms=(*mechanisms, rounds),
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


def bounded_steps(steps: int, passes: float | None, users: int, batch: int) -> int:
    """Return ``steps`` of ``batch`` users, or as many as make ``passes`` over all ``users`` where that is fewer."""
    if passes is None:
        return steps
    return min(steps, max(1, round(passes * users / max(1, min(batch, users)))))


def _rounds(config: RunConfig, devices: int) -> Mechanism:
    """Return the training mechanism without noise yet."""
    private, cohort = config.privacy.epsilon is not None, config.rounds.cohort
    steps = bounded_steps(config.rounds.count, config.rounds.passes, devices, cohort or devices)
    clip_norm = config.privacy.clip_norm if private else None
    adaptive = config.privacy.adaptive_clip
    rounds = Mechanism(
        name="rounds",
        clip_norm=clip_norm,
        steps=steps,
        adjacency="replace_one" if config.privacy.unit == "interaction" else "add_remove",
        adaptive_clip=AdaptiveClip(**adaptive.model_dump()) if adaptive and private else None,
    )
    if cohort is None or cohort >= devices:
        return rounds
    if config.rounds.sampling == "poisson":
        return replace(rounds, sampling="poisson", sample_rate=cohort / devices)
    if config.rounds.sampling == "fixed_size":
        return replace(rounds, sampling="fixed_size", sample_rate=cohort / devices, adjacency="replace_one")
    turns = round(devices / cohort)
    most = max(1, -(-steps // turns))
    bands = config.rounds.bands or best_bands(max(1, steps), most, turns)
    return replace(
        rounds,
        sampling="limited",
        sample_rate=1 / turns,
        adjacency="zero_out",
        participations=most,
        min_gap=turns,
        bands=min(bands, max(1, steps)) if private else 1,
    )


def moment_items(config: RunConfig, plan: Plan, n_items: int) -> int:
    """Return over how many items second moments are taken: a function of public numbers alone.

    More items reach more of what people want and carry more noise. On MovieLens of 943 and 6,040 devices, at epsilon 8,
    2 and 1, the count that did best on validation went with the square root of devices times mu to the 3/4.
    """
    if not any(m.name == "second_moments" for m in plan.mechanisms):
        return 0
    most = min(config.start.items, n_items)
    if config.privacy.epsilon is None:
        return most
    share = config.privacy.shares["second_moments"]
    mu = gaussian_mu(config.privacy.epsilon, plan.delta) * math.sqrt(share)
    wanted = config.start.items_per_signal * math.sqrt(plan.devices) * math.pow(mu, 0.75)
    return min(most, max(50, round(wanted)))
