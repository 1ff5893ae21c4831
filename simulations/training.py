"""A whole training in one process: start, rounds, checkpoints, resumption. Also what ``fedrecall run`` times."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from fedrecall.client.cohort import Towers
from fedrecall.client.start import popularity_sum, second_moment_sum
from fedrecall.client.trainer import Device
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.privacy.correlated import CorrelatedNoise, coefficients
from fedrecall.privacy.ledger import Head, Ledger
from fedrecall.privacy.noise import NoiseSource, SeededNoise, check_noise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded, write_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed, public_rng
from fedrecall.protocol.records import Arrays, CohortSum, Comparison, Update
from fedrecall.server.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedrecall.server.config import StartSettings
from fedrecall.server.content import Content
from fedrecall.server.enforcement import check_trust
from fedrecall.server.rounds import ROUNDS, Environment, ServerState, run_rounds, start_state
from fedrecall.server.sampling import Sampler
from fedrecall.server.start import (
    compare,
    first_item_vectors,
    first_model,
    release_popularity,
    release_second_moments,
)
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.plan import moment_items
from fedrecall.simulations.quiet import silence
from fedrecall.simulations.world import Progress, World, cohort_of, initial_towers, threads, trained_names, trainer_of

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


Collect = Callable[[int, Arrays, np.ndarray, float | None], CohortSum | Iterator[Update]]
Engine = Callable[[World, Path], AbstractContextManager[Collect]]
"""Yields what asks a cohort, for as long as rounds run."""


def train(
    world: World,
    out: Path,
    *,
    resume: bool,
    validate: Validate | None,
    progress: Progress,
    engine: Engine | None = None,
) -> Trained:
    """Train to the plan's horizon in the folder ``out`` (``ledger.jsonl``, ``checkpoints/``, ``private/``).

    A killed training goes on from its last checkpoint with ``resume`` and ends with the same weights: coins, negatives
    and noise are functions of (seed, plan, round), and a round replayed with identical noise is charged once.
    ``engine`` replaces the configured one.

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
        arrays, start = start_arrays(world, lambda name: ledger.charge(name, 0, noise_key(world, name, 0)), progress)
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


def start_arrays(
    world: World, charge: Callable[[str], object], progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Make the first model: public random weights, and item vectors from the private start.

    ``charge`` is called with each mechanism's name before its release. Also returns facts for the report.
    """
    config, plan, store = world.config, world.plan, world.store
    fresh = initial_arrays(world.shape, derive_seed(config.seed, "model"))
    arrays = {name: fresh[name].numpy().copy() for name in shared_names(fresh)}
    if not config.start.enabled:
        rng = public_rng(config.seed, "id table")
        table = rng.standard_normal((world.shape.n_items, world.shape.dim)) / np.sqrt(world.shape.dim)
        arrays[ITEM_ID] = table.astype(np.float32)
        return arrays, {"items": 0, "directions": 0}
    steps = 3
    progress("start", 0, steps)
    mechanism = plan.mechanism("popularity")
    noise = server_noise(world, mechanism.name, 0)
    check_noise(noise, plan)
    charge(mechanism.name)
    popular = _released_locally(world, mechanism, popularity_sum(store, plan.unit))
    central = plan.trust == "central"
    released = release_popularity(popular, mechanism, noise).arrays if central else popular.arrays
    popularity = released["popularity"]
    progress("start", 1, steps)
    settings, moments, second = config.start, None, None
    content = None
    if world.content is not None and settings.content:
        content = Content(features=world.content, items=settings.content_items, weight=settings.content)

    def most_popular(count: int) -> Comparison:
        return compare(popularity, count, mechanism, exponent=settings.exponent, reach=settings.reach)

    count = moment_items(config, plan, world.shape.n_items)
    if count:
        comparison = most_popular(count)
        second = plan.mechanism("second_moments")
        charge(second.name)
        sums = second_moment_sum(store, comparison)
        release = release_second_moments(sums, second, server_noise(world, second.name, 0))
        moments = release.arrays["second_moments"]
    progress("start", 2, steps)
    compared = most_popular(max(count, content.items) if content else count)
    first = first_item_vectors(
        popularity,
        moments,
        compared,
        second,
        world.shape.dim,
        power=settings.power,
        cut=settings.cut,
        content=content,
    )
    progress("start", 3, steps)
    facts = {"items": count, "directions": first.directions}
    return first_model(arrays, first, start_settings(config, plan, world.shape.n_items)), facts


def start_settings(config: RunConfig, plan: Plan, n_items: int) -> StartSettings:
    """Return the start of a run as a server carries it out."""
    own = config.start.model_dump(include=set(StartSettings.model_fields))
    return StartSettings(compared=moment_items(config, plan, n_items), **own)


def noise_key(world: World, mechanism: str, round: int) -> str:
    """Return the ledger's name of the noise of one release: a digest of seed, plan, mechanism and round."""
    return f"{derive_seed(world.config.seed, 'noise', world.plan.digest(), mechanism, round):032x}"


def server_noise(world: World, mechanism: str, round: int) -> SeededNoise:
    """Return the noise of one release; a replay draws it again."""
    return SeededNoise(world.config.seed, world.plan.digest(), mechanism, round)


def _released_locally(world: World, mechanism: Mechanism, cohort: CohortSum, *, round: int = 0) -> CohortSum:
    """Under trust ``local``, add the noise of all devices to their sum: one draw, sqrt(devices) times as large."""
    if world.plan.trust != "local":
        return cohort
    rng = SeededNoise(world.config.seed, world.plan.digest(), "devices", mechanism.name, round)
    std = mechanism.noise_multiplier * (mechanism.clip_norm or 0.0) * np.sqrt(cohort.devices)
    noised = {n: cohort.arrays[n] + rng.normal(cohort.arrays[n].shape, std) for n in sorted(cohort.arrays)}
    return CohortSum(round=cohort.round, devices=cohort.devices, arrays=noised)


@contextmanager
def _engine(world: World, towers: Towers | None, out: Path) -> Iterator[Collect]:
    """Yield the collector of the configured engine, which ends with the rounds."""
    if world.config.engine == "cohort":
        yield _cohort_collector(world, towers)
    elif world.config.engine == "device":
        yield _device_collector(world, towers)
    else:
        silence()
        from fedrecall.simulations.flower import simulation  # Flower and Ray take seconds to load

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
        # Under trust 'local' a sum is of contributions that are still without their devices' noise.
        return _released_locally(world, mechanism, found, round=round) if isinstance(found, CohortSum) else found

    def coins(round: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(config.seed, "cohort", plan.digest(), round))

    def noise(round: int) -> NoiseSource:
        return server_noise(world, mechanism.name, round)

    correlated = CorrelatedNoise(coefficients(mechanism.bands), mechanism.steps, noise) if mechanism.bands > 1 else None
    return Environment(
        collect=counted,
        sampler=Sampler.of(mechanism, plan.devices, coins),
        noise=correlated.of if correlated else noise,
        key=lambda round: noise_key(world, mechanism.name, round),
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
