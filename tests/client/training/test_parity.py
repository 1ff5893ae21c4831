"""Two paths, one maths: both engines end where the oracle of ``engine_contract`` ends."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Arrays, Update
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.training.loop import train as train_run
from fedrecall.simulations.training.world import World as TrainingWorld

from .engine_contract import CASES, SEED, Case, Collect, EngineContract, Towers, World, make_world, train


def batched(world: World, towers: Towers | None, **options: int) -> Collect:
    cohort = Cohort(
        store=world.store,
        shape=world.shape,
        features=world.features,
        local=world.local,
        unit=world.plan.unit,
        trained=world.trained,
        seed=SEED,
        device=torch.device("cpu"),
        dtype=torch.float64,
        **options,
    )
    count_within = world.case.adaptive is not None
    return lambda round, arrays, users, clip: cohort.collect(
        round, arrays, users, towers, clip_norm=clip, count_within=count_within
    )


class TestBatchedPath(EngineContract):
    def collector(self, world: World, towers: Towers | None) -> Collect:
        return batched(world, towers, chunk=3)

    @pytest.mark.parametrize("name", ["user, one step", "user, many steps, clipped, towers", "interaction, clipped"])
    def test_the_number_of_workers_changes_no_bit(self, name: str, tmp_path: Path) -> None:
        world, found = make_world(CASES[name]), []
        for workers in (1, 3):
            (tmp_path / str(workers)).mkdir()
            found.append(
                train(world, batched(world, world.fresh_towers(), chunk=2, workers=workers), tmp_path / str(workers))
            )
        for name in world.trained:
            np.testing.assert_array_equal(found[0][name], found[1][name])


class TestDevicePath(EngineContract):
    def collector(self, world: World, towers: Towers | None) -> Collect:
        trainer = Trainer(
            shape=world.shape,
            features=world.features,
            local=world.local,
            plan=world.plan,
            trained=world.trained,
            seed=SEED,
            dtype=torch.float64,
        )

        def collect(round: int, arrays: Arrays, users: np.ndarray, clip: float | None) -> Iterator[Update]:
            for user in users.tolist():
                tower = {} if towers is None else {n: t[user] for n, t in towers.items()}
                device = Device(store=world.store.only(user), key=user, tower=tower)
                yield trainer.update(round, arrays, device, clip_norm=clip)

        return collect


# With noise: 200 rounds that hardly move the model, each with a seed of its own, are 200 draws of one round.

SEEDS, SIGMA, CLIP, TINY = 200, 3.0, 1e-3, ([4, 4, 1], [9, 8, 9, 10, 0])


def noised_moves(engine: str, unit: str, trust: str, sigma: float, folder: Path) -> np.ndarray:
    """Return the model's moves in each of ``SEEDS`` noised rounds, [rounds, parameters]."""
    world = make_world(Case(unit=unit, trust=trust, types=1, features=0, weights=False, blocks=0, histories=TINY))
    adjacency = world.plan.mechanism("rounds").adjacency
    rounds = Mechanism(name="rounds", clip_norm=CLIP, noise_multiplier=sigma, adjacency=adjacency, steps=SEEDS)
    # Another mark in the plan gives another seed, also where both engines share the code that draws.
    plan = replace(world.plan, mechanisms=(rounds, Mechanism(name=f"{engine} {sigma}", steps=0)))
    config = RunConfig.model_validate(
        {
            "engine": engine,
            "threads": 1,
            "start": {"enabled": False},
            "rounds": {"count": SEEDS, "train": ["transformer.out."], "evaluate_every": 1},
            "local": world.local.model_dump(),
            "server": {"optimiser": "sgd", "learning_rate": 1.0, "checkpoint_every": SEEDS},
        }
    )
    training = TrainingWorld(config=config, plan=plan, store=world.store, features=None, shape=world.shape)
    seen: list[np.ndarray] = []

    def look(round: int, arrays: Arrays, towers: Towers | None) -> dict[str, float]:
        names = sorted(name for name in arrays if name.startswith("transformer.out."))
        seen.append(np.concatenate([arrays[name].ravel() for name in names]).astype(np.float64))
        return {}

    train_run(training, folder, resume=False, validate=look, progress=lambda *_: None)
    return np.diff(seen, axis=0)


def told_apart(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Return p-values of two-sample tests on lengths, on one direction, and on all coordinates together."""
    direction = np.random.default_rng(0).standard_normal(one.shape[1])
    views = (lambda x: np.linalg.norm(x, axis=1), lambda x: x @ direction, np.ravel)
    return [float(stats.ks_2samp(view(one), view(other)).pvalue) for view in views]


@pytest.mark.parametrize(("unit", "trust"), [("user", "central"), ("interaction", "local")])
def test_with_noise_nothing_tells_the_paths_apart_but_another_sigma_does(unit: str, trust: str, tmp_path: Path) -> None:
    """Power: 1.5 sigma shifts the mean length of 20 coordinates by 3 of its deviations; KS then errs below 1e-20."""
    device = noised_moves("device", unit, trust, SIGMA, tmp_path / "device")
    batched = noised_moves("cohort", unit, trust, SIGMA, tmp_path / "batched")
    louder = noised_moves("cohort", unit, trust, 1.5 * SIGMA, tmp_path / "louder")
    assert min(told_apart(device, batched)) > 1e-3
    assert told_apart(device, louder)[0] < 1e-10
    assert told_apart(batched, louder)[0] < 1e-10
    planned = SIGMA * CLIP * (len(TINY) ** 0.5 if unit == "interaction" else 1.0) / len(TINY)
    for moves, factor in ((device, 1.0), (batched, 1.0), (louder, 1.5)):
        # 4,000 values: 1.1 % is one deviation of a measured sigma.
        assert moves.std(axis=0, ddof=1).mean() == pytest.approx(factor * planned, rel=0.05)
