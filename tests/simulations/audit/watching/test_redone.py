"""Released states worked out again: the product's own steps agree, and anything beside the mean is a fault."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrecall.server.config import ServerConfig
from fedrecall.server.training import optimiser
from fedrecall.server.training.rounds import ServerState, start_state
from fedrecall.simulations.audit.watching.redone import moved_faults, overlaid

ROUNDS = 12
SHAPES = {"item.id.weight": (30, 8), "transformer.out.bias": (8,), "transformer.scale": ()}
FIXED = "transformer.fixed"
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser": "sgd", "learning_rate": 0.5},
    "momentum, scaled": {
        "optimiser": "fedavgm",
        "learning_rate": 0.3,
        "momentum": 0.9,
        "learning_rate_scales": {"item.": 0.1, "item.id": 2.0},
    },
    "momentum, linear, ema": {
        "optimiser": "fedavgm",
        "learning_rate": 0.3,
        "schedule": "linear",
        "warmup_rounds": 3,
        "average": "ema",
        "ema_decay": 0.7,
    },
    "adam, cosine, tail": {
        "optimiser": "fedadam",
        "learning_rate": 0.05,
        "schedule": "cosine",
        "final_share": 0.2,
        "average": "tail",
        "tail_share": 0.5,
    },
    "adam": {"optimiser": "fedadam", "learning_rate": 0.01, "beta2": 0.999, "adaptivity": 1e-3},
}


def played(setting: str, dtype: type = np.float32) -> list[tuple[ServerState, ServerState, dict[str, np.ndarray]]]:
    """States before and after each round, and the mean between them, as the product makes them."""
    config, rng = ServerConfig(**SETTINGS[setting]), np.random.default_rng(0)
    arrays = {name: np.asarray(10 * rng.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}
    state = start_state(config, {**arrays, FIXED: np.ones(3, dtype=dtype)}, tuple(SHAPES), 0.5)
    found = []
    for round in range(ROUNDS):
        mean = {name: np.asarray(0.1 * rng.standard_normal(shape)) for name, shape in SHAPES.items()}
        trained = {name: state.arrays[name] for name in SHAPES}
        stepped, opt = optimiser.step(config, state.optimiser, trained, mean, rounds=ROUNDS)
        average = optimiser.average(config, state.average, stepped, step=round + 1, rounds=ROUNDS)
        arrays = {**state.arrays, **stepped}
        after = replace(state, round=round + 1, arrays=arrays, optimiser=opt, average=average)
        found.append((state, after, mean))
        state = after
    return found


def faults(setting: str, before: ServerState, after: ServerState, mean: Any) -> list[str]:
    return moved_faults(ServerConfig(**SETTINGS[setting]), before, after, mean, rounds=ROUNDS, adapts=False)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_optimiser_schedule_and_average_of_the_product_agrees(setting: str, dtype: type) -> None:
    for before, after, mean in played(setting, dtype):
        assert faults(setting, before, after, mean) == []


def more(arrays: Any, name: str) -> dict[str, np.ndarray]:
    return {**arrays, name: arrays[name] * (1 + 3e-6)}


def weights(after: ServerState) -> ServerState:
    return replace(after, arrays=more(after.arrays, "item.id.weight"))


def single(after: ServerState) -> ServerState:
    return replace(after, arrays=more(after.arrays, "transformer.scale"))


def untrained(after: ServerState) -> ServerState:
    return replace(after, arrays=more(after.arrays, FIXED))


def averaged(after: ServerState) -> ServerState:
    assert after.average is not None
    return replace(after, average=replace(after.average, arrays=more(after.average.arrays, "item.id.weight")))


def counted(after: ServerState) -> ServerState:
    assert after.average is not None
    return replace(after, optimiser=replace(after.optimiser, step=after.optimiser.step + 1))


def clipped(after: ServerState) -> ServerState:
    return replace(after, clip_norm=0.5000001)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("change", [weights, single, untrained, averaged, counted, clipped])
def test_anything_beside_the_mean_is_a_fault(setting: str, change: Callable[[ServerState], ServerState]) -> None:
    before, after, mean = played(setting)[8]
    changed = change(after)
    for name, array in changed.arrays.items():
        assert array.dtype == np.float32 or name == FIXED or change in (weights, single)
    assert faults(setting, before, changed, mean)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "sgd"])
def test_state_that_is_not_released_yet_is_worked_out_too(setting: str) -> None:
    before, after, mean = played(setting)[5]
    opt = replace(after.optimiser, first=more(after.optimiser.first, "item.id.weight"))
    assert faults(setting, before, replace(after, optimiser=opt), mean)


def test_another_mean_is_a_fault_and_a_void_round_moves_nothing() -> None:
    before, after, mean = played("momentum, linear, ema")[3]
    other = {**mean, "transformer.out.bias": mean["transformer.out.bias"] + 1e-3}
    assert faults("momentum, linear, ema", before, after, other)
    assert faults("momentum, linear, ema", before, replace(before, round=4), None) == []
    assert faults("momentum, linear, ema", before, after, None)


def test_what_is_released_is_the_average_over_the_rest() -> None:
    _, after, _ = played("momentum, linear, ema")[8]
    assert after.average is not None
    found = overlaid(after)
    assert set(found) == set(after.arrays)
    np.testing.assert_array_equal(found["item.id.weight"], after.average.arrays["item.id.weight"])
    np.testing.assert_array_equal(found[FIXED], after.arrays[FIXED])
