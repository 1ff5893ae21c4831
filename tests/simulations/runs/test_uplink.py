import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.models.recall import initial_arrays
from fedrecall.privacy.ledger.ledger import Head
from fedrecall.simulations.config import load_config
from fedrecall.simulations.runs.sections import communication
from fedrecall.simulations.training.loop import Trained
from fedrecall.simulations.training.plan import moment_items, plan_for
from fedrecall.simulations.training.world import World, shape_of


@pytest.mark.parametrize("preset", ["user-eps8", "user-eps2", "user-eps1", "interaction-eps8", "interaction-eps2"])
@pytest.mark.parametrize(("devices", "items"), [(943, 1_682), (6_040, 3_883), (1_000_000, 25_000)])
def test_a_device_sends_at_most_a_megabyte_in_all(preset: str, devices: int, items: int) -> None:
    """Whatever the preset, also for a million devices and 25,000 items: the start's cap on pairs sees to it."""
    config = load_config(None, preset, dataset="synthetic")
    plan, shape = plan_for(config, devices), shape_of(config, items, 0, 1)
    nobody = EventStore.from_columns(
        users=np.zeros(0, dtype=np.int64), items=np.zeros(0, dtype=np.int64), n_users=1, n_items=items
    )
    world = World(config=config, plan=plan, store=nobody, features=None, shape=shape)
    arrays = {name: array.numpy() for name, array in initial_arrays(shape, 0).items() if not name.startswith("user.")}
    count = moment_items(config, plan, items)
    trained = Trained(arrays=arrays, towers=None, start={"items": count}, ledger_head=Head(lines=0, sha256=""))
    found = communication(world, trained, 0)
    assert found["uplink_bytes_per_device_total"] <= 1_000_000
    pairs = {stage["name"]: stage["uplink_bytes"] for stage in found["stages"]}.get("second_moments", 4)
    assert pairs == count * (count - 1) // 2 + 4
    popularity = next(stage["uplink_bytes"] for stage in found["stages"] if stage["name"] == "popularity")
    assert popularity == items * (1 if preset.startswith("user") else 4) + 4, "a noised number is no byte"
    if (preset, devices) == ("user-eps8", 1_000_000):
        assert count == 1_380, "the cap binds here"
