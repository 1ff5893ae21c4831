"""What the batched path does beside the maths that ``test_parity`` checks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.models.recall import ITEM_ID

from .engine_contract import SEED, Case, World, make_world

CLIPPED = Case(clip=0.05)


def cohort_of(world: World, **options: object) -> Cohort:
    settings = {
        "store": world.store,
        "shape": world.shape,
        "features": world.features,
        "local": world.local,
        "unit": world.plan.unit,
        "trained": world.trained,
        "seed": SEED,
        "device": torch.device("cpu"),
        "dtype": torch.float64,
    }
    return Cohort(**(settings | options))


def norm(arrays: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(a).sum()) for a in arrays.values()))


@pytest.mark.parametrize("case", [Case(), CLIPPED, Case(clip=0.05, steps=2), Case(clip=0.05, unit="interaction")])
def test_the_sum_is_that_of_each_device_alone_whatever_the_chunk(case: Case) -> None:
    world = make_world(case)
    users = np.array([1, 3, 4, 6, 7])
    alone = [cohort_of(world).collect(1, world.arrays, np.array([u]), clip_norm=case.clip).arrays for u in users]
    for chunk in (1, 2, 100):
        together = cohort_of(world, chunk=chunk).collect(1, world.arrays, users, clip_norm=case.clip)
        assert together.round == 1 and together.devices == 5
        for name in world.trained:
            np.testing.assert_allclose(together.arrays[name], sum(a[name] for a in alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip_norm", [1e-4, 0.05, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_no_device_exceeds_the_clip(dtype: torch.dtype, clip_norm: float, steps: int) -> None:
    world = make_world(Case(clip=clip_norm, steps=steps))
    norms = [
        norm(cohort_of(world, dtype=dtype).collect(round, world.arrays, np.array([user]), clip_norm=clip_norm).arrays)
        for user in range(world.store.n_users)
        for round in range(2)
    ]
    assert max(norms) <= clip_norm * (1 + 1e-6)
    if clip_norm < 1:
        assert max(norms) > clip_norm * 0.98


def test_nobody_gives_zeros() -> None:
    world = make_world(CLIPPED)
    for users in (np.array([], dtype=np.int64), np.array([0]), np.array([1])):
        found = cohort_of(world).collect(0, world.arrays, users, clip_norm=0.05)
        assert found.devices == len(users)
        assert all(not a.any() and a.shape == world.arrays[n].shape for n, a in found.arrays.items())


@pytest.mark.parametrize("steps", [1, 3])
def test_a_device_whose_result_is_invalid_contributes_zero(steps: int) -> None:
    world = make_world(Case(clip=0.05, steps=steps))
    round = next(r for r in range(50) if 11 not in draw_negatives(SEED, r, 12, world.local.negatives))
    broken = {n: a.copy() for n, a in world.arrays.items()}
    broken[ITEM_ID][11] = np.nan
    victim = world.store.n_users - 1
    # Item 11 is the last device's alone.
    store = replace(world.store, items=np.where(world.store.users() == victim, 11, world.store.items))
    store = replace(store, items=np.where((store.users() != victim) & (store.items == 11), 1, store.items))
    cohort = cohort_of(world, store=store)
    users = np.arange(store.n_users)
    found = cohort.collect(round, broken, users, clip_norm=0.05).arrays
    expected = cohort.collect(round, broken, users[:-1], clip_norm=0.05).arrays
    for name in world.trained:
        assert np.isfinite(found[name]).all()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-12)
    assert norm(expected) > 0


def test_only_rows_of_own_items_and_negatives_move() -> None:
    world = make_world(Case(negatives=2))
    negatives = set(draw_negatives(SEED, 0, 12, 2).tolist())
    moved = cohort_of(world).collect(0, world.arrays, np.array([3]), clip_norm=None).arrays[ITEM_ID].any(axis=1)
    assert set(np.flatnonzero(moved).tolist()) == {0, 7} | negatives


def test_towers_of_the_cohort_move_and_no_others() -> None:
    world = make_world(Case(towers=True))
    towers = world.fresh_towers()
    cohort_of(world).collect(0, world.arrays, np.array([4, 6]), towers, clip_norm=None)
    for name, tower in towers.items():
        moved = (tower != world.towers[name]).flatten(1).any(dim=1)
        assert moved.tolist() == [user in (4, 6) for user in range(world.store.n_users)], name


def test_no_tower_is_in_the_sum() -> None:
    world = make_world(Case(towers=True))
    found = cohort_of(world).collect(0, world.arrays, np.array([4, 6]), world.fresh_towers(), clip_norm=None)
    assert set(found.arrays) == set(world.trained)
    assert not any(name.startswith("user.") for name in found.arrays)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_count_within_the_clip_is_that_of_each_device_alone(steps: int) -> None:
    world = make_world(Case(clip=1.0, steps=steps))
    users = np.arange(world.store.n_users)
    free = [norm(cohort_of(world).collect(0, world.arrays, users[u : u + 1], clip_norm=None).arrays) for u in users]
    for clip_norm in (1e-9, float(np.median(free)), 1e9):
        found = cohort_of(world, chunk=3).collect(0, world.arrays, users, clip_norm=clip_norm, count_within=True)
        halves = sum(0.5 if n <= clip_norm else -0.5 for n in free)
        assert found.arrays["within_clip"].shape == () and float(found.arrays["within_clip"]) == halves
        assert set(found.arrays) == {*world.trained, "within_clip"}
