"""A user's own data: all of it in one file on request, and forgotten but for what keeps the budget honest."""

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest

from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.device.ingest import ingest
from fedrecall.client.device.join import supernode_command, supernode_environment
from fedrecall.client.device.my_data import export_my_data, forget
from fedrecall.client.device.node_key import make_node_key
from fedrecall.client.events.events import EventColumns
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, DataError, FedrecallError, UsageError
from fedrecall.protocol.lock import only_one
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.tensors import pack, unpack

from ..training.engine_contract import CASES
from .small_devices import enrol_one, ingest_store, invitation_of, world_of

NOISY = (Mechanism(name="rounds", clip_norm=0.3, noise_multiplier=5.0, steps=9),)
ENOUGH = Budget(epsilon=1.1, delta=1e-5)
"""For two rounds of ``NOISY``, not for three."""


@pytest.fixture
def full(tmp_path: Path):
    """Return a device that has all that a device can have, its task, the arrays and header of an ask."""
    world, task, arrays = world_of(CASES["user, one step, clipped, towers"], simulated=False, mechanisms=NOISY)
    device = DeviceFolder(enrol_one(tmp_path, world, task, 7, ENOUGH))
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    device.answer(pack(arrays, header))
    make_node_key(device.path)
    supernode_command(device.path, 1)
    supernode_environment(device.path, "/usr/bin/python3")
    for name in (".stdin.abc.tmp", ".events.sqlite.x.tmp", "status.json", "events.sqlite-wal"):
        (device.path / name).write_text("")
    (device.path / "flower" / "apps").mkdir(parents=True)
    (device.path / "flower" / "apps" / "app.py").write_text("x")
    return device, world, task, arrays, header


def test_the_export_holds_everything_but_the_key(full, tmp_path: Path) -> None:
    device, world, task, _, _ = full
    out = tmp_path / "mine.zip"
    said = export_my_data(device.path, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600 and said["bytes"] == out.stat().st_size
    with zipfile.ZipFile(out) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert (
        set(members)
        == set(said["members"])
        == {
            *("README.txt", "events.jsonl", "device.json", "ledger.jsonl", "tower.json", "last_update.safetensors"),
        }
    )
    events = [json.loads(line) for line in members["events.jsonl"].splitlines()]
    own = world.store.only(7)
    assert [event["item"] for event in events] == [f"i{item}" for item in own.items] and said["events"] == len(events)
    assert [event["strength"] for event in events] == own.weights.tolist()
    assert json.loads(members["device.json"])["task"] == task.to_dict()
    assert members["ledger.jsonl"] == (device.path / "ledger.jsonl").read_bytes()
    tower = device.tower()
    assert json.loads(members["tower.json"]) == {name: weight.tolist() for name, weight in tower.items()}
    assert set(unpack(members["last_update.safetensors"], what="")[0]) == set(task.trained)
    key = (device.path / "node.key").read_bytes().splitlines()[1]
    assert not any(key in content for content in members.values())
    assert all(name in members["README.txt"].decode() for name in members if name != "README.txt")


def test_what_was_exported_can_be_ingested_elsewhere(full, tmp_path: Path) -> None:
    device, world, task, _, _ = full
    with zipfile.ZipFile(export_my_data(device.path, tmp_path / "mine.zip")["file"]) as archive:
        (tmp_path / "events.jsonl").write_bytes(archive.read("events.jsonl"))
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    found = DeviceFolder.enrol(other, invitation_of(world, task, 1), ENOUGH)
    ingest(other, [tmp_path / "events.jsonl"], columns=EventColumns(item="item", event="type"))
    assert set(found.history().items.tolist()) == set(device.history().items.tolist())


def test_an_export_replaces_nothing_and_needs_a_device(full, tmp_path: Path) -> None:
    device, *_ = full
    (tmp_path / "mine.zip").write_text("older")
    with pytest.raises(UsageError, match="exists"):
        export_my_data(device.path, tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "older"
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    for act in (lambda: export_my_data(empty, tmp_path / "new.zip"), lambda: forget(empty)):
        with pytest.raises(UsageError, match="no device"):
            act()
    device.path.chmod(0o755)
    for act in (lambda: export_my_data(device.path, tmp_path / "new.zip"), lambda: forget(device.path)):
        with pytest.raises(DataError, match="chmod 700"):
            act()
    assert not (tmp_path / "new.zip").exists()


def test_only_the_ledger_outlives_forgetting(full, tmp_path: Path) -> None:
    device, *_ = full
    outside = tmp_path / "outside.txt"
    outside.write_text("not a device's")
    (device.path / "flower" / "link").symlink_to(tmp_path)
    (device.path / "diary.txt").write_text("not a device's")
    ledger = (device.path / "ledger.jsonl").read_bytes()
    said = forget(device.path)
    assert said["kept"] == ["diary.txt", "ledger.jsonl", "ledger.jsonl.head"]
    assert {path.name for path in device.path.iterdir()} == {*said["kept"], "join.lock", ".ledger.lock"}
    assert (device.path / "ledger.jsonl").read_bytes() == ledger and outside.exists()
    left = b"".join(path.read_bytes() for path in device.path.iterdir())
    assert not any(f'"i{item}"'.encode() in left for item in range(12))
    assert forget(device.path)["deleted"] == [], "again is no error"
    with pytest.raises(UsageError, match="invitation"):
        DeviceFolder(device.path)


def test_who_forgets_and_enrols_again_does_not_get_the_budget_back(full) -> None:
    device, world, task, arrays, header = full
    forget(device.path)
    with pytest.raises(UsageError):
        DeviceFolder(device.path)
    again = DeviceFolder.enrol(device.path, invitation_of(world, task, 7), ENOUGH)
    assert again.history().n_events == 0
    ingest_store(again.path, world.store.only(7))
    again.answer(pack(arrays, header | {"round": 1}))
    with pytest.raises(BudgetExhausted):
        again.answer(pack(arrays, header | {"round": 2}))


def test_a_ledger_cut_after_forgetting_is_missed(full) -> None:
    device, world, task, *_ = full
    forget(device.path)
    (device.path / "ledger.jsonl").unlink()
    with pytest.raises(CorruptArtefact):
        DeviceFolder.enrol(device.path, invitation_of(world, task, 7), ENOUGH)


def test_a_device_that_takes_part_is_not_forgotten(full) -> None:
    device, *_ = full
    with only_one(device.path / "join.lock", "busy"), pytest.raises(FedrecallError, match="end its `device join`"):
        forget(device.path)
    assert device.history().n_events


def test_a_folder_whose_files_are_broken_is_forgotten_all_the_same(full) -> None:
    device, *_ = full
    for name in ("events.sqlite", "enrolment.json", "state.safetensors", "node.key", "ledger.jsonl"):
        (device.path / name).write_bytes(os.urandom(100))
    forget(device.path)
    assert not {"events.sqlite", "enrolment.json", "state.safetensors", "node.key"} & set(os.listdir(device.path))
