"""Sensitivity, measured: neighbouring worlds through the same wiring, and how far apart their sums are.

The model is made steep first, so that contributions without a clip would be far beyond it: a clip that does not
hold, or a neighbour that counts for more than the accountant was told, then shows as a ratio above 1.
"""

import time
from dataclasses import replace

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import Environment
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Flat, flat

_ASKED = 12
_STEEP = (1.0, 30.0)
_HEAVY = 1e4
_TOLERANCE = 1e-4
"""Of the ratio: float32 sums, and the grid that noise is snapped to."""


def sensitivity(trial: Trial) -> list[Attempt]:
    """Take one device, or one event, away, and compare the rounds' sums."""
    mechanism = trial.rounds
    if not mechanism.steps or mechanism.clip_norm is None:
        return []
    began = time.perf_counter()
    state, _ = trial.wired
    allowed = mechanism.clip_norm * (2.0 if mechanism.adjacency == "replace_one" else 1.0)
    rng, names = np.random.default_rng(trial.seed), sorted(state.trained)
    asked = _asked(trial.world.store, rng)
    differences: list[float] = []
    for steep in _STEEP:
        arrays = {name: array * np.float32(steep) for name, array in state.arrays.items()}
        moved = _by_device if trial.plan.unit == "user" else _by_event
        differences += moved(trial, arrays, asked, names, rng)
    worst = max(differences) / allowed
    broken = worst > 1 + _TOLERANCE
    return [
        trial.attempt(
            "sensitivity",
            began,
            adversary="auditor",
            what=f"One {trial.plan.unit} was taken out of the data, and the sums of two otherwise equal rounds were "
            "compared. Score: the largest difference over what the accountant was told "
            f"({allowed:.4g}); above 1 the noise is too small for what it hides.",
            score=worst,
            metric="bound",
            chance=1.0,
            power="any unclipped contribution of the probed devices, and a neighbour that moves the sum by more than "
            "stated, at the first weights and at 30 times them; not the worst history that there could be",
            verdict="broken" if broken else "held",
            trials=len(differences),
            detail={"ratios": [difference / allowed for difference in differences]},
        )
    ]


def _by_device(
    trial: Trial, arrays: dict[str, np.ndarray], asked: np.ndarray, names: list[str], rng: np.random.Generator
) -> list[float]:
    """Return how far each device moves the sum over a cohort when it is left out of it."""
    clip_norm = trial.rounds.clip_norm

    def asking(devices: np.ndarray) -> Flat:
        # Towers that train in rounds move with every question: each question gets devices as they were at first.
        moving = trial.world.config.local.tower_learning_rate > 0
        return _sum(trial.wired_with(trial.world) if moving else trial.wired[1], arrays, devices, clip_norm, names)

    everyone = asking(asked)
    return [float(np.linalg.norm(everyone - asking(asked[asked != device]))) for device in rng.permutation(asked)]


def _by_event(
    trial: Trial, arrays: dict[str, np.ndarray], asked: np.ndarray, names: list[str], rng: np.random.Generator
) -> list[float]:
    """Return how far one event less, and one heavy event more, move each device's contribution."""
    environment, clip_norm = trial.wired[1], trial.rounds.clip_norm
    before = [_sum(environment, arrays, asked[[i]], clip_norm, names) for i in range(len(asked))]
    found = []
    for change in (_without_events, _with_heavy_events):
        store = change(trial.world.store, asked, rng)
        neighbour = trial.wired_with(replace(trial.world, store=store))
        after = [_sum(neighbour, arrays, asked[[i]], clip_norm, names) for i in range(len(asked))]
        found += [float(np.linalg.norm(a - b)) for a, b in zip(before, after, strict=True)]
    return found


def stateless(trial: Trial) -> list[Attempt]:
    """Under unit ``interaction``, ask the same devices the same question twice: nothing may have changed."""
    if trial.plan.unit != "interaction" or not trial.rounds.steps:
        return []
    began = time.perf_counter()
    state, environment = trial.wired
    names, rng = sorted(state.trained), np.random.default_rng(trial.seed)
    asked = _asked(trial.world.store, rng)
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


def _asked(store: EventStore, rng: np.random.Generator) -> np.ndarray:
    """Return some devices with events, in order."""
    holding = np.flatnonzero(store.counts() > 1)
    return np.sort(rng.choice(holding, size=min(_ASKED, len(holding)), replace=False))


def _without_events(store: EventStore, devices: np.ndarray, rng: np.random.Generator) -> EventStore:
    """Return the store without one event of each of ``devices``."""
    keep = np.ones(store.n_events, dtype=bool)
    keep[[rng.integers(store.offsets[device], store.offsets[device + 1]) for device in devices]] = False
    return store.select(keep)


def _with_heavy_events(store: EventStore, devices: np.ndarray, rng: np.random.Generator) -> EventStore:
    """Return the store with one event more of each of ``devices``, so heavy that it turns its sample's gradient.

    Its item is one that the device holds, and so in a sample with other events.
    """
    items = [store.items[rng.integers(store.offsets[device], store.offsets[device + 1])] for device in devices]
    times = store.times
    return EventStore.from_columns(
        users=np.concatenate([store.users(), devices]),
        items=np.concatenate([store.items, items]),
        n_users=store.n_users,
        n_items=store.n_items,
        times=None if times is None else np.concatenate([times, np.full(len(devices), times.max())]),
        types=np.concatenate([store.types, np.zeros(len(devices), dtype=np.int8)]),
        weights=np.concatenate([store.weights, np.full(len(devices), _HEAVY, dtype=np.float32)]),
        type_names=store.type_names,
    )


def _sum(
    environment: Environment,
    arrays: Arrays,
    asked: np.ndarray,
    clip_norm: float | None,
    names: list[str],
) -> Flat:
    got = environment.collect(0, arrays, asked, clip_norm)
    if isinstance(got, CohortSum):
        return flat(got.arrays, names)
    return np.asarray(np.sum([flat(update.arrays, names) for update in got], axis=0))
