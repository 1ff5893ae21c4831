"""Sensitivity, measured: neighbouring worlds through the same wiring, and how far apart their sums are.

The model is made steep, so that contributions without a clip would be far beyond it: a clip that does not hold, or a
neighbour that counts for more than the accountant was told, then shows as a ratio above 1. Rounds are the first, the
last, and others at random; devices are the run's and made-up ones of every length. What the server makes of the same
answers is compared too (``fedrecall.simulations.audit.checks.same_noise``).
"""

import time
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import Environment
from fedrecall.simulations.audit.checks.same_noise import ratios_of_all, released_ratios
from fedrecall.simulations.audit.watching.answers import Answers, answered
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import flat

TOLERANCE = 1e-4
"""Of the ratio: float32 sums, and the grid that noise is snapped to."""


@dataclass(kw_only=True)
class _Ratios:
    """Distances of neighbours over what each may be: of devices' sums, of counts, of releases; and faults of those."""

    rounds: list[int] = field(default_factory=list)
    collected: list[float] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def sensitivity(trial: Trial) -> list[Attempt]:
    """Take one device, or one event, away, and compare the rounds' sums."""
    mechanism = trial.rounds
    if not mechanism.steps or mechanism.clip_norm is None:
        return []
    began, ratios = time.perf_counter(), _ratios(trial)
    worst = max(ratios.collected)
    rounds = ", ".join(map(str, ratios.rounds))
    return [
        trial.attempt(
            "sensitivity",
            began,
            adversary="auditor",
            what=f"One {trial.plan.unit} was taken out of the data, and the sums of two otherwise equal rounds were "
            f"compared, in rounds {rounds}. Score: the largest difference over what the accountant was told, "
            f"clips of {mechanism.clip_norm:.4g}; above 1 the noise is too small for what it hides.",
            score=worst,
            metric="bound",
            chance=1.0,
            power="any unclipped contribution of the probed devices, the run's most and least active and made-up ones "
            "of no event to many more than the catalogue has, and a neighbour that moves the sum by more than stated, "
            "at the first weights or at 30 times them; not the worst history that there could be",
            verdict="held" if worst <= 1 + TOLERANCE else "broken",
            trials=len(ratios.collected),
            detail={"ratios": ratios.collected},
        )
    ]


def sensitivity_of_releases(trial: Trial) -> list[Attempt]:
    """Release the same rounds twice under the same noise, with and without a device or an event."""
    mechanism = trial.rounds
    if not mechanism.steps or mechanism.clip_norm is None:
        return []
    began, asked, beside = time.perf_counter(), _ratios(trial), ratios_of_all(trial)
    ratios, faults = [*asked.released, *beside[0]], [*asked.faults, *beside[1]]
    size = sum(trial.wired[0].arrays[name].size for name in trial.wired[0].trained)
    # Noise lies on a grid of 2^-20 of its deviation, and devices' own goes through float32.
    slack = TOLERANCE + 4e-6 * mechanism.sum_noise_multiplier * float(np.sqrt(size))
    worst = max(ratios, default=0.0)
    said = f"; found: {'; '.join(faults[:3])}" if faults else ""
    return [
        trial.attempt(
            "sensitivity: released",
            began,
            adversary="auditor",
            what=f"Rounds were released twice under the same noise, with one {trial.plan.unit} and without: all that "
            "the server did of the difference is bare, not only the devices' sum. Score: the largest difference over "
            f"what the accountant was told; above 1 the noise is too small for what it hides{said}.",
            score=worst,
            metric="bound",
            chance=1.0,
            power=f"a difference beyond its bound by {slack:.1e} of it, of the probed devices in the rounds asked, and "
            "of a canary beside all devices in every round of a training",
            verdict="held" if worst <= 1 + slack and not faults else "broken",
            trials=len(ratios),
            detail={"ratios": ratios, "faults": faults, "slack": slack},
        )
    ]


def _ratios(trial: Trial) -> _Ratios:
    """Ask once for both checks."""
    if "sensitivity" not in trial.kept:
        found = _Ratios()
        for answers in answered(trial):
            found.rounds.append(answers.round)
            found.collected += _collected(answers)
            ratios, faults = released_ratios(trial, answers)
            found.released += ratios
            found.faults += faults
        trial.kept["sensitivity"] = found
    return cast(_Ratios, trial.kept["sensitivity"])


def _collected(answers: Answers) -> list[float]:
    """Return how far neighbours move the devices' sum, and the count that an adaptive clip follows."""
    if answers.changed:
        return [
            float(np.linalg.norm(row)) / answers.clip_norm / allowed
            for rows, allowed in answers.changed
            for row in rows - answers.rows
        ]
    # What is left of the sum over all without the others' own answers: one device, and whatever else moves with it.
    alone = answers.whole - (answers.rows.sum(axis=0) - answers.rows)
    found = [float(np.linalg.norm(row)) / answers.clip_norm for row in alone]
    if answers.counts is not None and answers.count is not None:
        found += (np.abs(answers.count - (answers.counts.sum() - answers.counts)) / 0.5).tolist()
    return found


def stateless(trial: Trial) -> list[Attempt]:
    """Under unit ``interaction``, ask the same devices the same question twice: nothing may have changed."""
    if trial.plan.unit != "interaction" or not trial.rounds.steps:
        return []
    began = time.perf_counter()
    state, environment = trial.wired
    names, store = sorted(state.trained), trial.world.store
    holding = np.flatnonzero(store.counts() > 1)
    asked = np.sort(np.random.default_rng(trial.seed).choice(holding, size=min(12, len(holding)), replace=False))
    first, second = (_sum(environment, state.arrays, asked, trial.rounds.clip_norm, names) for _ in range(2))
    changed = float(np.abs(first - second).max())
    return [
        trial.attempt(
            "stateless",
            began,
            adversary="auditor",
            what="The same devices answered the same round twice. State that a device keeps without noise, such as a "
            "trained user tower, would carry one event into the gradients of others. Score: numbers that changed.",
            score=float((first != second).sum()),
            metric="hits",
            chance=0.0,
            power="any change of any sum, to the last bit",
            verdict="broken" if changed > 0 else "held",
            trials=len(asked),
            detail={"largest_change": changed},
        )
    ]


def _sum(
    environment: Environment,
    arrays: Arrays,
    asked: np.ndarray,
    clip_norm: float | None,
    names: list[str],
) -> np.ndarray:
    got = environment.collect(0, arrays, asked, clip_norm)
    if isinstance(got, CohortSum):
        return flat(got.arrays, names)
    return np.asarray(np.sum([flat(update.arrays, names) for update in got], axis=0))
