"""Sensitivity of the private start, measured: how far one device, or one event, moves popularity and second moments.

Beside devices of the run, devices with made-up histories are asked: the shortest and the longest, of the items that
the start looks at most. What they contribute was to be as large as the accountant was told, and never larger.
"""

import time
from collections.abc import Callable

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.training import start

_ASKED = 12
_TOLERANCE = 1e-9
"""Of the ratio: sums are made in float64."""

Sum = Callable[[EventStore], np.ndarray]


def start_sensitivity(trial: Trial) -> list[Attempt]:
    """Take one device, or one event, away, and compare the sums that the start releases with noise."""
    start = trial.watched.start
    if not start:
        return []
    count, compare = _wired("popularity_sum"), _wired("second_moment_sum")
    sums: dict[str, Sum] = {"popularity": lambda store: count(store, trial.plan.unit).arrays["popularity"]}
    if "comparison" in start:
        sums["second_moments"] = lambda store: compare(store, start["comparison"]).arrays["second_moments"]
    probed = _probed(trial)
    neighbours = _without_device if trial.plan.unit == "user" else _without_event
    mechanisms = {m.name: m for m in trial.plan.mechanisms if m.steps and m.clip_norm is not None}
    return [
        _measured(trial, mechanisms[name], make, probed, neighbours(probed, trial.seed))
        for name, make in sums.items()
        if name in mechanisms
    ]


def _wired(name: str) -> Callable[..., CohortSum]:
    """Return what a training calls by that name."""
    found: Callable[..., CohortSum] = getattr(start, name)
    return found


def _measured(
    trial: Trial, mechanism: Mechanism, make: Sum, probed: EventStore, neighbours: list[EventStore]
) -> Attempt:
    began, allowed = time.perf_counter(), mechanism.clip_norm or 0.0
    whole = make(probed)
    ratios = [float(np.linalg.norm(whole - make(one))) / allowed for one in neighbours]
    return trial.attempt(
        f"sensitivity: {mechanism.name}",
        began,
        adversary="auditor",
        what=f"One {trial.plan.unit} was taken out of the data of some devices, made-up ones among them, and the sums "
        f"of {mechanism.name} were compared. Score: the largest difference over what the accountant was told "
        f"({allowed:.4g}); above 1 the noise is too small for what it hides.",
        score=max(ratios),
        metric="bound",
        chance=1.0,
        power="a contribution beyond its bound by 1e-9 of it, of the probed devices; not the worst history there is",
        verdict="broken" if max(ratios) > 1 + _TOLERANCE else "held",
        trials=len(ratios),
        detail={"ratios": ratios},
    )


def _probed(trial: Trial) -> EventStore:
    """Return the histories of some devices of the run, and made-up ones, as devices of a store of their own."""
    store, rng = trial.world.store, np.random.default_rng(trial.seed)
    holding = np.flatnonzero(store.counts() > 0)
    histories = [store.history(int(device)) for device in rng.permutation(holding)[:_ASKED]]
    popular = np.argsort(-np.asarray(trial.watched.start["popularity"]), kind="stable").astype(np.int64)
    for length in (1, 2, 3, 10, 100, len(popular)):
        histories += [popular[:length], popular[:length][::-1]]
    histories += [np.repeat(popular[:2], 50), np.tile(popular[:2], 50), rng.permutation(popular)]
    return EventStore.from_columns(
        users=np.repeat(np.arange(len(histories)), [len(history) for history in histories]),
        items=np.concatenate(histories),
        n_users=len(histories),
        n_items=store.n_items,
    )


def _without_device(store: EventStore, seed: int) -> list[EventStore]:
    """Return the store without the events of each device in turn."""
    return [store.select(store.users() != device) for device in range(store.n_users)]


def _without_event(store: EventStore, seed: int) -> list[EventStore]:
    """Return the store without one event of each device in turn."""
    rng, found = np.random.default_rng(seed), []
    for device in range(store.n_users):
        keep = np.ones(store.n_events, dtype=bool)
        keep[rng.integers(store.offsets[device], store.offsets[device + 1])] = False
        found.append(store.select(keep))
    return found
