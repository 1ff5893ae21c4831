"""Speed and memory of both engines on one round of training, with the code that `fedrecall run` executes.

The round: a Transformer of width 32 over 50 events (2 blocks, 2 heads, hidden 64: the default model's proportions),
256 negatives, one local step, clip and noise for every user, one step of the global optimiser. Every figure is the
best of five windows, since other work on a machine can only slow a window down.

What privacy costs: a private round's time over that of the same code with the clip infinite and sigma 0
(`private_cost`), and over that of a run without privacy, which may take one gradient for many devices
(`private_cost_against_plain`); for all weights and for those that the default preset trains. Rounds take turns, and
the figure is the median of nine ratios. A third of the users overstates what the server's noise costs.

    python benchmarks/engine.py --data-path FOLDER     on MovieLens-1M
    python benchmarks/engine.py                        on synthetic data of the same size
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.config import ServerConfig
from fedrecall.server.training import optimiser
from fedrecall.server.training.aggregation import mean_of, sum_updates
from fedrecall.server.training.validation import schema_of
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import make_split
from fedrecall.simulations.data.synthetic import synthetic_dataset

WINDOWS = 5
TURNS = 9
DEVICES = 200
ROUNDS = Mechanism(name="rounds", noise_multiplier=1.0, clip_norm=0.1)
LOCAL = LocalConfig(negatives=256)
SERVER = ServerConfig(optimiser="fedadam", learning_rate=1e-3)
Collect = Callable[[int, Arrays, np.ndarray], CohortSum]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, help="folder of MovieLens-1M")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if options.data_path is None:
        dataset = synthetic_dataset(users=6040, items=3883, events_per_user=165)
    else:
        dataset = load_dataset("ml-1m", data_path=options.data_path)
    figures = measure(make_split(dataset, "loo").train, dataset.name)
    if options.format == "json":
        print(json.dumps(figures, allow_nan=False))
        return
    for name, value in figures.items():
        print(f"{name:27} {value}")


def measure(store: EventStore, name: str) -> dict[str, object]:
    """Return every figure; progress goes to stderr."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(1)
    everyone = np.arange(store.n_users)
    cohort = best(everyone, cohort_collector(store, cores), store, "cohort")
    some = everyone[:: max(1, len(everyone) // DEVICES)][:DEVICES]
    device = {}
    for threads in sorted({1, min(2, cores)}):
        torch.set_num_threads(threads)
        device[threads] = best(some, device_collector(store), store, f"device, {threads} threads")
    torch.set_num_threads(1)
    quarter = len(everyone) // 4
    parts = [everyone[: k * quarter] for k in (1, 2, 4)]
    by_users = [1 / best(part, cohort_collector(store, cores), store, f"{len(part)} users") for part in parts]
    wide = replace(store, n_items=10 * store.n_items)
    by_items = [best(everyone, cohort_collector(s, cores), s, f"{s.n_items} items") for s in (store, wide)]
    trains = {"all weights": "", "recency head": "transformer.recency."}
    costs = {name: private_cost(store, everyone[::3], cores, prefix) for name, prefix in trains.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    fastest = max(device, key=lambda threads: device[threads])
    return {
        "data": name,
        "users": store.n_users,
        "items": store.n_items,
        "events": store.n_events,
        "cores": cores,
        "torch": torch.__version__,
        "cohort_user_rounds_per_s": round(cohort, 1),
        "device_user_rounds_per_s": round(device[fastest], 1),
        "device_threads": fastest,
        "ratio": round(cohort / device[fastest], 2),
        "linear_in_users": [round(t / by_users[0], 3) for t in by_users],
        "catalogue_x10": round(by_items[0] / by_items[1], 3),
        "private_cost": {name: round(cost[0], 3) for name, cost in costs.items()},
        "private_cost_against_plain": {name: round(cost[1], 3) for name, cost in costs.items()},
        "peak_rss_mb": round(peak, 1),
    }


def best(users: np.ndarray, collect: Collect, store: EventStore, label: str) -> float:
    """Return the users a second of the fastest of five rounds, after one that warms up."""
    arrays = start(store)
    state = optimiser.init(SERVER, arrays)
    rates = []
    for round in range(WINDOWS + 1):
        begin = time.perf_counter()
        total = collect(round, arrays, users)
        noised = gaussian_sum(total.arrays, ROUNDS, SeededNoise(0, "benchmark", round))
        arrays, state = optimiser.step(SERVER, state, arrays, mean_of(noised, len(users)), rounds=WINDOWS + 1)
        rates.append(len(users) / (time.perf_counter() - begin))
        print(f"{label}: {rates[-1]:.0f} users/s", file=sys.stderr)
    return max(rates[1:])


def private_cost(store: EventStore, users: np.ndarray, workers: int, prefix: str) -> tuple[float, float]:
    """Return a private round's time over one with clip infinite and sigma 0, and over one without privacy."""
    arrays = start(store)
    trained = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    cohort, state = cohort_of(store, workers, tuple(trained)), optimiser.init(SERVER, trained)
    infinite = replace(ROUNDS, noise_multiplier=0.0, clip_norm=1e30)
    turns: dict[str, Mechanism] = {"private": ROUNDS, "infinite": infinite, "plain": replace(infinite, clip_norm=None)}
    ratios = []
    for round in range(TURNS + 1):
        seconds = {}
        for name, mechanism in turns.items():
            begin = time.perf_counter()
            total = cohort.collect(round, arrays, users, clip_norm=mechanism.clip_norm)
            noised = gaussian_sum(total.arrays, mechanism, SeededNoise(0, "benchmark", round))
            optimiser.step(SERVER, state, trained, mean_of(noised, len(users)), rounds=TURNS + 1)
            seconds[name] = time.perf_counter() - begin
        ratios.append((seconds["private"] / seconds["infinite"], seconds["private"] / seconds["plain"]))
        print(f"private round, {prefix or 'all weights'}: {ratios[-1]}", file=sys.stderr)
    infinitely, plainly = zip(*ratios[1:], strict=True)
    return statistics.median(infinitely), statistics.median(plainly)


def start(store: EventStore) -> dict[str, np.ndarray]:
    """Return a model whose layers all work: the initial one has zeros, which would skip nothing but prove less."""
    fresh = initial_arrays(shape_of(store), 0)
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal(fresh[name].shape) for name in shared_names(fresh)}
    return {name: fresh[name].numpy() + (0.1 * value).astype(np.float32) for name, value in noise.items()}


def shape_of(store: EventStore) -> ModelShape:
    return ModelShape(
        n_items=store.n_items,
        n_features=0,
        n_types=len(store.type_names),
        dim=32,
        window=50,
        blocks=2,
        heads=2,
        hidden=64,
        user_dim=8,
        user_hidden=16,
    )


def cohort_collector(store: EventStore, workers: int) -> Collect:
    return partial(cohort_of(store, workers, tuple(start(store))).collect, clip_norm=ROUNDS.clip_norm)


def cohort_of(store: EventStore, workers: int, trained: tuple[str, ...]) -> Cohort:
    return Cohort(
        store=store,
        shape=shape_of(store),
        features=None,
        local=LOCAL,
        unit="user",
        trained=trained,
        seed=0,
        device=torch.device("cpu"),
        workers=workers,
    )


def device_collector(store: EventStore) -> Collect:
    """Collect device by device, through Opacus, the gate and the server's validation."""
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=store.n_users, mechanisms=(ROUNDS,))
    trained = tuple(start(store))
    trainer = Trainer(shape=shape_of(store), features=None, local=LOCAL, plan=plan, trained=trained, seed=0)

    def collect(round: int, arrays: Arrays, users: np.ndarray) -> CohortSum:
        devices = (Device(store=store.only(user), key=user, tower={}) for user in users.tolist())
        updates = (trainer.update(round, arrays, device) for device in devices)
        return sum_updates(updates, schema_of(arrays), round=round, clip_norm=ROUNDS.clip_norm)

    return collect


if __name__ == "__main__":
    main()
