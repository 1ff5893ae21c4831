"""The noise, measured: on devices that hold nothing, and in a normal run after all that is known was subtracted.

Each mechanism by itself; then all draws of all mechanisms together; and so much noise alone that its tails show.
"""

import hashlib
import time

import numpy as np
from scipy.stats import norm

from fedrecall.privacy.mechanisms.noise import SecureNoise
from fedrecall.simulations.audit.checks.dependence import CUTS, dependence_p_values
from fedrecall.simulations.audit.checks.normality import Normals, noise_p_values, normal_p, seen_scale, variance_p
from fedrecall.simulations.audit.watching.at_length import at_length, counts_drawn
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.draws import Draws, drawn_alone, drawn_in_the_run
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, LEVEL, Trial

_DEPLOYED = 1 << 19
_WORDS = {
    "scale": "size",
    "shape": "shape",
    "coordinate": "some coordinates",
    "draws": "independence of draws",
    "signal": "independence of what it hides",
    "twins": "number of equal magnitudes",
    "lags": "independence at a distance",
    "spectrum": "power of some direction",
    "angles": "directions of two draws in a row",
    "pairs": "independence of two arrays",
    "tails": "number of large draws",
    "counts": "noise of the counts",
}


def zero_signal(trial: Trial) -> list[Attempt]:
    """Measure every mechanism's noise on a training whose devices hold no event."""
    began, found = time.perf_counter(), []
    for name, draws in drawn_alone(trial).items():
        found.append(judged(trial, f"noise: {name}", began, draws))
        began = time.perf_counter()
    return found


def in_the_run(trial: Trial) -> list[Attempt]:
    """Measure the noise in a normal run: what was released minus what the devices sent and canaries added."""
    began, found = time.perf_counter(), []
    for name, draws in drawn_in_the_run(trial).items():
        place = "noise: in the run" if name == "rounds" else f"noise: {name} in the run"
        found.append(judged(trial, place, began, draws))
        began = time.perf_counter()
    return found


def all_together(trial: Trial) -> list[Attempt]:
    """Measure whether all noise of both trainings is independent: over coordinates, arrays, rounds and mechanisms."""
    began = time.perf_counter()
    alone, run = drawn_alone(trial), drawn_in_the_run(trial)
    if trial.plan.trust == "local":
        alone.pop("rounds", None)  # the sum of the devices' own
    noise = alone | {f"{name} in the run": draws for name, draws in run.items()}
    if not noise:
        return []
    p = dependence_p_values(noise)
    size = sum(draws.values.size for draws in noise.values())
    return [
        _told(
            trial,
            "noise: all together",
            began,
            p,
            size,
            what="All noise that two trainings released, of every mechanism, was compared with itself: near-equal "
            "magnitudes, products at every distance, between any two arrays of any two draws, every frequency, and "
            "counts of large draws. Score: the smallest p-value",
            power="noise that is used twice anywhere, whatever its sign, for 100 numbers or more; noise cut at "
            f"{_cut(size):.2f} deviations or below",
        )
    ]


def noise_at_length(trial: Trial) -> list[Attempt]:
    """Draw half a million numbers of each mechanism's noise by the run's own functions, in many rounds of nothing."""
    began = time.perf_counter()
    noise, seen = at_length(trial)
    if not noise:
        return []
    p = {}
    if "rounds" in noise:
        p = noise_p_values(noise["rounds"].values, noise["rounds"].groups)
    whole = {name: Draws(values=draws.values, groups={}) for name, draws in noise.items()}
    p |= {name: value for name, value in dependence_p_values(whole).items() if name != "pairs"}
    size, least = (f(draws.values.size for draws in noise.values()) for f in (sum, min))
    if seen is not None and trial.rounds.adaptive_clip is not None:
        counts = counts_drawn(trial, seen)
        p["counts"] = _counts_p(counts, noise["rounds"].values)
    return [
        _told(
            trial,
            "noise: at length",
            began,
            p,
            size,
            what="Rounds of no signal were made in large number, over more coordinates than the model has, and the "
            "start's noise was drawn likewise: the plan's noise, by the run's functions, as much as it takes to see "
            "its tails. Score: the smallest p-value",
            power=f"tails cut at {_cut(least):.2f} deviations or below, a dependence of a hundredth between "
            "neighbours at any distance, a bug that begins in a later round of those made",
        )
    ]


def of_deployments(trial: Trial) -> list[Attempt]:
    """Draw the noise that a server or a device in earnest would add: none of the run's own, which is seeded."""
    if not any(m.steps and m.noise_multiplier for m in trial.plan.mechanisms):
        return []
    began, key = time.perf_counter(), hashlib.sha256(f"audit {trial.seed}".encode()).digest()
    values = SecureNoise(key, "audit").added(np.zeros(_DEPLOYED), 1.0).reshape(-1, _DEPLOYED // 128)
    noise = {"deployed": Draws(values=values, groups={})}
    p = noise_p_values(values, {})
    p |= {name: value for name, value in dependence_p_values(noise).items() if name != "pairs"}
    return [
        _told(
            trial,
            "noise: of deployments",
            began,
            p,
            values.size,
            what="Half a million numbers were drawn from the source that deployments take their noise from, and "
            "tested as the run's own. Score: the smallest p-value",
            power=f"another size, a dependence, tails cut at {_cut(values.size):.2f} deviations or below; that its key "
            "is secret is not tested",
        )
    ]


def _counts_p(counts: np.ndarray, sums: Normals) -> float:
    """Return the p-value of the noise of counts within the clip: its size, and that it is none of the sums'."""
    size = variance_p(float(np.square(counts).sum()), counts.size)
    every = sums[: counts.size]
    # With each number of the sums, and with their total.
    both = np.hstack([every, every.sum(axis=1, keepdims=True) / np.sqrt(every.shape[1])])
    products = np.abs(counts @ both) / max(float(np.linalg.norm(counts)), 1e-300)
    return float(min(1.0, 2 * min(size, normal_p(float(products.max())) * products.size)))


def judged(trial: Trial, name: str, began: float, draws: Draws) -> Attempt:
    """Return the attempt ``name`` that measures ``draws``."""
    p = noise_p_values(draws.values, draws.groups)
    if draws.signals is not None:
        p["signal"] = signal_p(draws)
    level, values = LEVEL / len(p), draws.values
    worst = min(p, key=lambda test: p[test])
    measured = float(np.sqrt(np.mean(np.square(values))))
    low, high = seen_scale(values.size, level)
    broken = p[worst] < level
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
        detail={"p": p, "level": level},
    )


def signal_p(draws: Draws) -> float:
    """Return the p-value of the largest product of noise with the signal that it hides, of any draw and of all.

    Given the signal, the product with its direction is standard normal, and so is the root mean of all. In rounds, in
    order, signals of earlier rounds count too: what they left over might be added later.
    """
    signals = np.asarray(draws.signals)
    lengths = np.linalg.norm(signals, axis=1)
    products = draws.values @ signals.T / np.maximum(lengths, 1e-300)
    told = np.tri(len(products), dtype=bool) if draws.ordered else np.eye(len(products), dtype=bool)
    told &= lengths > 0
    if not told.any():
        return 1.0
    own = np.diagonal(products)[lengths > 0]
    every = normal_p(float(np.abs(products[told]).max())) * int(told.sum())
    return min(1.0, 2 * min(every, normal_p(float(own.sum() / np.sqrt(own.size)))))


def _told(trial: Trial, name: str, began: float, p: dict[str, float], size: int, *, what: str, power: str) -> Attempt:
    level, worst = LEVEL / len(p), min(p, key=lambda test: p[test])
    broken = p[worst] < level
    said = f"; the {_WORDS[worst]} is not as stated (p {p[worst]:.1e})" if broken else ""
    return trial.attempt(
        name,
        began,
        adversary="auditor",
        what=f"{what}{said}.",
        score=p[worst],
        metric="bound",
        confidence=CONFIDENCE,
        power=power,
        verdict="broken" if broken else "held",
        trials=size,
        detail={"p": p, "level": level},
    )


def _cut(size: int) -> float:
    """Return the cut of those tested beyond which none of ``size`` draws would be an alarm."""
    rare = float(norm.isf(min(0.25, 9.0 / size)))
    return max((float(cut) for cut in CUTS if cut <= rare), default=0.0)
