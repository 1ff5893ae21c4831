"""The event store of a device: whole batches or nothing, each event once, its user's eyes alone."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.events.database import Event, EventDatabase
from fedrecall.client.events.events import MICROS, Events
from fedrecall.protocol.errors import CorruptArtefact, DataError, FedrecallError

from ...house import ROOT

WEIGHTS = {"view": 1.0, "buy": 3.0}


def batch(rows: list[tuple[str, int | None, str, float]]) -> Events:
    """Return clean events of rows (item, time, type, strength)."""
    items, types = sorted({row[0] for row in rows}), sorted({row[2] for row in rows})
    places = {item: place for place, item in enumerate(items)}
    timed = all(row[1] is not None for row in rows)
    return Events(
        users=np.zeros(len(rows), dtype=np.int64),
        items=np.array([places[row[0]] for row in rows], dtype=np.int64),
        times=np.array([row[1] for row in rows], dtype=np.int64) * MICROS if timed else None,
        types=np.array([types.index(row[2]) for row in rows], dtype=np.int8),
        weights=np.array([row[3] for row in rows], dtype=np.float32),
        user_ids=("",),
        item_ids=tuple(items),
        type_names=tuple(types),
        report={},
    )


def test_the_same_batch_twice_adds_nothing_and_an_overlap_adds_the_rest(tmp_path: Path) -> None:
    rows = [("a", 5, "view", 1.0), ("a", 5, "view", 1.0), ("a", 5, "buy", 1.0), ("b", 4, "view", 2.0)]
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        assert [database.add(batch(rows)) for _ in range(3)] == [4, 0, 0]
        more = [*rows, ("a", 5, "view", 1.0), ("a", 6, "view", 1.0)]
        assert [database.add(batch(more)) for _ in range(2)] == [2, 0], "a third like event is new, and only once"
        found = list(database.events())
    assert found[0] == Event("b", 4, "view", 2.0) and found[-1] == Event("a", 6, "view", 1.0)
    assert sorted(map(tuple, found)) == sorted(more)


def test_events_come_back_in_time_order_as_the_model_numbers_them(tmp_path: Path) -> None:
    rows = [("b", 9, "buy", 0.5), ("c", 1, "view", 2.0), ("gone", 2, "view", 1.0), ("a", 9, "view", 1.0)]
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        database.add(batch(rows))
        database.add(batch([("a", 3, "play", 1.0), ("b", 3, "view", 1.0)]))
        store = database.store(["a", "b", "c"], WEIGHTS)
    assert store.items.tolist() == [2, 1, 1, 0], "unknown items and types are left out"
    assert store.times is not None and store.times.tolist() == [1, 3, 9, 9]
    assert store.types.tolist() == [0, 0, 1, 0] and store.weights.tolist() == [2.0, 1.0, 1.5, 1.0]
    assert (store.n_items, store.type_names, store.offsets.tolist()) == (3, ("view", "buy"), [0, 4])


def test_without_times_the_order_is_that_of_ingestion(tmp_path: Path) -> None:
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        assert database.store(["a"], WEIGHTS).times is None
        database.add(batch([("c", None, "view", 1.0), ("a", None, "view", 1.0)]))
        assert database.add(batch([("b", None, "view", 1.0), ("a", None, "view", 1.0)])) == 1
        assert database.store(["a", "b", "c"], WEIGHTS).items.tolist() == [2, 0, 1]
        with pytest.raises(DataError, match="ingest without --time"):
            database.add(batch([("b", 1, "view", 1.0)]))
        assert len(list(database.events())) == 3
    with EventDatabase.create(tmp_path / "timed.sqlite") as database:
        database.add(batch([("b", 1, "view", 1.0)]))
        with pytest.raises(DataError, match="name their --time"):
            database.add(batch([("b", None, "view", 1.0)]))


def test_every_file_of_it_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with EventDatabase.create(tmp_path / "events.sqlite") as database:
            database.add(batch([("a", 1, "view", 1.0)]))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["events.sqlite", "events.sqlite-wal", "events.sqlite-shm"], 0o600)


def test_it_is_in_wal_mode_and_syncs_every_commit(tmp_path: Path) -> None:
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        asked = [
            database._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    assert asked == ["wal", 2]


def test_who_reads_meanwhile_sees_whole_batches_and_blocks_nobody(tmp_path: Path) -> None:
    with (
        EventDatabase.create(tmp_path / "events.sqlite") as writer,
        EventDatabase(tmp_path / "events.sqlite") as reader,
    ):
        writer.add(batch([("a", 1, "view", 1.0)]))
        rows = reader.events()
        assert next(rows).item == "a"
        assert writer.add(batch([("b", 2, "view", 1.0)])) == 1
        assert list(rows) == [], "a reading sees the store as it was when it began"
        assert [event.item for event in reader.events()] == ["a", "b"]


def test_what_is_no_event_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtefact, match="missing"):
        EventDatabase(tmp_path / "events.sqlite")
    (tmp_path / "text.sqlite").write_bytes(b"no database at all" * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE events (x)")
    other.commit()
    other.close()
    for name in ("text.sqlite", "other.sqlite"):
        for opened in (EventDatabase, EventDatabase.create):
            with pytest.raises(CorruptArtefact):
                opened(tmp_path / name)
    EventDatabase.create(tmp_path / "newer.sqlite").close()
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version = 3")
    newer.close()
    with pytest.raises(CorruptArtefact, match="another fedrecall"):
        EventDatabase(tmp_path / "newer.sqlite")


@pytest.mark.parametrize("tampered", ["time = 'soon'", "strength = 'much'", "strength = 1e999", "time = NULL"])
def test_what_was_not_ingested_does_not_train(tampered: str, tmp_path: Path) -> None:
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        database.add(batch([("a", 1, "view", 1.0), ("b", 2, "view", 1.0)]))
    other = sqlite3.connect(tmp_path / "events.sqlite")
    other.execute(f"UPDATE events SET {tampered} WHERE item = 'a'")
    other.commit()
    other.close()
    with EventDatabase(tmp_path / "events.sqlite") as database, pytest.raises(CorruptArtefact):
        database.store(["a", "b"], WEIGHTS)


def test_a_disk_that_refuses_adds_nothing(tmp_path: Path) -> None:
    with EventDatabase.create(tmp_path / "events.sqlite") as database:
        database.add(batch([("a", 1, "view", 1.0)]))
        pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
        database._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FedrecallError, match="free disk space"):
            database.add(batch([(f"i{n}", n, "view", 1.0) for n in range(5000)]))
        assert [event.item for event in database.events()] == ["a"]
        assert database.add(batch([("b", 2, "view", 1.0)])) == 1, "it goes on working"


ADDER = """
import os, sys
from pathlib import Path
from fedrecall.client.events.database import EventDatabase
from tests.client.events.test_database import batch
SIZE = 1000
for line in sys.stdin:
    first, (read, write) = int(line), os.pipe()
    child = os.fork()
    if not child:
        with EventDatabase(Path(sys.argv[1])) as database:
            batches = [batch([(f"i{n}", b, "view", 1.0) for n in range(SIZE)]) for b in range(first, first + 20)]
            os.write(write, f"{os.getpid()}\\n".encode())
            for number, rows in enumerate(batches, start=first):
                os.write(1, f"begin {number}\\n".encode())
                assert database.add(rows) == SIZE
                os.write(1, f"end {number}\\n".encode())
        os._exit(0)
    print("pid", os.read(read, 20).decode().strip(), flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def test_ten_kills_while_adding_leave_whole_batches_alone(tmp_path: Path) -> None:
    """A kill -9 at a random moment: what was said to be added is there, and of the rest all or nothing.

    It is killed until ten kills fell between begin and end: how many do, of the first twenty, is the machine's luck.
    """
    path, rng = tmp_path / "events.sqlite", np.random.default_rng(3)
    EventDatabase.create(path).close()
    adder = subprocess.Popen(
        [sys.executable, "-c", ADDER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert adder.stdin is not None and adder.stdout is not None
    inside, first = 0, 0
    for _ in range(100):
        if inside >= 10:
            break
        print(first, file=adder.stdin, flush=True)
        said = []
        for line in adder.stdout:
            said.append(line.split())
            if said[-1][0] == "pid":
                time.sleep(rng.uniform(0.003, 0.08))
                os.kill(int(said[-1][1]), signal.SIGKILL)
            if said[-1] == ["over"]:
                break
        begun, ended = (max([int(s[1]) for s in said if s[0] == word], default=first - 1) for word in ("begin", "end"))
        inside += begun > ended
        with EventDatabase(path) as database:
            times = [event.time for event in database.events()]
            assert database._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found, counts = np.unique(times, return_counts=True)
        assert found.tolist() == list(range(len(found))) and set(counts.tolist()) <= {1000}
        assert ended + 1 <= len(found) <= begun + 1
        first = len(found)
    adder.stdin.close()
    adder.stdout.close()
    assert adder.wait(30) == 0
    assert inside >= 10 and first > 0
