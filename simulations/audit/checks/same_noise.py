"""Two releases under the same noise, of data that differ in one device or one event: their difference is bare.

A simulation's noise is a function of the plan and the round, so that it cancels: what is left is what the whole server
made of the difference, from the devices' answers to the optimiser, wherever something was added, doubled or left out.
No statistics are needed, and no larger a cohort than the probed devices.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.training import rounds
from fedrecall.server.training.rounds import Environment, ServerState, start_state
from fedrecall.simulations.audit.watching.answers import Answers
from fedrecall.simulations.audit.watching.at_length import NoLedger
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Round, Watched, shaped, watched_rounds


def released_ratios(trial: Trial, answers: Answers) -> tuple[list[float], list[str]]:
    """Return how far neighbours move releases over what they may, and a count over a half; and faults of releases."""
    faults: list[str] = []
    present, found = np.ones(len(answers.rows), dtype=bool), []
    try:
        whole = _released(trial, answers, answers.rows, present, faults)
        for rows, there, allowed in _neighbours(answers):
            found += _moved(trial, whole, _released(trial, answers, rows, there, faults), allowed)
    except UpdateError as error:
        faults.append(f"the server refuses what devices sent: {error}")
    return found, faults[:3]


def ratios_of_all(trial: Trial) -> tuple[list[float], list[str]]:
    """Return how far one more contribution of the clip's norm moves the releases of a normal training, over the clip.

    The sums are those of all its devices, so that what the server adds to large sums alone shows too.
    """
    found: list[float] = []
    faults: list[str] = []
    if trial.plan.trust != "central":
        return found, faults
    state = trial.wired[0]
    names, seen = sorted(state.trained), trial.watched
    directions = trial.enrolled[1].directions(sum(seen.sizes.values()))

    def released(r: Round, total: np.ndarray) -> Round | None:
        counted = {} if r.within is None else {WITHIN_CLIP: np.asarray(r.within)}
        arrays = shaped(total, names, state.arrays) | counted
        answer = CohortSum(round=r.round, devices=r.devices + 1, arrays=arrays)
        return _round(trial, r.round, state.arrays, r.clip_norm, lambda _: answer, r.devices + 1, faults)

    for r in seen.rounds:
        one = directions.sum(np.arange(directions.count) == r.round % directions.count) * (r.clip_norm or 0.0)
        found += _moved(trial, released(r, r.collected), released(r, r.collected + one), 1.0)
    return found, faults[:3]


def _neighbours(answers: Answers) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield answers and who is there, which differ in one device's presence or answer, and by how many clips."""
    for device in range(len(answers.rows)):
        rows, there, allowed = answers.rows, np.ones(len(answers.rows), dtype=bool), 1.0
        if answers.changed:
            changed, allowed = answers.changed[device % len(answers.changed)]
            rows = rows.copy()
            rows[device] = changed[device]
        else:
            there[device] = False
        yield rows, there, allowed


def _released(trial: Trial, answers: Answers, rows: np.ndarray, there: np.ndarray, faults: list[str]) -> Round | None:
    """Return a round of the server's that those who are ``there`` answer; ``None`` where nothing is released."""
    state = trial.wired[0]
    names, present = sorted(state.trained), np.flatnonzero(there)

    def answer(asked: np.ndarray) -> CohortSum | list[Update]:
        # Who is asked twice answers twice.
        each = present[asked]
        if answers.one_by_one:
            own = [_arrays(rows[row], names, state.arrays, answers, row, np.float32) for row in each]
            return [Update(round=answers.round, nonce=str(i), arrays=one) for i, one in enumerate(own)]
        summed = _arrays(rows[each].sum(axis=0), names, state.arrays, answers, each, np.float64)
        return CohortSum(round=answers.round, devices=len(each), arrays=summed)

    return _round(trial, answers.round, answers.arrays, answers.clip_norm, answer, len(present), faults)


def _round(
    trial: Trial,
    round: int,
    arrays: Arrays,
    clip_norm: float | None,
    answer: Callable[[np.ndarray], CohortSum | list[Update]],
    devices: int,
    faults: list[str],
) -> Round | None:
    """Return a round of the server's, of ``devices`` numbered from 0, at these weights and this clip."""
    state, environment = trial.wired
    mechanism, seen = replace(trial.rounds, min_survivors=0), Watched(world=trial.world)

    def one_round(state: ServerState, plan: Any, wired: Environment, *, on_round: Any, **more: Any) -> ServerState:
        after = rounds.one_round(state, plan, mechanism, wired, **more)
        on_round(after)
        return after

    config = trial.world.config.server
    everyone = replace(environment.sampler, sampling="everyone", sample_rate=1.0, devices=devices)
    watched_rounds(
        one_round,
        seen,
        start_state(config, arrays, state.trained, clip_norm),
        trial.plan,
        replace(environment, collect=lambda _, __, asked, ___: answer(asked), sampler=everyone),
        visit=[round],
        config=config,
        ledger=NoLedger(),
        on_round=lambda _: None,
    )
    faults += seen.faults
    return seen.rounds[0] if seen.rounds else None


def _arrays(
    values: np.ndarray, names: list[str], like: Arrays, answers: Answers, asked: Any, dtype: Any
) -> dict[str, np.ndarray]:
    found = {name: array.astype(dtype) for name, array in shaped(values, names, like).items()}
    if answers.counts is not None:
        found[WITHIN_CLIP] = np.asarray(np.sum(answers.counts[asked]), dtype=dtype)
    return found


def _moved(trial: Trial, before: Round | None, after: Round | None, allowed: float) -> list[float]:
    """Return how far the sum moved, and the count that an adaptive clip follows, over what each may."""
    if before is None or after is None:
        return [0.0] if before is after else [math.inf]
    found = [float(np.linalg.norm(before.released - after.released)) / (before.clip_norm or 1.0) / allowed]
    settings = trial.rounds.adaptive_clip
    if settings is not None and before.next_clip and after.next_clip:
        expected = trial.rounds.sample_rate * trial.plan.devices
        counted = math.log(before.next_clip / after.next_clip) / settings.learning_rate * expected
        found.append(abs(counted) / 0.5)
    return found
