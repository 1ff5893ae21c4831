"""Every combination of a plan and a device's work is refused, or true: held against the sensitivity that is measured.

The oracle runs the device path without its noise on neighbouring histories, as hostile as a search makes them.
"""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.folder import task_of
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.start import popularity_sum, second_moment_sum
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.accounting import shift
from fedrecall.privacy.accounting.soundness import check_task
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Comparison

SHAPE = ModelShape(
    n_items=40, n_features=0, n_types=2, dim=8, window=8, blocks=1, heads=2, hidden=8, user_dim=4, user_hidden=4
)
NAMES = shared_names(initial_arrays(SHAPE, 5))
CLIP, TRIALS = 0.05, 16
UNITS, TRUSTS = ("user", "interaction"), ("central", "local", "distributed")
SAMPLINGS, ADJACENCIES = ("everyone", "poisson", "fixed_size", "limited"), ("add_remove", "replace_one", "zero_out")


class Nothing:
    """Noise of no size: what is measured is the signal."""

    simulated = True

    def added(self, values: np.ndarray, std: float) -> np.ndarray:
        return np.array(values, dtype=np.float64)

    def normal(self, shape: tuple[int, ...], std: float, dtype: Any = np.float64) -> np.ndarray:
        return np.zeros(shape, dtype=dtype)


def plan_of(unit: str, trust: str, *mechanisms: Mechanism) -> Plan:
    return Plan(unit=unit, trust=trust, delta=1e-5, devices=100, mechanisms=mechanisms, simulated=True)


def rounds(sampling: str = "everyone", adjacency: str = "replace_one", **more: Any) -> Mechanism:
    sampled: dict[str, Any] = {} if sampling == "everyone" else {"sample_rate": 0.25}
    if sampling == "limited":
        sampled |= {"participations": 1, "min_gap": 4}
    return Mechanism(
        name="rounds",
        sampling=sampling,
        adjacency=adjacency,
        clip_norm=CLIP,
        noise_multiplier=1.0,
        steps=4,
        **sampled,
        **more,
    )


def local_of(steps: int, tower: float) -> LocalConfig:
    return LocalConfig(negatives=16, blocks=2, steps=steps, learning_rate=0.3, tower_learning_rate=tower)


def store_of(history: list[tuple[int, int]], heavy: float) -> EventStore:
    types = np.array([kind for _, kind in history], dtype=np.int8)
    items = np.array([item for item, _ in history], dtype=np.int64)
    weights = np.where(types == 1, heavy, 1.0).astype(np.float32)
    users = np.zeros(len(history), dtype=np.int64)
    return EventStore.from_columns(
        users=users, items=items, n_users=1, n_items=40, types=types, weights=weights, type_names=("view", "buy")
    )


def contributions(
    trainer: Trainer, arrays: dict[str, np.ndarray], store: EventStore, towers: bool, count: int
) -> list[np.ndarray]:
    fresh = initial_arrays(SHAPE, 5)
    tower = {n: w.clone() for n, w in fresh.items() if n.startswith("user.")} if towers else {}
    device, found = Device(store=store, key=0, tower=tower), []
    for round in range(count):
        update = trainer.update(round, arrays, device, Nothing())
        found.append(np.concatenate([update.arrays[n].astype(np.float64).ravel() for n in sorted(update.arrays)]))
    return found


@cache
def measured(unit: str, trust: str, steps: int, tower: float) -> dict[str, float]:
    """Return the most that one unit moves an update, in clips: ``gone`` and, of unit ``user``, ``exchanged``."""
    rng = np.random.default_rng(7)
    trainer = Trainer(
        shape=SHAPE,
        features=None,
        local=local_of(steps, tower),
        plan=plan_of(unit, trust, rounds()),
        trained=NAMES,
        seed=5,
    )
    worst = {"gone": 0.0, "exchanged": 0.0}
    count = 4 if tower else 1
    for _ in range(TRIALS):
        fresh = initial_arrays(SHAPE, 5)
        arrays = {n: fresh[n].numpy().copy() for n in NAMES}
        size = 10 ** rng.uniform(-1, 1.3)
        arrays[ITEM_ID] = (size * rng.standard_normal(arrays[ITEM_ID].shape)).astype(np.float32)
        for name in NAMES:
            if arrays[name].ndim == 2 and not arrays[name].any():
                arrays[name] = (0.3 * rng.standard_normal(arrays[name].shape)).astype(np.float32)
        heavy = float(10 ** rng.uniform(0, 6))
        one = [(int(i), int(rng.random() < 0.2)) for i in rng.permutation(40)[: rng.integers(2, 14)]]
        if unit == "user":
            other = [(int(i), int(rng.random() < 0.2)) for i in rng.permutation(40)[: rng.integers(2, 14)]]
        else:
            other = list(one)
            other.insert(int(rng.integers(0, len(one) + 1)), (int(rng.integers(0, 40)), int(rng.random() < 0.7)))
        a, b = (contributions(trainer, arrays, store_of(h, heavy), tower > 0, count) for h in (one, other))
        moved = max(float(np.linalg.norm(x - y)) for x, y in zip(a, b, strict=True)) / CLIP
        alone = max(float(np.linalg.norm(x)) for x in [*a, *b]) / CLIP
        worst["exchanged"] = max(worst["exchanged"], moved)
        worst["gone"] = max(worst["gone"], moved if unit == "interaction" else alone)
    return worst


def moves(unit: str, trust: str, adjacency: str, steps: int, tower: float) -> float:
    """Return what was measured of the neighbours that a plan means."""
    found = measured(unit, "local" if trust == "local" else "central", steps, tower)
    exchanged = unit == "user" and (adjacency == "replace_one" or trust == "local")
    return found["exchanged" if exchanged else "gone"]


def verdict(unit: str, trust: str, sampling: str, adjacency: str, steps: int, tower: float) -> tuple[str, Plan | None]:
    try:
        plan = plan_of(unit, trust, rounds(sampling, adjacency, min_survivors=5 if trust == "distributed" else 0))
    except PlanError:
        return "no plan", None
    try:
        check_task(task_of(plan, SHAPE, local_of(steps, tower), NAMES, 5))
    except PlanError as error:
        return f"refused: {str(error).split(':')[0]}", None
    return "sound", plan


COMBINATIONS = list(itertools.product(UNITS, TRUSTS, SAMPLINGS, ADJACENCIES, (1, 3), (0.0, 5.0)))


def test_every_combination_of_rounds_is_refused_or_true() -> None:
    table: dict[str, int] = {}
    for unit, trust, sampling, adjacency, steps, tower in COMBINATIONS:
        said, plan = verdict(unit, trust, sampling, adjacency, steps, tower)
        key = f"{unit}/{trust}: {said}"
        table[key] = table.get(key, 0) + 1
        if plan is not None:
            bound = shift(plan, plan.mechanism("rounds"))
            found = moves(unit, trust, adjacency, steps, tower)
            assert 0 < found <= bound * (1 + 1e-6), (unit, trust, sampling, adjacency, steps, tower, found)
    assert sum(table.values()) == len(COMBINATIONS) == 288
    for key, count in sorted(table.items()):
        print(f"{count:4d} {key}")


def test_what_is_sound_is_not_refused() -> None:
    """The plans of the presets, and what theorems 1 and 2 allow: many local steps and towers of unit user."""
    for steps, tower in itertools.product((1, 3), (0.0, 5.0)):
        assert verdict("user", "central", "everyone", "add_remove", steps, tower)[0] == "sound"
        assert verdict("user", "central", "poisson", "add_remove", steps, tower)[0] == "sound"
        assert verdict("user", "central", "fixed_size", "replace_one", steps, tower)[0] == "sound"
        assert verdict("user", "central", "limited", "zero_out", steps, tower)[0] == "sound"
        assert verdict("user", "local", "everyone", "replace_one", steps, tower)[0] == "sound"
    for trust in ("central", "local"):
        assert verdict("interaction", trust, "everyone", "replace_one", 1, 0.0)[0] == "sound"


@pytest.mark.parametrize(
    ("steps", "tower", "adjacency", "why"),
    [
        (3, 0.0, "replace_one", "local.steps"),
        (1, 5.0, "replace_one", "local.tower_learning_rate"),
        (1, 0.0, "add_remove", "rounds.adjacency"),
    ],
)
def test_what_is_refused_would_be_false(steps: int, tower: float, adjacency: str, why: str) -> None:
    said, _ = verdict("interaction", "local", "everyone", adjacency, steps, tower)
    assert why in said
    bound = 2.0 if adjacency == "replace_one" else 1.0
    assert moves("interaction", "local", adjacency, steps, tower) > bound


def statistic_moves(unit: str, name: str) -> dict[str, float]:
    """Return the most that one unit moves a statistic of the start, by a search over histories."""
    rng, worst = np.random.default_rng(3), {"gone": 0.0, "exchanged": 0.0}
    popular = 40.0 * np.arange(1, 41) ** -0.5
    weights = popular**-0.25
    direction = popular * weights / np.linalg.norm(popular * weights)
    comparison = Comparison(top=np.arange(40), weights=weights, direction=direction, reach=8.0)

    def told(history: list[int]) -> np.ndarray:
        store = store_of([(item, 0) for item in history], 1.0)
        if name == "popularity":
            return popularity_sum(store, unit).arrays[name]
        return second_moment_sum(store, comparison).arrays[name]

    for _ in range(200):
        one = rng.integers(0, 40, rng.integers(0, 60)).tolist()
        if unit == "user":
            other = rng.integers(0, 40, rng.integers(0, 60)).tolist()
        else:
            other = list(one)
            other.insert(int(rng.integers(0, len(one) + 1)), int(rng.integers(0, 40)))
        a, b = told(one), told(other)
        worst["exchanged"] = max(worst["exchanged"], float(np.linalg.norm(a - b)))
        gone = float(np.linalg.norm(a - b)) if unit == "interaction" else float(np.linalg.norm(a))
        worst["gone"] = max(worst["gone"], gone)
    return worst


@pytest.mark.parametrize("name", ["popularity", "second_moments"])
@pytest.mark.parametrize("unit", UNITS)
def test_every_statistic_is_refused_or_true(unit: str, name: str) -> None:
    found, sound = statistic_moves(unit, name), 0
    for trust, adjacency, sampling in itertools.product(TRUSTS, ADJACENCIES, SAMPLINGS):
        for steps, clip in itertools.product((1, 2), (1.0, 0.5)):
            own = "zero_out" if adjacency == "zero_out" else "replace_one"
            kind = "limited" if adjacency == "zero_out" else "everyone"
            try:
                sampled: dict[str, Any] = {} if sampling == "everyone" else {"sample_rate": 0.25}
                sampled |= {"participations": 1, "min_gap": 4} if sampling == "limited" else {}
                told = Mechanism(
                    name=name,
                    sampling=sampling,
                    adjacency=adjacency,
                    clip_norm=clip,
                    noise_multiplier=1.0,
                    steps=steps,
                    **sampled,
                )
                main = rounds(kind, adjacency if unit == "user" and adjacency != "zero_out" else own)
                plan = plan_of(unit, trust, told, main)
                check_task(task_of(plan, SHAPE, local_of(1, 0.0), NAMES, 5))
            except PlanError:
                continue
            sound += 1
            exchanged = unit == "user" and shift(plan, told) == 2
            assert found["exchanged" if exchanged else "gone"] <= shift(plan, told) * clip * (1 + 1e-9)
    if (unit, name) == ("interaction", "second_moments"):
        assert sound == 0 and found["gone"] > 1, "one event moves many pairs"
    else:
        assert sound > 0
