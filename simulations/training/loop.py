"""A whole training in one process: start, rounds, checkpoints, resumption. Also what ``fedrecall run`` times."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from fedrecall.client.training.cohort import Towers
from fedrecall.privacy.ledger.ledger import Head, Ledger
from fedrecall.privacy.mechanisms.correlated import CorrelatedNoise, coefficients
from fedrecall.privacy.mechanisms.noise import NoiseSource, SeededNoise
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded, write_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedrecall.server.training.enforcement import check_trust
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState, run_rounds, start_state
from fedrecall.server.training.sampling import Sampler
from fedrecall.simulations.training import simulated_noise
from fedrecall.simulations.training.collect import Collect, Engine
from fedrecall.simulations.training.quiet import silence
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import (
    Progress,
    World,
    cohort_of,
    initial_towers,
    threads,
    trained_names,
    trainer_of,
)

Validate = Callable[[int, Mapping[str, np.ndarray], Towers | None], dict[str, Any]]
"""Measures a model: its round, its released arrays and the devices' towers in, figures for the history out."""

_TOWERS = "devices"
_MAX_TOWERS = 64 << 30


@dataclass(kw_only=True, eq=False)
class Trained:
    """The result of training.

    Attributes:
        arrays: the released shared arrays, by name.
        towers: private towers of all devices where rounds train them, else ``None``.
        history: what ``validate`` returned, by round.
        start: facts about the start, for the report.
        train_s: seconds spent in rounds by this process.
        device_rounds: device-rounds done by this process.
        ledger_head: where the ledger stood at the end.
    """

    arrays: dict[str, np.ndarray]
    towers: Towers | None
    history: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    device_rounds: int = 0
    ledger_head: Head


def train(
    world: World,
    out: Path,
    *,
    resume: bool,
    validate: Validate | None,
    progress: Progress,
    engine: Engine | None = None,
    watch: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Trained:
    """Train to the plan's horizon in the folder ``out`` (``ledger.jsonl``, ``checkpoints/``, ``private/``).

    A killed training goes on from its last checkpoint with ``resume`` and ends with the same weights: coins, negatives
    and noise are functions of (seed, plan, round), and a round replayed with identical noise is charged once.
    ``engine`` replaces the configured one. ``watch`` is told of every row that the history gets.

    Raises:
        UsageError: ``resume`` with another configuration than the folder was started with.
    """
    config, plan = world.config, world.plan
    check_trust(plan)
    checkpoints, path = out / "checkpoints", out / "ledger.jsonl"
    settings = config.published()
    del settings["threads"]  # their number changes no bit of the result
    digest = hashlib.sha256(dumps(settings).encode()).hexdigest()
    saved = load_latest(checkpoints) if resume else None
    if saved is not None and (saved.config_digest != digest or saved.plan_digest != plan.digest()):
        raise UsageError(f"{out} was started with another configuration: resume with the same, or choose another --out")
    ledger = Ledger.resume(path, plan) if saved is None else Ledger.open(path, plan, at_least=_head(saved))
    trained = trained_names(world)
    if saved is None:
        arrays, start = start_arrays(
            world, lambda name: ledger.charge(name, 0, simulated_noise.noise_key(world, name, 0)), progress
        )
        state = start_state(config.server, arrays, trained, plan.mechanism(ROUNDS).clip_norm)
        towers = initial_towers(world) if config.local.tower_learning_rate else None
        history: list[dict[str, Any]] = []
    else:
        towers = load_towers(out, saved.round) if config.local.tower_learning_rate else None
        state = ServerState(
            round=saved.round,
            arrays=saved.arrays,
            trained=trained,
            clip_norm=saved.extra["clip_norm"],
            optimiser=saved.optimiser,
            average=saved.average,
        )
        history, start = list(saved.extra["history"]), saved.extra["start"]
    result = Trained(arrays={}, towers=towers, history=history, start=start, ledger_head=ledger.head())
    clock = time.perf_counter()
    every, total = config.rounds.evaluate_every, plan.mechanism(ROUNDS).steps

    def record(state: ServerState) -> None:
        if validate is None:
            return
        clip = {"clip_norm": state.clip_norm} if plan.mechanism(ROUNDS).adaptive_clip else {}
        history.append({"round": state.round, **clip, **validate(state.round, state.released(), towers)})
        watch(history[-1])

    def save(state: ServerState) -> None:
        if towers is not None:
            _save_towers(out, state.round, towers, keep=config.server.keep_checkpoints)
        save_checkpoint(
            checkpoints,
            Checkpoint(
                round=state.round,
                arrays=state.arrays,
                optimiser=state.optimiser,
                average=state.average,
                ledger_head=f"{ledger.head().lines}:{ledger.head().sha256}",
                config_digest=digest,
                plan_digest=plan.digest(),
                extra={"history": history, "start": start, "clip_norm": state.clip_norm},
            ),
            keep=config.server.keep_checkpoints,
        )

    def on_round(state: ServerState) -> None:
        nonlocal clock
        result.train_s += time.perf_counter() - clock
        if state.round % every == 0 or state.round == total:
            record(state)
        if state.round % config.server.checkpoint_every == 0 or state.round == total:
            save(state)
        progress("rounds", state.round, total)
        clock = time.perf_counter()

    if saved is None:
        record(state)
        save(state)
    if state.round < total:
        progress("rounds", state.round, total)
    with engine(world, out) if engine else _engine(world, towers, out) as collect:
        environment = _environment(world, collect, result)
        clock = time.perf_counter()
        state = run_rounds(state, plan, environment, config=config.server, ledger=ledger, on_round=on_round)
    result.arrays, result.ledger_head = state.released(), ledger.head()
    return result


def load_towers(out: Path, round: int) -> Towers:
    """Return the towers of all devices after ``round`` rounds; raises CorruptArtefact where they are not."""
    path = _towers_path(out, round)
    try:
        return dict(safetensors.torch.load(read_bounded(path, max_bytes=_MAX_TOWERS)))
    except SafetensorError as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): run again") from error


@contextmanager
def _engine(world: World, towers: Towers | None, out: Path) -> Iterator[Collect]:
    """Yield the collector of the configured engine, which ends with the rounds."""
    if world.config.engine == "cohort":
        yield _cohort_collector(world, towers)
    elif world.config.engine == "device":
        yield _device_collector(world, towers)
    else:
        silence()
        from fedrecall.simulations.training.flower import simulation  # Flower and Ray take seconds to load

        with simulation(world, out) as collect:
            yield collect


def _environment(world: World, collect: Collect, result: Trained) -> Environment:
    """Wire the collector of the chosen engine to the round loop."""
    config, plan = world.config, world.plan
    mechanism = plan.mechanism(ROUNDS)

    def counted(
        round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None
    ) -> CohortSum | Iterator[Update]:
        result.device_rounds += plan.cohort_size(mechanism)  # expected: the actual size is secret under coins
        found = collect(round, arrays, cohort, clip_norm)
        if isinstance(found, CohortSum):
            # Under trust 'local' a sum is of contributions that are still without their devices' noise.
            return simulated_noise.released_locally(world, mechanism, found, round=round)
        return found

    def coins(round: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(config.seed, "cohort", plan.digest(), round))

    def noise(round: int) -> NoiseSource:
        return simulated_noise.server_noise(world, mechanism.name, round)

    correlated = CorrelatedNoise(coefficients(mechanism.bands), mechanism.steps, noise) if mechanism.bands > 1 else None
    return Environment(
        collect=counted,
        sampler=Sampler.of(mechanism, plan.devices, coins),
        noise=correlated.of if correlated else noise,
        key=lambda round: simulated_noise.noise_key(world, mechanism.name, round),
        samples=config.local.blocks if plan.unit == "interaction" else 1,
    )


def _cohort_collector(world: World, towers: Towers | None) -> Collect:
    mechanism = world.plan.mechanism(ROUNDS)
    cohort = cohort_of(world, workers=threads(world.config))
    count_within = mechanism.adaptive_clip is not None

    def collect(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> CohortSum:
        return cohort.collect(round, arrays, users, towers, clip_norm=clip_norm, count_within=count_within)

    return collect


def _device_collector(world: World, towers: Towers | None) -> Collect:
    from fedrecall.client.training.trainer import Device  # Opacus takes seconds to load

    trainer = trainer_of(world)
    digest = world.plan.digest()

    def collect(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        for user in users.tolist():
            tower = {} if towers is None else {n: t[user] for n, t in towers.items()}
            noise = SeededNoise(world.config.seed, digest, "device", user, round)
            device = Device(store=world.store.only(user), key=user, tower=tower)
            yield trainer.update(round, arrays, device, noise, clip_norm=clip_norm)

    return collect


def _head(saved: Checkpoint) -> Head:
    lines, _, sha256 = (saved.ledger_head or "").partition(":")
    return Head(lines=int(lines), sha256=sha256)


def _towers_path(out: Path, round: int) -> Path:
    return out / "private" / f"{_TOWERS}-{round:06d}.safetensors"


def _save_towers(out: Path, round: int, towers: Towers, *, keep: int) -> None:
    """Save the devices' private state of a round, before the checkpoint that needs it."""
    write_atomic(_towers_path(out, round), safetensors.torch.save(towers))
    for old in sorted((out / "private").glob(f"{_TOWERS}-*.safetensors"))[: -(keep + 1)]:
        old.unlink(missing_ok=True)
