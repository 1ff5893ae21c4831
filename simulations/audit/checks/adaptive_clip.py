"""The adaptive clip: it must follow the released count alone, under the noise that the plan gives a count.

A round's clip is released, and it tells the noised count of the round before. So nothing of the server has to be
believed: the count is worked out from two clips, and what is left of it without the devices' own must be the noise of
the plan. A clip that follows anything else leaves something else.
"""

import math
import time

import numpy as np

from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.checks.normality import normal_p, seen_scale, variance_p
from fedrecall.simulations.audit.watching.at_length import counts_drawn
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, LEVEL, Trial
from fedrecall.simulations.audit.watching.watch import flat

_ASKED = 10
_NEAR = 1e-4
"""Of the clip: a norm as near as that may be on either side of it, by rounding."""


def adaptive_clip(trial: Trial) -> list[Attempt]:
    """Work out the counts behind the clips that were released, and ask devices what they add to a count."""
    mechanism = trial.rounds
    if mechanism.adaptive_clip is None or not mechanism.steps or mechanism.clip_norm is None:
        return []
    began, trainings = time.perf_counter(), (trial.watched, trial.noise)
    hits = _steps(trial)
    each = [counts_drawn(trial, seen) for seen in trainings]
    noise = np.concatenate(each)
    p: dict[str, float] = {}
    if mechanism.noise_multiplier and noise.size:
        p["mean"] = normal_p(float(noise.sum() / math.sqrt(noise.size)))
        # Apart: where all are within the clip, half of the counts tell nothing but that they are large.
        for what, own in zip(("size", "size without events"), each, strict=True):
            p |= {what: variance_p(float(np.square(own).sum()), own.size)} if own.size else {}
    level = LEVEL / max(1, len(p))
    hits += [
        f"the {name} of the counts' noise is not as stated (p {value:.1e})"
        for name, value in p.items()
        if value < level
    ]
    low, high = seen_scale(max(1, noise.size), level)
    said = f". Found: {'; '.join(hits[:3])}" if hits else ""
    return [
        trial.attempt(
            "adaptive clip",
            began,
            adversary="released-model",
            what="The noised count behind every clip was worked out from the clips that were released, and compared "
            f"with the devices' own count under the plan's noise{said}.",
            score=float(len(hits)),
            metric="hits",
            chance=0.0,
            confidence=CONFIDENCE if p else None,
            power=f"a clip that follows the exact count, noise below {low:.2f} or above {high:.2f} of the "
            "plan's; more draws of it are in 'noise: at length'",
            verdict="broken" if hits else "held",
            trials=int(noise.size),
            detail={"hits": hits[:20], "p": p, "level": level},
        )
    ]


def _steps(trial: Trial) -> list[str]:
    """Return the steps of the clip that no count explains."""
    mechanism, hits = trial.rounds, []
    settings, first = mechanism.adaptive_clip, mechanism.clip_norm or 0.0
    if settings is None:
        return []
    for seen in (trial.watched, trial.noise):
        if seen.rounds and seen.rounds[0].round == 0 and seen.rounds[0].clip_norm != first:
            hits.append(f"the first clip is {seen.rounds[0].clip_norm}, the plan's {first}")
        for r in seen.rounds:
            step = math.log((r.next_clip or first) / (r.clip_norm or first)) / settings.learning_rate
            if not settings.quantile - 1 - 1e-9 <= step <= settings.quantile + 1e-9:
                hits.append(f"the clip after round {r.round} moved further than any count moves it")
    return hits


def counts(trial: Trial) -> list[Attempt]:
    """Ask devices what they add to a count, beside a half by their norm, which a wide clip leaves whole."""
    mechanism = trial.rounds
    if mechanism.adaptive_clip is None or not mechanism.steps or mechanism.clip_norm is None:
        return []
    began, hits, trials = time.perf_counter(), [], 0
    state, first = trial.wired[0], mechanism.clip_norm
    steady, names = trial.wired_with(trial.probed_world), sorted(state.trained)
    # Towers that train in rounds move with every question.
    moving = trial.world.config.local.tower_learning_rate > 0

    def answer(round: int, device: int, clip_norm: float) -> tuple[float, float]:
        asked = trial.wired_with(trial.probed_world) if moving else steady
        got = asked.collect(round, state.arrays, np.array([device]), clip_norm)
        arrays = got.arrays if isinstance(got, CohortSum) else next(iter(got)).arrays
        return float(np.linalg.norm(flat(arrays, names))), float(arrays[WITHIN_CLIP])

    some = trial.some_rounds(_ASKED)
    for number, device in enumerate(trial.probed.devices[:_ASKED].tolist()):
        round = some[number % len(some)]
        norm, within = answer(round, device, 1e6 * first)
        # At the plan's clip, and on either side of the norm.
        clips = [clip for clip in (first, 0.5 * norm, 2.0 * norm) if clip and abs(norm / clip - 1) >= _NEAR]
        found = [(math.inf, within), *((clip_norm, answer(round, device, clip_norm)[1]) for clip_norm in clips)]
        trials += len(found)
        hits += [
            f"round {round}: a norm of {norm:.3g} added {count} to the count at clip {clip_norm:.3g}"
            for clip_norm, count in found
            if count != (0.5 if norm <= clip_norm else -0.5)
        ]
    said = f". Found: {'; '.join(hits[:3])}" if hits else ""
    return [
        trial.attempt(
            "sensitivity: count",
            began,
            adversary="auditor",
            what="Devices were asked what they add to the count that the clip follows: a half where their contribution "
            f"is within the clip, minus a half where it is not, and nothing else{said}.",
            score=float(len(hits)),
            metric="hits",
            chance=0.0,
            power="any other number, of the probed devices, at the plan's clip and on either side of their norms",
            verdict="broken" if hits else "held",
            trials=trials,
            detail={"hits": hits[:20]},
        )
    ]
