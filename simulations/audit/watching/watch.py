"""A normal training, watched: what it released, and what its ledger said on disk at the moment of each draw of noise.

The training is that of ``fedrecall run``; functions of its wiring are wrapped while it runs. A round's noised mean is
read where it reaches the global optimiser, and every state that is released is worked out again from it
(``fedrecall.simulations.audit.watching.redone``): the weights that leave are a function of it, or that is a fault.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.training import optimiser
from fedrecall.server.training.checkpoint import load_latest
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState
from fedrecall.simulations.audit.watching.canaries import Canaries, Directions
from fedrecall.simulations.audit.watching.redone import moved_faults, overlaid
from fedrecall.simulations.audit.watching.watch_noise import Draws, watching_noise
from fedrecall.simulations.audit.watching.watch_start import watching_start
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import loop
from fedrecall.simulations.training.loop import Trained
from fedrecall.simulations.training.world import Progress, World, in_process

Flat = Float64[np.ndarray, " coordinates"]
_MOST_FAULTS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What one round did.

    Attributes:
        round: its number.
        cohort: the devices that were asked.
        devices: contributions that the collector said it summed.
        names: names of the arrays that left devices, every set of them.
        clip_norm: of this round, ``None`` for none.
        collected: the collector's sum, without gradient canaries; all trained arrays, flat, by name.
        within: the collected count of contributions within the clip, by halves; ``None`` where the clip is fixed.
        updates: each device's update alike, where devices are simulated one by one; else ``None``.
        released: the noised sum, as the optimiser was given it.
        next_clip: the clip of the round after, which is released with it.
    """

    round: int
    cohort: np.ndarray
    devices: int
    names: frozenset[frozenset[str]]
    clip_norm: float | None
    collected: Flat
    within: float | None
    updates: np.ndarray | None
    released: Flat
    next_clip: float | None


@dataclass(kw_only=True, eq=False)
class Watched:
    """A watched training.

    Attributes:
        world: what was trained.
        trained: its result, once it is done.
        sizes: number of coordinates of each trained array, in the order of the flat arrays.
        rounds: what they did; void ones are left out.
        start: releases of the start (``popularity``, ``moments``), what it chose by them (``choices``, with their
            settings), what devices compared (``comparison``), what was made of it all (``vectors``) beside releases
            (``made_of``: what else, by place and by name); empty without a start.
        first: the model before the first round.
        last: the state after the last round; ``None`` without rounds.
        faults: what was released and is no function of the noised means, at most a few.
        draws: (mechanism, round, whether its charge was on disk) of each draw of the server's noise.
        directions: of the gradient canaries, where there are any.
    """

    world: World
    trained: Trained | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    first: dict[str, np.ndarray] = field(default_factory=dict)
    last: ServerState | None = None
    faults: list[str] = field(default_factory=list)
    draws: Draws = field(default_factory=list)
    directions: Directions | None = None


def watch(
    world: World,
    folder: Path,
    canaries: Canaries | None = None,
    progress: Progress = lambda *_: None,
    *,
    visit: Sequence[int] | None = None,
    resume: bool = False,
) -> Watched:
    """Train ``world`` in ``folder`` and return what could be seen; gradient canaries join where there are any.

    ``visit`` names rounds, in order: they alone are made, one after the other, and training ends with the last of them.
    """
    seen = Watched(world=world)

    def watching(run: Callable[..., ServerState]) -> Callable[..., ServerState]:
        def watched(state: ServerState, plan: Plan, environment: Environment, **more: Any) -> ServerState:
            return watched_rounds(run, seen, state, plan, environment, canaries=canaries, visit=visit, **more)

        return watched

    def counts(mechanism: str) -> bool:
        # Correlated noise looks at its draws once before the first round: nothing is released of that.
        return mechanism != ROUNDS or bool(seen.sizes)

    with ExitStack() as stack:
        stack.enter_context(wrapped(loop, "run_rounds", watching))
        stack.enter_context(watching_start(seen.start))
        stack.enter_context(watching_noise(seen.draws, folder / "ledger.jsonl", counts))
        seen.trained = loop.train(world, folder, resume=resume, validate=None, progress=progress)
    if seen.last is not None:
        seen.faults += _kept_otherwise(seen.trained.arrays, seen.last, folder / "checkpoints")
    return seen


def environment_of(world: World, folder: Path) -> tuple[ServerState, Environment]:
    """Return the state before the first round and the round loop's environment, as a training wires them.

    Flower's engine ends with its training: what its nodes do is then done in this process.
    """
    found: list[tuple[ServerState, Environment]] = []

    def stop(state: ServerState, plan: Plan, environment: Environment, **_: Any) -> ServerState:
        found.append((state, environment))
        return state

    with wrapped(loop, "run_rounds", lambda _: stop):
        loop.train(in_process(world), folder, resume=False, validate=None, progress=lambda *_: None)
    return found[0]


def watched_rounds(
    run: Callable[..., ServerState],
    seen: Watched,
    state: ServerState,
    plan: Plan,
    environment: Environment,
    *,
    canaries: Canaries | None = None,
    visit: Sequence[int] | None = None,
    on_round: Callable[[ServerState], None],
    **more: Any,
) -> ServerState:
    """Run rounds by ``run`` (``server.training.rounds.run_rounds``) and note into ``seen`` what they did."""
    names, mechanism = sorted(state.trained), plan.mechanism(ROUNDS)
    seen.sizes = {name: state.arrays[name].size for name in names}
    seen.first = {name: array.copy() for name, array in state.arrays.items()}
    size = sum(seen.sizes.values())
    seen.directions = canaries.directions(size) if canaries is not None else None
    waiting = list(range(state.round, mechanism.steps) if visit is None else visit)
    asked: dict[str, Any] = {}
    means: list[Arrays] = []
    before = state

    def collect(round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None) -> CohortSum | list[Update]:
        asked.clear()
        if not _same(arrays, before.arrays):
            _note(seen, f"round {round}: devices were shown other weights than the round before released")
        if clip_norm != before.clip_norm:
            _note(seen, f"round {round}: devices were given the clip {clip_norm}, released was {before.clip_norm}")
        got = environment.collect(round, arrays, cohort, clip_norm)
        asked.update(cohort=cohort, clip_norm=clip_norm)
        if not isinstance(got, CohortSum):
            updates = list(got)
            rows = np.array([flat(u.arrays, names) for u in updates]).reshape(len(updates), size)
            within = sum(float(u.arrays[WITHIN_CLIP]) for u in updates) if mechanism.adaptive_clip else None
            asked.update(devices=len(updates), names=frozenset(frozenset(u.arrays) for u in updates))
            asked.update(collected=rows.sum(axis=0), updates=rows, within=within)
            return updates
        total = flat(got.arrays, names)
        asked.update(devices=got.devices, names=frozenset([frozenset(got.arrays)]), collected=total, updates=None)
        asked.update(within=float(got.arrays[WITHIN_CLIP]) if WITHIN_CLIP in got.arrays else None)
        if canaries is None or seen.directions is None or clip_norm is None:
            return got
        taking_part = canaries.coins & np.isin(canaries.devices, cohort)
        summed = total + clip_norm * seen.directions.sum(taking_part)
        return replace(got, arrays={**got.arrays, **shaped(summed, names, state.arrays)})

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(config: Any, opt: Any, arrays: Arrays, update: Arrays, **rest: Any) -> Any:
            means.append(update)
            return step(config, opt, arrays, update, **rest)

        return stepped

    def seeing(after: ServerState) -> None:
        nonlocal before
        mean, moved = means[-1] if means else None, len(means)
        means.clear()
        adapts = mechanism.adaptive_clip is not None
        faults = moved_faults(more["config"], before, after, mean, rounds=mechanism.steps, adapts=adapts)
        faults += ["the optimiser made more than one step"] if moved > 1 else []
        for fault in faults:
            _note(seen, f"round {before.round}: {fault}")
        if mean is not None and asked:
            released = flat(mean, names) * mechanism.sample_rate * plan.devices
            seen.rounds.append(Round(round=before.round, released=released, next_clip=after.clip_norm, **asked))
        before = seen.last = after
        waiting.pop(0)
        on_round(after)
        if after.round < mechanism.steps and (not waiting or waiting[0] != after.round):
            raise _Elsewhere(after)

    watched = replace(environment, collect=collect)
    if not waiting:
        return run(state, plan, watched, on_round=seeing, **more)
    with wrapped(optimiser, "step", stepping):
        while waiting:
            before = state = replace(state, round=waiting[0])
            told = len(waiting)
            try:
                state = run(state, plan, watched, on_round=seeing, **more)
            except _Elsewhere as stop:
                state = stop.state
            if len(waiting) == told:
                _note(seen, f"round {waiting[0]}: it never ended")
                break
    return state


class _Elsewhere(Exception):
    """The next round to visit is another one than the next."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        super().__init__()


def flat(arrays: Arrays, names: Iterable[str]) -> Flat:
    """Return the arrays called ``names``, in that order, as one row of float64."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float64).reshape(-1) for name in names])


def shaped(values: Flat, names: Iterable[str], like: Arrays) -> dict[str, np.ndarray]:
    """Return a row as ``flat`` makes it as arrays called ``names``, of the shapes of those of ``like``."""
    arrays, at = {}, 0
    for name in names:
        size = like[name].size
        arrays[name] = values[at : at + size].reshape(like[name].shape)
        at += size
    return arrays


def _kept_otherwise(arrays: Arrays, last: ServerState, checkpoints: Path) -> list[str]:
    """Return where what a training gives to be released, or keeps to go on from, is not its last state."""
    faults = [] if _same(arrays, overlaid(last)) else ["what the training gives to be released is not its last state"]
    saved = load_latest(checkpoints)
    if saved is not None and saved.round == last.round:
        average = saved.average.arrays if saved.average is not None else {}
        pairs = [
            (saved.arrays, last.arrays),
            (average, last.average.arrays if last.average is not None else {}),
            (saved.optimiser.first, last.optimiser.first),
            (saved.optimiser.second, last.optimiser.second),
        ]
        if not all(_same(one, other) for one, other in pairs) or saved.extra["clip_norm"] != last.clip_norm:
            faults.append("the last checkpoint is not the last state")
    return faults


def _same(one: Arrays, other: Arrays) -> bool:
    """Whether two models are the same to the bit."""
    return set(one) == set(other) and all(np.array_equal(array, other[name]) for name, array in one.items())


def _note(seen: Watched, fault: str) -> None:
    if len(seen.faults) < _MOST_FAULTS:
        seen.faults.append(fault)
