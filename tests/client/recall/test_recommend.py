"""What a device recommends: exactly the best by its own query, of its own server's release, and without a trace."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedrecall.client.config import PersonalConfig
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.recall.recommend import recommend
from fedrecall.client.recall.retrieval import shared_transformer
from fedrecall.models.towers import UserTower
from fedrecall.protocol.errors import FedrecallError, UsageError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import FileEntry, Manifest
from fedrecall.protocol.tensors import pack

from ..device.small_devices import enrol_one, world_of
from ..training.engine_contract import CASES, HISTORIES

NO_TUNING = PersonalConfig(steps=0)
IDS = tuple(f"i{item}" for item in range(12))


def release_of(task, arrays, ids=IDS):
    table = ItemTable.from_vectors(arrays["item.id.weight"], ids)
    manifest = Manifest(
        files={"x": FileEntry(size=0, sha256="0" * 64)},
        round=1,
        plan_digest=task.plan.digest(),
        ledger_head=None,
        simulated=task.plan.simulated,
    )
    return manifest, arrays, table


def naive(device: DeviceFolder, arrays, table: ItemTable, tower: UserTower | None) -> list[tuple[str, float]]:
    """Rank one item after the other, from the transformer's own output over an unpadded history."""
    store, transformer = device.history(), shared_transformer(arrays, device.shape)
    vectors, own = torch.as_tensor(table.vectors()), store.items[-device.shape.window :].tolist()
    window = device.shape.window - len(own)
    rows = torch.stack([torch.zeros(device.shape.dim)] * window + [vectors[item] for item in own])
    types = torch.tensor([[0] * window + store.types[-device.shape.window :].tolist()])
    times = store.times[-device.shape.window :].tolist()
    since = [0, *(after - before for before, after in itertools.pairwise(times))]
    gaps = torch.tensor([[0] * window + [int(np.log2(1 + seconds)) for seconds in since]])
    real = torch.tensor([[False] * window + [True] * len(own)])
    with torch.no_grad():
        query = transformer(rows[None], types, gaps, real)[0, -1]
        query = query if tower is None else tower(query[None, None])[0, 0]
    scores = {table.ids[item]: float(query.double() @ vectors[item].double()) for item in range(len(table))}
    kept = [pair for pair in scores.items() if pair[0] not in {table.ids[item] for item in store.items}]
    return sorted(kept, key=lambda pair: (-pair[1], table.ids.index(pair[0])))


@pytest.mark.parametrize("user", [1, 3, 5])
def test_the_best_of_the_items_that_its_user_does_not_know(user: int, tmp_path: Path) -> None:
    world, task, arrays = world_of()
    device = DeviceFolder(enrol_one(tmp_path, world, task, user))
    manifest, model, table = release_of(task, arrays)
    expected = naive(device, model, table, None)
    found = recommend(device, manifest, model, table, k=4, personal=NO_TUNING)
    assert [one.item for one in found] == [item for item, _ in expected[:4]]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in expected[:4]], rtol=1e-5)
    everything = recommend(device, manifest, model, table, k=99)
    assert {one.item for one in everything} == set(IDS) - {IDS[item] for item in HISTORIES[user]}
    again = recommend(device, manifest, model, table, k=99, personal=NO_TUNING, again=True)
    assert {one.item for one in again} == set(IDS)
    assert [one.item for one in again if one.item not in {IDS[item] for item in HISTORIES[user]}] == [
        item for item, _ in expected
    ]


def test_the_tower_of_the_folder_decides(tmp_path: Path) -> None:
    world, task, arrays = world_of(CASES["user, one step, clipped, towers"])
    device = DeviceFolder(enrol_one(tmp_path, world, task, 5))
    manifest, model, table = release_of(task, arrays)
    fresh = recommend(device, manifest, model, table, k=4, personal=NO_TUNING)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    device.answer(pack(arrays, header))
    tower = UserTower(device.shape.dim, device.shape.user_dim, device.shape.user_hidden)
    tower.load_state_dict({name.removeprefix("user."): weight for name, weight in device.tower().items()})
    found = recommend(device, manifest, model, table, k=4, personal=NO_TUNING)
    expected = naive(device, model, table, tower)
    assert [one.item for one in found] == [item for item, _ in expected[:4]]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in expected[:4]], rtol=1e-4)
    assert [one.score for one in found] != [one.score for one in fresh]


def test_a_device_without_events_gets_something(tmp_path: Path) -> None:
    world, task, arrays = world_of()
    device = DeviceFolder(enrol_one(tmp_path, world, task, 0))
    found = recommend(device, *release_of(task, arrays), k=3)
    assert len(found) == 3 and all(np.isfinite(one.score) for one in found)


def test_recommending_leaves_no_trace(tmp_path: Path) -> None:
    world, task, arrays = world_of(CASES["user, one step, clipped, towers"])
    device = DeviceFolder(enrol_one(tmp_path, world, task, 5))
    device.answer(pack(arrays, {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}))
    before = {path.name: path.read_bytes() for path in device.path.iterdir()}
    first = recommend(device, *release_of(task, arrays), k=5)
    assert recommend(device, *release_of(task, arrays), k=5) == first, "nor does asking often change the answer"
    assert {path.name: path.read_bytes() for path in device.path.iterdir()} == before


def test_a_release_of_anything_else_is_refused(tmp_path: Path) -> None:
    world, task, arrays = world_of()
    device = DeviceFolder(enrol_one(tmp_path, world, task, 5))
    manifest, model, table = release_of(task, arrays)
    shuffled = (IDS[1], IDS[0], *IDS[2:])
    wrong = {
        "another plan": (replace(manifest, plan_digest="0" * 64), model, table),
        "one of a known seed": (replace(manifest, simulated=not manifest.simulated), model, table),
        "another order of items": (manifest, model, release_of(task, arrays, shuffled)[2]),
        "a part of the catalogue": (manifest, model, ItemTable.from_vectors(arrays["item.id.weight"][:5], IDS[:5])),
        "another width": (manifest, model, ItemTable.from_vectors(np.ones((12, 3), np.float32), IDS)),
        "arrays too few": (manifest, {k: v for k, v in model.items() if k != "transformer.out.bias"}, table),
        "a tower": (manifest, model | {"user.vector.weight": np.zeros((1, 2), np.float32)}, table),
        "another shape": (manifest, model | {"transformer.out.bias": np.zeros(3, np.float32)}, table),
    }
    for name, given in wrong.items():
        with pytest.raises(UsageError):
            pytest.fail(f"{name}: {recommend(device, *given, k=3)}")
    with pytest.raises(FedrecallError, match="k is 0"):
        recommend(device, manifest, model, table, k=0)
