"""A normal training, watched: what it released, and what its ledger said on disk at the moment of each draw of noise.

The training is that of ``fedrecall run``; five functions of its wiring are wrapped while it runs. What a round
released is read back from the global optimiser's state, which is a function of releases alone.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState
from fedrecall.simulations.audit.watching.canaries import Canaries, Directions
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import loop, simulated_noise, start
from fedrecall.simulations.training.loop import Trained
from fedrecall.simulations.training.world import Progress, World, in_process

Flat = Float64[np.ndarray, " coordinates"]


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
        updates: each device's update alike, where devices are simulated one by one; else ``None``.
        released: the noised sum, read back from what the server released.
    """

    round: int
    cohort: np.ndarray
    devices: int
    names: frozenset[frozenset[str]]
    clip_norm: float | None
    collected: Flat
    updates: np.ndarray | None
    released: Flat


@dataclass(kw_only=True, eq=False)
class Watched:
    """A watched training.

    Attributes:
        world: what was trained.
        trained: its result, once it is done.
        sizes: number of coordinates of each trained array, in the order of the flat arrays.
        rounds: what they did.
        start: releases of the start (``popularity``, ``moments``), what it chose by them (``choices``, with their
            settings), what devices compared (``comparison``) and what was made of it all (``vectors``); empty without a
            start.
        first: the model before the first round.
        draws: (mechanism, round, whether its charge was on disk) of each draw of the server's noise.
        directions: of the gradient canaries, where there are any.
    """

    world: World
    trained: Trained | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    first: dict[str, np.ndarray] = field(default_factory=dict)
    draws: list[tuple[str, int, bool]] = field(default_factory=list)
    directions: Directions | None = None


def watch(
    world: World, folder: Path, canaries: Canaries | None = None, progress: Progress = lambda *_: None
) -> Watched:
    """Train ``world`` in ``folder`` and return what could be seen; gradient canaries join where there are any."""
    seen = Watched(world=world)
    with ExitStack() as stack:
        stack.enter_context(wrapped(loop, "run_rounds", lambda run: _watching(run, seen, canaries)))
        stack.enter_context(wrapped(start, "compare", lambda make: _watching_choice(make, seen)))
        stack.enter_context(wrapped(start, "second_moment_sum", lambda make: _watching_moments(make, seen)))
        stack.enter_context(wrapped(start, "first_item_vectors", lambda make: _watching_start(make, seen)))
        stack.enter_context(wrapped(simulated_noise, "server_noise", lambda make: _watching_noise(make, seen, folder)))
        seen.trained = loop.train(readable(world), folder, resume=False, validate=None, progress=progress)
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
        own = in_process(readable(world))
        loop.train(own, folder, resume=False, validate=None, progress=lambda *_: None)
    return found[0]


def readable(world: World) -> World:
    """Return ``world`` with a server whose steps can be read back; the model that comes out is the same."""
    server = world.config.server
    if server.optimiser == "sgd":
        server = server.model_copy(update={"optimiser": "fedavgm", "momentum": 0.0})
    return replace(world, config=world.config.model_copy(update={"server": server}))


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


def _watching(run: Callable[..., ServerState], seen: Watched, canaries: Canaries | None) -> Callable[..., ServerState]:
    def watching(state: ServerState, plan: Plan, environment: Environment, **more: Any) -> ServerState:
        names = sorted(state.trained)
        seen.sizes = {name: state.arrays[name].size for name in names}
        seen.first = {name: array.copy() for name, array in state.arrays.items()}
        size = sum(seen.sizes.values())
        seen.directions = canaries.directions(size) if canaries is not None else None
        mechanism = plan.mechanism(ROUNDS)
        asked: dict[int, dict[str, Any]] = {}
        before = state

        def collect(
            round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None
        ) -> CohortSum | list[Update]:
            got = environment.collect(round, arrays, cohort, clip_norm)
            one = {"cohort": cohort, "clip_norm": clip_norm}
            if isinstance(got, CohortSum):
                total = flat(got.arrays, names)
                asked[round] = one | {"devices": got.devices, "names": frozenset([frozenset(got.arrays)])}
                asked[round] |= {"collected": total, "updates": None}
                if canaries is None or seen.directions is None or clip_norm is None:
                    return got
                taking_part = canaries.coins & np.isin(canaries.devices, cohort)
                summed = total + clip_norm * seen.directions.sum(taking_part)
                return replace(got, arrays={**got.arrays, **shaped(summed, names, state.arrays)})
            updates = list(got)
            rows = np.array([flat(u.arrays, names) for u in updates]).reshape(len(updates), size)
            asked[round] = one | {"devices": len(updates), "names": frozenset(frozenset(u.arrays) for u in updates)}
            asked[round] |= {"collected": rows.sum(axis=0), "updates": rows}
            return updates

        def on_round(after: ServerState) -> None:
            nonlocal before
            released = _released(before, after, more["config"], names) * mechanism.sample_rate * plan.devices
            round = before.round
            seen.rounds.append(Round(round=round, released=released, **asked[round]))
            before = after
            original(after)

        original = more.pop("on_round")
        return run(state, plan, replace(environment, collect=collect), on_round=on_round, **more)

    return watching


def _released(before: ServerState, after: ServerState, config: ServerConfig, names: list[str]) -> Flat:
    """Return the mean that the global optimiser was given."""
    old, new = flat(before.optimiser.first, names), flat(after.optimiser.first, names)
    if config.optimiser == "fedadam":
        return (new - config.beta1 * old) / (1 - config.beta1)
    return new - config.momentum * old


def _watching_choice(choose: Callable[..., Any], seen: Watched) -> Callable[..., Any]:
    def watching(popularity: np.ndarray, *rest: Any, **settings: Any) -> Any:
        comparison = choose(popularity, *rest, **settings)
        seen.start.setdefault("choices", []).append((rest, settings, comparison))
        return comparison

    return watching


def _watching_moments(make: Callable[..., CohortSum], seen: Watched) -> Callable[..., CohortSum]:
    def watching(store: Any, comparison: Any) -> CohortSum:
        seen.start["comparison"] = comparison
        return make(store, comparison)

    return watching


def _watching_start(make: Callable[..., Any], seen: Watched) -> Callable[..., Any]:
    def watching(popularity: Any, moments: Any, *rest: Any, **more: Any) -> Any:
        result = make(popularity, moments, *rest, **more)
        seen.start |= {"popularity": popularity, "moments": moments, "vectors": result.vectors}
        return result

    return watching


def _watching_noise(make: Callable[..., NoiseSource], seen: Watched, folder: Path) -> Callable[..., NoiseSource]:
    def watching(world: World, mechanism: str, round: int) -> NoiseSource:
        return _WatchedNoise(make(world, mechanism, round), seen, mechanism, round, folder / "ledger.jsonl")

    return watching


class _WatchedNoise:
    """A source of noise that looks at the ledger's file before each draw."""

    def __init__(self, source: NoiseSource, seen: Watched, mechanism: str, round: int, ledger: Path) -> None:
        self.simulated = source.simulated
        self._source, self._seen, self._of, self._ledger = source, seen, (mechanism, round), ledger

    def normal(self, shape: tuple[int, ...], std: float, dtype: Any = np.float64) -> Any:
        """Draw, and note whether the charge was on disk."""
        self._note(std)
        return self._source.normal(shape, std, dtype)

    def added(self, values: Any, std: float) -> Any:
        """Add noise, and note whether the charge was on disk."""
        self._note(std)
        return self._source.added(values, std)

    def _note(self, std: float) -> None:
        # Correlated noise looks at its draws once before the first round: nothing is released of that.
        waiting = self._of[0] == ROUNDS and not self._seen.sizes
        if std > 0 and not waiting and (not self._seen.draws or self._seen.draws[-1][:2] != self._of):
            try:
                charged = Ledger.read(self._ledger).charged(*self._of)
            except CorruptArtefact:
                charged = False
            self._seen.draws.append((*self._of, charged))
