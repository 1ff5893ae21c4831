"""The sampler against what the accountant was told: cohorts drawn again from the run's coins, and counted."""

import time

import numpy as np
from scipy.stats import chi2

from fedrecall.simulations.audit.checks.normality import normal_p, variance_p
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, LEVEL, Trial

_DRAWS = 400
_TESTS = 3


def sampler(trial: Trial) -> list[Attempt]:
    """Compare the cohorts of many rounds with the plan's sampling, and those of the run with the sampler's."""
    mechanism, devices = trial.rounds, trial.plan.devices
    if not mechanism.steps:
        return []
    began = time.perf_counter()
    drawn = [trial.wired[1].sampler.draw(round) for round in range(_DRAWS)]
    asked = {r.round: r.cohort for r in trial.noise.rounds}
    again = {n: drawn[n] if n < _DRAWS else trial.wired[1].sampler.draw(n) for n in asked}
    wrong = [f"round {n}: the cohort is not the sampler's" for n, c in asked.items() if not np.array_equal(c, again[n])]
    twice = any(len(np.unique(cohort)) < len(cohort) for cohort in (*drawn, *asked.values()))
    wrong += ["a device is asked twice in one round"] if twice else []
    p: dict[str, float] = {}
    member = np.zeros((_DRAWS, devices), dtype=bool)
    for row, cohort in zip(member, drawn, strict=True):
        row[cohort] = True
    rate = mechanism.sample_rate
    if mechanism.sampling == "poisson":
        p = _poisson(member, rate)
    elif mechanism.sampling == "everyone":
        wrong += [] if member.all() else ["a device was left out, and the plan says everyone"]
    elif mechanism.sampling == "fixed_size":
        size = round(rate * devices)
        wrong += [] if (member.sum(axis=1) == size).all() else [f"a cohort is not of the {size} devices stated"]
        p = {"devices": _devices(member, rate), "overlap": _overlap(member, rate, fixed=True)}
    else:
        wrong += _in_turn(member[: mechanism.steps], mechanism.participations or 0, mechanism.min_gap or 0)
    worst = min(p.values(), default=1.0)
    if worst < LEVEL / _TESTS:
        wrong.append(f"cohorts are not drawn as stated (p {worst:.1e})")
    said = f"; found: {'; '.join(wrong[:3])}" if wrong else ""
    return [
        trial.attempt(
            "sampler",
            began,
            adversary="auditor",
            what=f"The cohorts of {_DRAWS} rounds were drawn again from the run's own coins and counted: sizes, how "
            f"often each device came, whom successive cohorts share. Score: the smallest p-value{said}.",
            score=worst,
            metric="bound",
            confidence=CONFIDENCE,
            power=_power(mechanism.sampling, devices, rate),
            verdict="broken" if wrong else "held",
            trials=_DRAWS,
            detail={"p": p, "wrong": wrong[:10], "level": LEVEL / _TESTS},
        )
    ]


def _poisson(member: np.ndarray, rate: float) -> dict[str, float]:
    """Return p-values of independent coins: sizes, devices, and overlaps of successive cohorts."""
    draws, devices = member.shape
    sizes = member.sum(axis=1)
    square = float(np.square(sizes - devices * rate).sum() / (devices * rate * (1 - rate)))
    return {
        "sizes": variance_p(square, draws),
        "devices": _devices(member, rate),
        "overlap": _overlap(member, rate, fixed=False),
    }


def _devices(member: np.ndarray, rate: float) -> float:
    """Chi-square of how often each device came: too uneven as well as too even."""
    draws, devices = member.shape
    square = float(np.square(member.sum(axis=0) - draws * rate).sum() / (draws * rate * (1 - rate)))
    return variance_p(square, devices)


def _overlap(member: np.ndarray, rate: float, *, fixed: bool) -> float:
    """Return the p-value of the number of devices that successive cohorts share."""
    draws, devices = member.shape
    shared = float((member[1:] & member[:-1]).sum())
    pairs = draws - 1
    each = devices * rate * rate * (1 - rate * rate)
    if fixed:
        size = rate * devices
        each = size * rate * (1 - rate) * (devices - size) / max(1, devices - 1)
    else:
        # Neighbouring pairs share a cohort, so that their overlaps go together.
        each += 2 * devices * rate**3 * (1 - rate)
    return normal_p((shared - pairs * devices * rate * rate) / np.sqrt(max(1e-12, pairs * each)))


def _in_turn(member: np.ndarray, participations: int, min_gap: int) -> list[str]:
    wrong = []
    for device in range(member.shape[1]):
        rounds = np.flatnonzero(member[:, device])
        if len(rounds) > participations:
            wrong.append(f"a device joined {len(rounds)} times, stated are {participations}")
        if len(rounds) > 1 and int(np.diff(rounds).min()) < min_gap:
            wrong.append(f"a device joined {int(np.diff(rounds).min())} rounds apart, stated are {min_gap}")
    return wrong[:10]


def _power(sampling: str, devices: int, rate: float) -> str:
    """Say what would be seen; for coins by the shift that a wrong rate gives to the chi-square of the sizes."""
    if sampling == "everyone":
        return f"any device that is left out of any of {_DRAWS} rounds"
    if sampling == "limited":
        return "any device that comes more often, or sooner again, than stated"
    if sampling == "fixed_size":
        return "any cohort of another size, devices that come more or less evenly than chance, cohorts that overlap"
    excess = (chi2.isf(LEVEL / _TESTS / 2, _DRAWS) - _DRAWS) / _DRAWS
    off = float(np.sqrt(excess * (1 - rate) / (devices * rate)))
    return f"cohorts of one size, shuffled ones, a rate that is off by {off:.1%}"
