"""What the device path does beside the maths that ``test_parity`` checks."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedrecall.protocol.errors import BudgetExhausted, PlanError
from fedrecall.protocol.records import Update

from .engine_contract import SEED, Case, World, make_world

LOCAL = Case(unit="interaction", trust="local", clip=0.1)


def noised(world: World, sigma: float) -> World:
    mechanism = replace(world.plan.mechanism("rounds"), noise_multiplier=sigma)
    return replace(world, plan=replace(world.plan, mechanisms=(mechanism,)))


def single(world: World) -> World:
    """Return the world in float32, as deployments have it."""
    return replace(world, arrays={n: a.astype(np.float32) for n, a in world.arrays.items()})


def trainer_of(world: World, dtype: torch.dtype = torch.float64) -> Trainer:
    return Trainer(
        shape=world.shape,
        features=world.features,
        local=world.local,
        plan=world.plan,
        trained=world.trained,
        seed=SEED,
        dtype=dtype,
    )


def device(world: World, user: int) -> Device:
    tower = {} if world.towers is None else {n: t[user].clone() for n, t in world.towers.items()}
    return Device(store=world.store.only(user), key=user, tower=tower)


def norm(update: Update) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for a in update.arrays.values() for x in a.ravel()))


@pytest.mark.parametrize("case", [Case(), Case(clip=0.05), Case(clip=0.05, steps=2, towers=True), LOCAL])
def test_an_update_is_what_the_round_asks_for(case: Case) -> None:
    world = single(make_world(case))
    trainer = trainer_of(world, torch.float32)
    for user in range(world.store.n_users):
        update = trainer.update(4, world.arrays, device(world, user))
        assert update.round == 4
        assert {n: (a.shape, a.dtype) for n, a in update.arrays.items()} == {
            n: (world.arrays[n].shape, np.dtype(np.float32)) for n in world.trained
        }


@pytest.mark.parametrize("clip_norm", [1e-4, 0.05, 1.0])
@pytest.mark.parametrize("case", [Case(), Case(steps=3), Case(unit="interaction")])
def test_no_update_exceeds_the_clip_of_its_samples(case: Case, clip_norm: float) -> None:
    world = single(make_world(replace(case, clip=clip_norm)))
    trainer = trainer_of(world, torch.float32)
    samples = world.local.blocks if case.unit == "interaction" else 1
    norms = [norm(trainer.update(0, world.arrays, device(world, user))) for user in range(world.store.n_users)]
    assert max(norms) <= samples * clip_norm * (1 + 1e-9)
    assert norms[0] == norms[1] == 0, "fewer than two events have nothing to say"
    if clip_norm < 1:
        assert max(norms) > 0.98 * clip_norm


@pytest.mark.parametrize("towers", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_of_one_device_stays_for_the_next(steps: int, towers: bool) -> None:
    world = make_world(Case(steps=steps, clip=0.05, towers=towers))
    trainer = trainer_of(world)
    for user in (7, 5, 0, 6):
        trainer.update(0, world.arrays, device(world, user))
        after = trainer.update(1, world.arrays, Device(store=world.store.only(3), key=3, tower={}))
        fresh = trainer_of(world).update(1, world.arrays, Device(store=world.store.only(3), key=3, tower={}))
        for name in world.trained:
            np.testing.assert_array_equal(after.arrays[name], fresh.arrays[name])


def test_local_trust_without_noise_of_the_device_is_refused() -> None:
    world = noised(make_world(LOCAL), 2.0)
    with pytest.raises(PlanError, match="has no noise"):
        trainer_of(world).update(0, world.arrays, device(world, 4))


@pytest.mark.parametrize("user", [0, 7])
def test_local_noise_is_on_every_row_in_full_and_is_not_clipped(user: int) -> None:
    """Over 80 rounds of 400 coordinates one standard error is 0.4 %: within 2 %, so not x 2/3 or x 3/2."""
    world = noised(make_world(replace(LOCAL, negatives=2)), 2.0)
    trainer, quiet = trainer_of(world), trainer_of(noised(world, 0.0))
    values, rows = [], []
    for round in range(80):
        update = trainer.update(round, world.arrays, device(world, user), SeededNoise(1, user, round))
        signal = quiet.update(round, world.arrays, device(world, user))
        difference = {n: update.arrays[n] - signal.arrays[n] for n in world.trained}
        values.append(np.concatenate([d.ravel() for d in difference.values()]))
        rows.append(difference[ITEM_ID])
    planned = 2.0 * 0.1
    assert np.std(values) == pytest.approx(planned, rel=0.02)
    by_row = np.std(rows, axis=(0, 2))
    assert len(by_row) == 12 and (np.abs(by_row / planned - 1) < 0.2).all(), "touched or not"


def in_earnest(world: World) -> World:
    return replace(world, plan=replace(world.plan, simulated=False))


NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


def enrolled(world: World, user: int, path: Path, epsilon: float, renews: str = "never") -> Device:
    budget = Budget(epsilon=epsilon, delta=world.plan.delta, renews=renews, unit=world.plan.unit)
    return replace(device(world, user), ledger=DeviceLedger.create(path, budget), clock=lambda: NOON)


def test_secure_noise_differs_every_time(tmp_path: Path) -> None:
    world = in_earnest(noised(make_world(LOCAL), 2.0))
    trainer, own = trainer_of(world), enrolled(world, 4, tmp_path / "ledger.jsonl", 100.0)
    one, other = (trainer.update(0, world.arrays, own, SecureNoise()) for _ in range(2))
    assert all((one.arrays[n] != other.arrays[n]).all() for n in world.trained)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[1:]]
    assert [line["key"] for line in lines] == [one.nonce, other.nonce], "and each update is a charge of its own"


def test_in_earnest_noise_must_be_secure_and_a_ledger_must_be_there(tmp_path: Path) -> None:
    world = in_earnest(noised(make_world(LOCAL), 2.0))
    own = enrolled(world, 4, tmp_path / "ledger.jsonl", 100.0)
    with pytest.raises(PlanError, match="seeded"):
        trainer_of(world).update(0, world.arrays, own, SeededNoise(1))
    with pytest.raises(PlanError, match="has no ledger"):
        trainer_of(world).update(0, world.arrays, replace(own, ledger=None), SecureNoise())
    assert own.ledger.spent(NOON).ever == 0
    with pytest.raises(PlanError, match="cannot be replayed"):
        simulated = noised(make_world(LOCAL), 2.0)
        trainer_of(simulated).update(0, world.arrays, device(world, 4), SecureNoise())


@pytest.mark.parametrize("case", [LOCAL, Case(clip=0.05), Case(clip=0.05, steps=3)])
def test_a_device_refuses_the_round_that_its_users_budget_does_not_allow(case: Case, tmp_path: Path) -> None:
    """At sigma 8 the second round fits and the third does not, or the third fits and the fourth does not."""
    world = in_earnest(noised(make_world(case), 8.0))
    shift = 2 if case.unit == "interaction" else 1
    per_round = shift / 8.0
    epsilon = gaussian_epsilon(math.sqrt(2.5) * per_round, world.plan.delta)
    own, trainer = enrolled(world, 4, tmp_path / "ledger.jsonl", epsilon), trainer_of(world)
    for round in range(2):
        trainer.update(round, world.arrays, own, SecureNoise())
        on_disk = DeviceLedger.open(tmp_path / "ledger.jsonl").spent(NOON).ever
        assert on_disk == pytest.approx(gaussian_epsilon(math.sqrt(round + 1) * per_round, world.plan.delta))
    with pytest.raises(BudgetExhausted, match=r"^round 2 of 'rounds' .* is refused, because it would bring") as refusal:
        trainer.update(2, world.arrays, own, SecureNoise())
    assert str(refusal.value).count(". ") == 0 and "does not renew" in str(refusal.value)


def test_a_device_takes_part_as_often_and_as_far_apart_as_limited_participation_says(tmp_path: Path) -> None:
    """Also when the server was rolled back and asks again for what is long done (rule 14)."""
    world = make_world(Case(clip=0.05))
    turns = {"sampling": "limited", "sample_rate": 1 / 3, "participations": 3, "min_gap": 3, "adjacency": "zero_out"}
    mechanism = replace(world.plan.mechanism("rounds"), noise_multiplier=50.0, steps=9, **turns)
    world = replace(world, plan=replace(world.plan, mechanisms=(mechanism,), simulated=False))
    own, trainer = enrolled(world, 4, tmp_path / "ledger.jsonl", 8.0), trainer_of(world)
    trainer.update(3, world.arrays, own)
    for near in (1, 2, 3, 4, 5):
        with pytest.raises(BudgetExhausted, match="less than the plan's 3 rounds apart"):
            trainer.update(near, world.arrays, own)
    for far in (0, 6):
        trainer.update(far, world.arrays, own)
    with pytest.raises(BudgetExhausted, match=r"took part|all taken"):
        trainer.update(8, world.arrays, own)
    assert DeviceLedger.open(tmp_path / "ledger.jsonl").head().lines == 4


@pytest.mark.parametrize("steps", [1, 3])
def test_released_arrays_that_are_not_finite_give_zeros_and_no_error(steps: int) -> None:
    world = make_world(Case(clip=0.05, steps=steps))
    broken = {n: np.full_like(a, np.nan) for n, a in world.arrays.items()}
    trainer = trainer_of(world)
    assert norm(trainer.update(0, broken, device(world, 4))) == 0
    assert norm(trainer.update(0, world.arrays, device(world, 4))) > 0, "and the next round is fine"


def test_the_tower_moves_on_the_device_and_not_in_the_update() -> None:
    world = make_world(Case(clip=0.05, towers=True))
    own = device(world, 5)
    update = trainer_of(world).update(0, world.arrays, own)
    assert not any(name.startswith("user.") for name in update.arrays)
    assert all((own.tower[n] != world.towers[n][5]).any() for n in own.tower)
