"""The noise, measured: on devices that hold nothing, and in a normal run after all that is known was subtracted."""

import time

import numpy as np
from scipy.signal import lfilter

from fedrecall.protocol.plan import Mechanism
from fedrecall.simulations.audit.checks.normality import Normals, noise_p_values, seen_scale
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, LEVEL, Trial
from fedrecall.simulations.audit.watching.watch import Watched

_TESTS = 4
"""P-values of one noise test, each of which costs a share of the level."""

_WORDS = {"scale": "size", "shape": "shape", "coordinate": "some coordinates", "draws": "independence of draws"}


def zero_signal(trial: Trial) -> list[Attempt]:
    """Measure every mechanism's noise on a training whose devices hold no event."""
    began = time.perf_counter()
    found = []
    start = trial.noise.start
    devices = trial.plan.devices if trial.plan.trust == "local" else 1
    for name in ("popularity", "second_moments"):
        mechanism = next((m for m in trial.plan.mechanisms if m.name == name and m.steps), None)
        if mechanism is None or not mechanism.noise_multiplier:
            continue
        values = start.get("popularity" if name == "popularity" else "moments")
        if values is None:
            continue
        drawn = _isometry(values) if name == "second_moments" else np.asarray(values, dtype=np.float64)
        scale = _std(mechanism, mechanism.clip_norm) * np.sqrt(devices)
        found.append(_judged(trial, f"noise: {name}", began, drawn[None] / scale, {name: slice(None)}))
        began = time.perf_counter()
    if trial.rounds.steps and trial.rounds.noise_multiplier:
        if trial.plan.trust == "local":
            found.append(_judged(trial, "noise: updates", began, _updates(trial), _groups(trial.each_device)))
            began = time.perf_counter()
        found.append(_judged(trial, "noise: rounds", began, _rounds(trial, trial.noise), _groups(trial.noise)))
    return found


def in_the_run(trial: Trial) -> list[Attempt]:
    """Measure the rounds' noise in a normal run: released sums minus what the devices sent and canaries added."""
    if not (trial.rounds.steps and trial.rounds.noise_multiplier) or trial.plan.trust != "central":
        return []
    began = time.perf_counter()
    seen = trial.watched
    return [_judged(trial, "noise: in the run", began, _rounds(trial, seen), _groups(seen))]


def whitened(trial: Trial, sums: np.ndarray) -> np.ndarray:
    """Return rounds' sums with the correlation of their noise undone: C x + z, in the words of the noise's paper."""
    return np.asarray(lfilter([1.0], trial.correlation, sums, axis=0))


def round_stds(trial: Trial, seen: Watched) -> np.ndarray:
    """Return the standard deviation of each round's noise in the sum, as the plan states it."""
    senders = np.array([np.sqrt(len(r.cohort)) if trial.plan.trust == "local" else 1.0 for r in seen.rounds])
    return senders * [_std(trial.rounds, r.clip_norm) for r in seen.rounds]


def _std(mechanism: Mechanism, clip_norm: float | None) -> float:
    return mechanism.sum_noise_multiplier * (clip_norm or 0.0)


def _rounds(trial: Trial, seen: Watched) -> Normals:
    """Return what should be the rounds' independent standard normals."""
    noise = np.array([r.released for r in seen.rounds])
    # Devices without events send zeros: of theirs nothing is subtracted, so that anything else they send shows.
    if seen.directions is not None:
        canaries = trial.enrolled[1]
        for row, r in zip(noise, seen.rounds, strict=True):
            taking_part = canaries.coins & np.isin(canaries.devices, r.cohort)
            row -= r.collected + (r.clip_norm or 0.0) * seen.directions.sum(taking_part)
    return np.asarray(whitened(trial, noise) / round_stds(trial, seen)[:, None])


def _updates(trial: Trial) -> Normals:
    """Return every device's own noise, where devices add it."""
    rounds = trial.each_device.rounds
    return np.concatenate([r.updates / _std(trial.rounds, r.clip_norm) for r in rounds if r.updates is not None])


def _groups(seen: Watched) -> dict[str, slice]:
    ends = np.cumsum(list(seen.sizes.values()))
    return {name: slice(int(end - seen.sizes[name]), int(end)) for name, end in zip(seen.sizes, ends, strict=True)}


def _isometry(matrix: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix as the vector of the same norm."""
    return np.concatenate([np.diagonal(matrix), matrix[np.triu_indices(len(matrix), k=1)] * np.sqrt(2)])


def _judged(trial: Trial, name: str, began: float, values: Normals, groups: dict[str, slice]) -> Attempt:
    p = noise_p_values(values, groups)
    worst = min(p, key=lambda test: p[test])
    measured = float(np.sqrt(np.mean(np.square(values))))
    low, high = seen_scale(values.size, LEVEL / _TESTS)
    broken = p[worst] < LEVEL / _TESTS
    said = f"; the {_WORDS[worst]} is not as stated (p {p[worst]:.1e})" if broken else ""
    return trial.attempt(
        name,
        began,
        adversary="auditor",
        what="The released noise was separated from all signal and compared with what the plan states: size, shape, "
        f"every coordinate, independence of draws. Score: measured over stated standard deviation{said}.",
        score=measured,
        metric="bound",
        chance=1.0,
        confidence=CONFIDENCE,
        power=f"a standard deviation below {low:.3f} or above {high:.3f} of the stated one, a run of 8 coordinates "
        "without noise, noise used twice",
        verdict="broken" if broken else "held",
        trials=int(values.size),
        detail={"p": p, "level": LEVEL / _TESTS},
    )
