"""A small world to attack: the synthetic data, a tiny model after its start, with and without a plan."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import World

from ...runs.small_runs import small_config


@pytest.fixture(scope="session")
def world_of() -> Callable[..., World]:
    """Return a world by its overrides, of the first ``devices`` devices."""

    def make(*overrides: str, preset: str = "user-eps8", devices: int = 600) -> World:
        world = prepare(small_config(*overrides, preset=preset), lambda *_: None)[2]
        store = world.store
        first = slice(0, int(store.offsets[devices]))
        few = replace(
            store,
            offsets=store.offsets[: devices + 1],
            **{name: getattr(store, name)[first] for name in ("items", "times", "types", "weights")},
        )
        return replace(world, store=few, plan=plan_for(world.config, devices))

    return make


@pytest.fixture(scope="session")
def world(world_of: Callable[..., World]) -> World:
    return world_of()


@pytest.fixture(scope="session")
def arrays(world: World) -> dict[str, np.ndarray]:
    return start_arrays(world, lambda name: None, lambda *_: None)[0]
