"""A device whose disk is full: it sends nothing that it could not charge, loses no event, and goes on with room."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.superlink.grid import InMemoryGrid

from fedrecall.client.device.app import app
from fedrecall.client.device.enrolment import EVENTS, LEDGER, STATE
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.events import Events
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.files import sha256_of
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import pack
from fedrecall.server.deployment.grid import as_message, exchange

from ...server.deployment.flower_nodes import flower
from ...small_disks import apart, empty, leave, limit_files, on_a_disk
from ..training.engine_contract import CASES, World, make_world
from .small_devices import enrol_one, world_of

USER, PAGE, N_EVENTS = 7, 4096, 3000
ROOMS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
Starve = Callable[[], object]


class Starved(DeviceFolder):
    """A device that had room when it was asked, and has none when it charges: something else took it."""

    starve: Starve

    def _noise(self, round: int) -> NoiseSource:
        type(self).starve()
        return super()._noise(round)


def world() -> tuple[World, Task, dict[str, np.ndarray]]:
    case = CASES["user, one step, clipped, towers"]
    long = tuple(replace(mechanism, steps=100) for mechanism in make_world(case).plan.mechanisms)
    return world_of(case, simulated=False, mechanisms=long)


@pytest.fixture
def ask() -> Callable[[int], bytes]:
    torch.set_num_threads(1)  # a fork holds no thread of its parent
    _, task, arrays = world()
    header = {"mechanism": "rounds", "clip_norm": task.plan.mechanism("rounds").clip_norm, "task": task.digest()}
    return lambda round: pack(arrays, header | {"round": round})


def device_in(folder: Path) -> Path:
    made, task, _ = world()
    return enrol_one(folder, made, task, USER)


def answered(place: Path, ask: bytes, kind: type[DeviceFolder] = DeviceFolder) -> dict[str, Any]:
    try:
        return {"sent": sha256_of(kind(place).answer(ask)), "error": ""}
    except FedrecallError as error:
        return {"sent": None, "error": str(error), "code": error.exit_code}


def starved_answer(place: Path, ask: bytes, starve: Starve) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        Starved.starve = staticmethod(starve)
        return answered(place, ask, Starved)

    return apart(work)


def charges(place: Path) -> int:
    """Return what the ledger counts when it is opened again, as the next ask does."""
    return len(DeviceLedger.open(place / LEDGER).charges)


def check_starved(place: Path, ask: bytes, starve: Starve, feed: Starve) -> str:
    """Ask a device that runs out of room, then again with room; return what the first one ended with."""
    before = charges(place)
    first = starved_answer(place, ask, starve)
    feed()
    after = charges(place)
    assert before <= after <= before + 1 and (first["sent"] is None or after == before + 1), first
    assert all(bool(weight.isfinite().all()) for weight in DeviceFolder(place).tower().values())
    second = answered(place, ask)
    assert second["sent"], second
    # What was kept is repeated, uncharged; what was not kept is made and charged anew.
    assert charges(place) == (after if first["sent"] else after + 1)
    assert first["sent"] in (None, second["sent"])
    assert first["sent"] or (first["code"] == 3 and str(place) in first["error"]), first
    assert answered(place, ask)["sent"] == second["sent"]
    return str(first["error"])


def test_one_byte_too_few_for_ledger_or_tower_sends_nothing_uncharged(
    ask: Callable[[int], bytes], tmp_path: Path
) -> None:
    place = device_in(tmp_path)
    answered(place, ask(0))
    line = len((place / LEDGER).read_bytes().splitlines(keepends=True)[-1])
    refused = set()
    for round, short_of in enumerate(("nothing", "ledger", "state", "torn"), start=1):
        ledger, state = (place / LEDGER).stat().st_size + line, (place / STATE).stat().st_size
        most = {"nothing": 0, "ledger": ledger - 1, "state": state - 1, "torn": ledger - line // 2}[short_of]
        error = check_starved(place, ask(round), lambda most=most: limit_files(most), lambda: None)
        assert error, short_of
        refused |= {name for name in (LEDGER, STATE) if f"/{name}" in error}
    assert refused == {LEDGER, STATE}


@pytest.mark.parametrize("pages", range(5))
def test_a_full_file_system_sends_nothing_uncharged(pages: int, ask: Callable[[int], bytes], tmp_path: Path) -> None:
    def work() -> list[str]:
        place = device_in(tmp_path / "disk")
        starve, feed = lambda: leave(tmp_path / "disk", pages * PAGE), lambda: empty(tmp_path / "disk")
        return [check_starved(place, ask(round), starve, feed) for round in range(3)]

    (tmp_path / "disk").mkdir()
    errors = on_a_disk(tmp_path / "disk", 8 << 20, work)
    assert errors[0] or pages > 1, "so few pages were enough"


def test_a_device_that_finds_no_room_charges_nothing_and_says_one_word(
    ask: Callable[[int], bytes], tmp_path: Path
) -> None:
    """Room for a ledger's line is not enough: each ask would cost, and its answer could not be kept nor sent."""

    def work() -> dict[str, Any]:
        place = device_in(tmp_path)
        with flower([app], [{"device": str(place)}]) as grid:
            leave(tmp_path, 64 * PAGE)
            words = [reply(grid, ask(round)) for round in range(3)]
            starved = charges(place)
            empty(tmp_path)
            return {"words": words, "charged": starved, "then": reply(grid, ask(3)), "later": charges(place)}

    found = on_a_disk(tmp_path, 8 << 20, work)
    assert found == {"words": ["failed"] * 3, "charged": 0, "then": "update", "later": 1}


def reply(grid: InMemoryGrid, ask: bytes) -> str:
    """Return what leaves the device's Flower app: an update, or the one word of a refusal."""
    (node,) = grid.get_node_ids()
    answer = next(exchange(grid, [as_message(ask, node, ttl=60.0)], deadline_s=30.0, on_refused=pytest.fail))
    if "update" in answer.content:
        return "update"
    assert set(answer.content) == {"refused"} and set(answer.content["refused"]) == {"reason"}
    return str(answer.content["refused"]["reason"])


def many() -> Events:
    return Events(
        users=np.zeros(N_EVENTS, dtype=np.int64),
        items=np.arange(N_EVENTS) % 50,
        times=np.arange(N_EVENTS, dtype=np.int64),
        types=np.zeros(N_EVENTS, dtype=np.int8),
        weights=np.ones(N_EVENTS, dtype=np.float32),
        item_ids=tuple(f"item-{n}" for n in range(50)),
        type_names=("event",),
        user_ids=("me",),
        report={},
    )


def added(path: Path) -> str:
    try:
        with EventDatabase.create(path) as database:
            database.add(many())
    except FedrecallError as error:
        assert error.exit_code == 3
        return str(error)
    return ""


def check_events(path: Path) -> int:
    """Return how many events a next process finds: all of the batch or none, in a database that is whole."""
    with EventDatabase.create(path) as database:
        found = sum(1 for _ in database.events())
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert found in (0, N_EVENTS)
    return found


def test_events_are_added_all_or_not_at_all_where_files_may_not_grow(tmp_path: Path) -> None:
    outcomes = set()
    for pages in ROOMS:
        path = tmp_path / f"{pages}" / EVENTS
        path.parent.mkdir()

        def starved(path: Path = path, pages: int = pages) -> str:
            limit_files(pages * PAGE)
            return added(path)

        error = apart(starved)
        outcomes.add(bool(error))
        assert not error or (str(path) in error and "nothing was added" in error), error
        assert check_events(path) == (0 if error else N_EVENTS)
        assert added(path) == "" and check_events(path) == N_EVENTS
    assert outcomes == {True, False}


@pytest.mark.parametrize("pages", ROOMS)
def test_events_are_added_all_or_not_at_all_on_a_full_file_system(pages: int, tmp_path: Path) -> None:
    def work() -> str:
        path = tmp_path / EVENTS
        leave(tmp_path, pages * PAGE)
        error = apart(lambda: added(path))
        empty(tmp_path)
        assert check_events(path) == (0 if error else N_EVENTS), error
        assert added(path) == "" and check_events(path) == N_EVENTS
        return error

    error = on_a_disk(tmp_path, 4 << 20, work)
    assert str(tmp_path / EVENTS) in error if error else pages > 32, error
