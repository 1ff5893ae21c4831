"""Questions in plain numbers: the plan of so many releases, the noise that a promise needs, what fits a budget.

A plan with several mechanisms is put together from ``Mechanism`` and ``Plan`` themselves.
"""

from typing import TypedDict, Unpack

from fedrecall.privacy.accounting.calibration import fit_noise
from fedrecall.privacy.accounting.candidates import Need, sound_adjacency
from fedrecall.privacy.accounting.delta import delta_for
from fedrecall.privacy.accounting.planner import Fit, fit_plans
from fedrecall.privacy.mechanisms.correlated import best_bands
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Adjacency, Mechanism, Plan, Sampling, Trust, Unit

RELEASE = "release"
"""Name of a plan's one mechanism."""


class Terms(TypedDict, total=False):
    """Who takes part in a release, who adds the noise, and what neighbours differ in.

    Attributes:
        sampling: who takes part; by the other terms if absent.
        sample_rate: share of the devices in a release.
        cohort_size: instead of the rate, with ``devices``: devices of a release.
        devices: enrolled.
        participations: ``limited``: the most often that one takes part.
        min_gap: ``limited``: its rounds lie at least so far apart.
        bands: ``limited``: rounds of correlated noise; the best if absent.
        unit: what neighbours differ in.
        trust: who adds the noise.
        adjacency: how neighbours differ; if absent what is sound for unit, trust and sampling.
        min_survivors: below so many contributions a release is void.
        colluders: ``distributed``: survivors whose noise may be known.
    """

    sampling: Sampling | None
    sample_rate: float | None
    cohort_size: int | None
    devices: int | None
    participations: int | None
    min_gap: int | None
    bands: int | None
    unit: Unit
    trust: Trust
    adjacency: Adjacency | None
    min_survivors: int
    colluders: int


def plan(
    *,
    delta: float,
    steps: int,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    **terms: Unpack[Terms],
) -> Plan:
    """Return the plan of ``steps`` releases with a given noise, or with the noise that spends ``epsilon``.

    The clip is 1, so that noise is in units of it. ``fedrecall.privacy.account`` says what the plan promises.

    Raises:
        PlanError: neither or both of ``epsilon`` and ``noise_multiplier``, or terms that do not fit together.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise PlanError(f"epsilon is {epsilon}, noise_multiplier is {noise_multiplier}: give one of them")
    unit, trust = terms.get("unit", "user"), terms.get("trust", "central")
    survivors, colluders = terms.get("min_survivors", 0), terms.get("colluders", 0)
    if trust == "distributed" and survivors <= colluders:
        raise PlanError(f"min_survivors is {survivors}: it must be above colluders, {colluders}; they share the noise")
    found = Plan(
        unit=unit,
        trust=trust,
        delta=delta,
        devices=terms.get("devices") or max(1, survivors),
        mechanisms=(_release(steps, noise_multiplier or 0.0, unit, trust, terms),),
        colluders=colluders,
    )
    return found if epsilon is None else fit_noise(found, epsilon, {RELEASE: 1.0})


def calibrate(epsilon: float, delta: float, steps: int, **terms: Unpack[Terms]) -> float:
    """Return the noise multiplier with which ``steps`` releases spend ``epsilon`` against ``released-model``.

    It is the standard deviation of the noise in the sum over the clip norm. Raises PlanError as ``plan`` does.
    """
    return plan(delta=delta, steps=steps, epsilon=epsilon, **terms).mechanism(RELEASE).noise_multiplier


def fit(
    devices: int,
    epsilon: float,
    delta: float | None = None,
    *,
    most: int = 8,
    sampling: Sampling | None = None,
    unit: Unit = "user",
    trust: Trust = "central",
    share: float = 1.0,
    dimension: int | None = None,
    min_rounds: int = 10,
    max_rounds: int = 1000,
    max_cohort: int | None = None,
    max_device_rounds: float | None = None,
) -> list[Fit]:
    """Return at most ``most`` plans that fit a budget, a number of devices and what each may spend.

    Arguments are as in ``Need``; ``sampling`` is one kind of cohort, or all that can pay. Raises PlanError where no
    plan fits, or the budget is none.
    """
    return fit_plans(
        Need(
            devices=devices,
            epsilon=epsilon,
            delta=delta_for(devices) if delta is None else delta,
            unit=unit,
            trust=trust,
            samplings=(sampling,) if sampling else (),
            share=share,
            dimension=dimension,
            min_rounds=min_rounds,
            max_rounds=max_rounds,
            max_cohort=max_cohort,
            max_device_rounds=max_device_rounds,
        ),
        most,
    )


def _release(steps: int, noise_multiplier: float, unit: Unit, trust: Trust, terms: Terms) -> Mechanism:
    """Return the mechanism that the terms describe."""
    rate, cohort, devices = terms.get("sample_rate"), terms.get("cohort_size"), terms.get("devices")
    if cohort is not None:
        if devices is None or rate is not None:
            raise PlanError(f"cohort_size is {cohort}, a share of devices: give devices with it, and no sample_rate")
        rate = cohort / devices
    sampling, participations, min_gap = terms.get("sampling"), terms.get("participations"), terms.get("min_gap")
    bands = terms.get("bands")
    limited = sampling == "limited" or (sampling is None and participations is not None)
    if limited and participations and min_gap:
        rate = rate or 1 / max(min_gap, -(-steps // participations))
        bands = bands or best_bands(steps, participations, min_gap)
    rate = 1.0 if rate is None else rate
    kind: Sampling = sampling or ("limited" if limited else "everyone" if rate == 1.0 else "poisson")
    return Mechanism(
        name=RELEASE,
        sampling=kind,
        sample_rate=rate,
        noise_multiplier=noise_multiplier,
        clip_norm=1.0,
        steps=steps,
        adjacency=terms.get("adjacency") or sound_adjacency(unit, trust, kind),
        participations=participations,
        min_gap=min_gap,
        bands=bands or 1,
        min_survivors=terms.get("min_survivors", 0),
    )
