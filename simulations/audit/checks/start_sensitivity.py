"""Sensitivity of the private start, measured: how far one device, or one event, moves popularity and second moments.

Beside devices of the run, its most and least active ones among them, devices with made-up histories are asked: of no
event to many more than the catalogue has items, of the items that the start looks at most. What they contribute was to
be as large as the accountant was told, and never larger.
"""

import time
from collections.abc import Callable

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.wrapping import wired
from fedrecall.simulations.training import simulated_noise
from fedrecall.simulations.training import start as training_start

_TOLERANCE = 1e-9
"""Of the ratio: sums are made in float64."""

_IN_THE_RUN = 2

Sum = Callable[[EventStore], np.ndarray]


def start_sensitivity(trial: Trial) -> list[Attempt]:
    """Take one device, or one event, away, and compare the sums that the start releases with noise."""
    start = trial.watched.start
    if not start:
        return []
    count, compare = (wired(training_start, name) for name in ("popularity_sum", "second_moment_sum"))
    sums: dict[str, Sum] = {"popularity": lambda store: count(store, trial.plan.unit).arrays["popularity"]}
    if "comparison" in start:
        sums["second_moments"] = lambda store: compare(store, start["comparison"]).arrays["second_moments"]
    moved = _by_device if trial.plan.unit == "user" else _by_event
    mechanisms = {m.name: m for m in trial.plan.mechanisms if m.steps and m.clip_norm is not None}
    return [_measured(trial, mechanisms[name], make, moved) for name, make in sums.items() if name in mechanisms]


def _measured(trial: Trial, mechanism: Mechanism, make: Sum, moved: Callable[[Trial, Sum], list[float]]) -> Attempt:
    began, allowed = time.perf_counter(), mechanism.clip_norm or 0.0
    ratios = [distance / allowed for distance in moved(trial, make)]
    released, slack = _released(trial, mechanism, make(trial.world.store))
    ratios += [] if released / allowed <= 1 + slack else [released / allowed]
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
        power="a contribution beyond its bound by 1e-9 of it, of the probed devices, the run's most and least active "
        "and made-up ones of no event to many more than the catalogue has; not the worst history there is",
        verdict="held" if max(ratios) <= 1 + _TOLERANCE else "broken",
        trials=len(ratios),
        detail={"ratios": ratios},
    )


def _released(trial: Trial, mechanism: Mechanism, total: np.ndarray) -> tuple[float, float]:
    """Return how far a contribution of the largest size moves a release under the same noise, and what rounding may.

    The sum is that of the run: whatever is released of it beside its noise moves too.
    """
    size = mechanism.noise_multiplier * 4e-6 * float(np.sqrt(total.size)) + _TOLERANCE
    one = np.zeros(total.shape)
    one.reshape(-1)[0] = mechanism.clip_norm or 0.0
    pair = []
    for summed in (total, total + one):
        cohort = CohortSum(round=0, devices=trial.plan.devices, arrays={mechanism.name: summed})
        if trial.plan.trust == "local":
            release = simulated_noise.released_locally(trial.world, mechanism, cohort).arrays
        else:
            noise = simulated_noise.server_noise(trial.world, mechanism.name, 0)
            release = wired(training_start, f"release_{mechanism.name}")(cohort, mechanism, noise).arrays
        pair.append(np.asarray(release[mechanism.name]))
    return float(np.linalg.norm(pair[1] - pair[0])), size * float(np.sqrt(trial.plan.devices))


def _by_device(trial: Trial, make: Sum) -> list[float]:
    """Return how far each probed device moves the sum over them all, and the most active ones that of the run."""
    asked, run = trial.probed.alone(), trial.world.store
    stores = [(asked, range(asked.n_users)), (run, trial.probed.devices[:_IN_THE_RUN].tolist())]
    found = []
    for store, devices in stores:
        whole, users = make(store), store.users()
        found += [float(np.linalg.norm(whole - make(store.select(users != device)))) for device in devices]
    return found


def _by_event(trial: Trial, make: Sum) -> list[float]:
    """Return how far one event of each probed device moves the sum over them all."""
    store, rng, found = trial.probed.alone(), np.random.default_rng(trial.seed), []
    whole = make(store)
    for first, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        for event in {int(first), int(end) - 1, int(rng.integers(first, max(first + 1, end)))} if end > first else ():
            keep = np.ones(store.n_events, dtype=bool)
            keep[event] = False
            found.append(float(np.linalg.norm(whole - make(store.select(keep)))))
    return found
