"""Canaries: fair coins, directions of norm 1 that do not overlap, real histories; and what a watched run reads back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.canaries import enrol, silent
from fedrecall.simulations.audit.watching.watch import flat, watch
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.simulated_noise import server_noise


def test_directions_are_orthonormal() -> None:
    _, canaries = enrol(subject("central", 0), 20, 0)
    directions = canaries.directions(333)
    each = np.array([directions.sum(np.arange(20) == c) for c in range(20)])
    np.testing.assert_allclose(each @ each.T, np.eye(20), atol=1e-12)
    values = np.random.default_rng(0).standard_normal(333)
    np.testing.assert_allclose(directions.project(values), each @ values, atol=1e-12)


def test_coins_are_fair_and_differ_by_seed() -> None:
    coins = np.concatenate([enrol(subject("central", 0), 40, seed)[1].coins for seed in range(50)])
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / np.sqrt(coins.size)


@pytest.mark.parametrize(("kind", "own"), [("central", 2), ("local", 1)])
def test_those_that_are_in_hold_events_of_their_own_and_the_others_none(kind: str, own: int) -> None:
    world = subject(kind, 0)
    enrolled, canaries = enrol(world, 8, 3)
    assert enrolled.plan.devices == enrolled.store.n_users == world.store.n_users + 8
    assert len(np.unique(canaries.items)) == 8 * own
    for device, inside, items in zip(canaries.devices, canaries.coins, canaries.items, strict=True):
        assert sorted(enrolled.store.history(int(device))) == (sorted(items) if inside else [])
    for device in range(world.store.n_users):
        np.testing.assert_array_equal(enrolled.store.history(device), world.store.history(device))
    assert silent(enrolled).store.n_events == 0


def test_more_canaries_than_items_are_refused() -> None:
    with pytest.raises(UsageError, match="choose from 1 to 40"):
        enrol(subject("central", 0), 41, 0)


@pytest.mark.parametrize("optimiser", ["sgd", "fedavgm", "fedadam"])
def test_what_a_round_released_is_read_back(optimiser: str, tmp_path: Path) -> None:
    """Oracle: the collector's sum and the same noise drawn again, for every optimiser."""
    world = subject("central", 0)
    start = world.config.start.model_copy(update={"enabled": False})
    server = world.config.server.model_copy(update={"optimiser": optimiser})
    world = replace(world, config=world.config.model_copy(update={"start": start, "server": server}))
    world = replace(world, plan=replace(world.plan, mechanisms=world.plan.mechanisms[-1:]))
    seen = watch(world, tmp_path)
    mechanism = world.plan.mechanism("rounds")
    names = list(seen.sizes)
    assert len(seen.rounds) == 5 and all(r.devices == 96 for r in seen.rounds)
    for r in seen.rounds:
        zeros = {name: np.zeros(seen.first[name].shape) for name in names}
        noise = flat(gaussian_sum(zeros, mechanism, server_noise(world, "rounds", r.round)), names)
        std = mechanism.noise_multiplier * mechanism.clip_norm
        np.testing.assert_allclose(r.released, r.collected + noise, rtol=0, atol=2.0**-20 * std)


def test_watching_changes_nothing(tmp_path: Path) -> None:

    world = subject("central", 1)
    alone = train(world, tmp_path / "a", resume=False, validate=None, progress=lambda *_: None)
    seen = watch(world, tmp_path / "b")
    for name, array in alone.arrays.items():
        np.testing.assert_array_equal(array, seen.trained.arrays[name])
