"""From a user's own files to the store: cleaned and counted, each event once, and nothing left behind."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrecall.client.device.enrolment import EVENTS
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.device.ingest import ingest
from fedrecall.client.device.spool import spooled
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.tables import Layout
from fedrecall.client.events.where import parse_condition
from fedrecall.protocol.errors import DataError, FedrecallError, UsageError
from fedrecall.protocol.invitation import Invitation

from ...house import ROOT
from .small_devices import UNLIMITED, invitation_of, world_of

COLUMNS = EventColumns(item="item", time="time", event="type", weight="stars")
ROWS = [
    {"item": "i3", "time": 30, "type": "view", "stars": 1},
    {"item": "i1", "time": 10, "type": "buy", "stars": 3},
    {"item": "i1", "time": 10, "type": "buy", "stars": 3},
    {"item": "unheard of", "time": 11, "type": "view", "stars": 1},
    {"item": "i2", "time": 20, "type": "stare", "stars": 1},
    {"item": "i2", "time": "soon", "type": "view", "stars": 1},
    {"item": "i2", "time": 21, "type": "view", "stars": 0},
]


@pytest.fixture
def device(tmp_path: Path) -> DeviceFolder:
    world, task, _ = world_of()
    folder = tmp_path / "device"
    folder.mkdir(mode=0o700)
    return DeviceFolder.enrol(folder, invitation_of(world, task, 0), UNLIMITED)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_dropped_is_counted_by_its_reason_and_what_is_kept_is_there(
    device: DeviceFolder, tmp_path: Path
) -> None:
    report = ingest(device.path, [write(tmp_path / "log.jsonl", ROWS)], columns=COLUMNS)
    assert {name: report[name] for name in ("read", "clean", "added", "stored")} == {
        "read": 7,
        "clean": 2,
        "added": 2,
        "stored": 2,
    }
    dropped = {reason: count for reason, count in report["dropped"].items() if count}
    assert dropped == {
        "impossible time": 1,
        "bad weight": 1,
        "unknown event type": 1,
        "unknown item": 1,
        "duplicate": 1,
    }
    assert report["unknown_event_types"] == {"stare": 1}
    store = device.history()
    assert store.items.tolist() == [1, 3] and store.types.tolist() == [1, 0]
    assert store.weights.tolist() == [2.0, 1.0], "log2(1 + stars)"
    assert b"unheard of" not in (device.path / EVENTS).read_bytes()


def test_files_that_overlap_in_any_layout_add_each_event_once(device: DeviceFolder, tmp_path: Path) -> None:
    first = write(tmp_path / "log.jsonl", ROWS[:2])
    csv = tmp_path / "log.csv"
    csv.write_text("type;item;stars;time\nbuy;i1;3;10\nview;i4;1;40\n")
    counts = [ingest(device.path, [path], columns=COLUMNS)["added"] for path in (first, first, csv, csv, first)]
    assert counts == [2, 0, 1, 0, 0]
    for paths in ([first, csv], [csv, first]):
        report = ingest(device.path, paths, columns=COLUMNS)
        assert (report["clean"], report["added"], report["stored"]) == (3, 0, 3)


def test_a_failure_in_the_second_file_adds_nothing_of_the_first(device: DeviceFolder, tmp_path: Path) -> None:
    first = write(tmp_path / "log.jsonl", ROWS)
    with pytest.raises(DataError, match="no column 'stars'"):
        ingest(
            device.path,
            [first, write(tmp_path / "other.jsonl", [{"item": "i1", "time": 1, "type": "buy"}])],
            columns=COLUMNS,
        )
    assert device.history().n_events == 0


def test_types_must_be_told_apart_where_there_are_several(device: DeviceFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--event"):
        ingest(device.path, [write(tmp_path / "log.jsonl", ROWS)], columns=EventColumns(item="item", time="time"))


def test_a_changed_weight_of_a_type_counts_for_what_was_ingested_before(device: DeviceFolder, tmp_path: Path) -> None:
    agreed = device.invitation.to_dict()
    for weight, expected in ((2.5, [5.0, 1.0]), (4.0, [8.0, 1.0])):
        changed = Invitation.from_dict(agreed | {"event_weights": {"view": 1.0, "buy": weight}})
        again = DeviceFolder.enrol(device.path, changed, replace=True)
        ingest(device.path, [write(tmp_path / "log.jsonl", ROWS)], columns=COLUMNS)
        assert again.history().weights.tolist() == expected


def test_a_stream_is_a_private_file_for_as_long_as_it_is_read(device: DeviceFolder) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    with spooled(io.BytesIO(text), device.path) as path:
        assert path.parent == device.path and path.stat().st_mode & 0o777 == 0o600
        assert ingest(device.path, [path], columns=COLUMNS)["added"] == 2
    assert not list(device.path.glob(".stdin*"))
    with (
        pytest.raises(DataError, match="no event is left"),
        spooled(io.BytesIO(b"item,type\nx,1\n"), device.path) as path,
    ):
        ingest(device.path, [path], columns=EventColumns(item="item", event="type"), layout=Layout())
    assert not list(device.path.glob(".stdin*"))


def test_a_stream_without_end_is_refused_and_deleted(device: DeviceFolder) -> None:
    with (
        pytest.raises(DataError, match="more than 10 bytes"),
        spooled(io.BytesIO(b"x" * 11), device.path, max_bytes=10),
    ):
        pass
    assert not list(device.path.glob(".stdin*"))
    with pytest.raises(FedrecallError), spooled(io.BytesIO(b""), device.path / "nowhere"):
        pass


def test_what_a_kill_left_of_a_stream_is_deleted_and_that_of_a_living_one_is_not(device: DeviceFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from fedrecall.client.device.spool import spooled\n"
        "with spooled(sys.stdin.buffer, Path(sys.argv[1])) as path:\n"
        "    print(path, flush=True); import time; time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(device.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert other.stdin is not None and other.stdout is not None
    other.stdin.write(b"secret")
    other.stdin.close()
    left = Path(other.stdout.readline().decode().strip())
    with spooled(io.BytesIO(b""), device.path):
        assert left.read_bytes() == b"secret"
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert left.exists()
    with spooled(io.BytesIO(b""), device.path):
        assert not left.exists()


def test_a_column_of_users_has_no_place_on_a_device(device: DeviceFolder, tmp_path: Path) -> None:
    rows = [row | {"who": "somebody"} for row in ROWS]
    ingest(device.path, [write(tmp_path / "log.jsonl", rows)], columns=COLUMNS)
    with EventDatabase(device.path / EVENTS) as database:
        assert {name for event in database.events() for name in event._fields} == {"item", "time", "type", "strength"}
    assert b"somebody" not in b"".join(path.read_bytes() for path in device.path.iterdir())


@pytest.mark.parametrize("unit", [10**-6, 10**-3, 10**-1])
def test_events_of_one_second_are_told_apart_night_by_night(device: DeviceFolder, tmp_path: Path, unit: float) -> None:
    """What is finer than a second tells a new event from one that is there, whichever file it comes in."""
    moments = [round(1_600_000_000 + n * unit, 6) for n in range(9)]
    nights = [moments[:3], moments[2:5], moments[:5], moments[4:]]
    counts, columns = [], EventColumns(item="item", time="time", event="type")
    for n, night in enumerate(nights):
        path = tmp_path / f"{n}.csv"
        path.write_text("item,time,type\n" + "".join(f"i3,{t:.6f},view\n" for t in night))
        counts.append(ingest(device.path, [path], columns=columns)["added"])
    assert counts == [3, 2, 0, 4]
    with EventDatabase(device.path / EVENTS) as database:
        assert [event.time for event in database.events()] == moments
    store = device.history()
    assert store.times is not None and store.times.tolist() == [1_600_000_000] * 9


@pytest.mark.parametrize("timed", [True, False])
def test_rows_that_agree_count_once_or_each_and_never_twice(device: DeviceFolder, tmp_path: Path, timed: bool) -> None:
    rows = [{"item": "i1", "time": 10, "type": "buy"}] * 3 + [{"item": "i2", "time": 11, "type": "buy"}]
    path, more = write(tmp_path / "log.jsonl", rows), write(tmp_path / "more.jsonl", rows[:1] * 4)
    columns = EventColumns(item="item", time="time" if timed else None, event="type")
    report = ingest(device.path, [path], columns=columns)
    assert report["dropped"]["duplicate"] == 2 and report["stored"] == 2
    for sources, stored in (([path], 4), ([path, path], 4), ([path, more], 5), ([more], 5)):
        assert ingest(device.path, sources, columns=columns, keep_duplicates=True)["stored"] == stored


def test_a_device_reads_what_a_simulation_reads(device: DeviceFolder, tmp_path: Path) -> None:
    """The same reading: packed, nested, in lists, filtered, in milliseconds; and the same words about it."""
    rows = [
        {"what": [{"id": "i1"}, {"id": "i2"}], "at": 1_600_000_000_000, "type": "buy", "n": 1},
        {"what": [{"id": "i3"}], "at": 1_600_000_001_500, "type": "buy", "n": -1},
        {"what": [{"id": "i4"}], "at": 1_600_000_002, "type": "view", "n": 1},
    ]
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    columns = EventColumns(item="what.id", time="at", event="type", where=(parse_condition("n > 0"),))
    report = ingest(device.path, [path], columns=columns)
    assert (report["read"], report["added"]) == (4, 2)
    dropped = {reason: count for reason, count in report["dropped"].items() if count}
    assert dropped == {"filtered out": 1, "time of another unit": 1}
    assert report["files"][0]["packed"] == ["gzip"] and report["files"][0]["time_format"] == "unix-ms (detected)"
    assert report["times"] == {"first": "2020-09-13 12:26:40", "last": "2020-09-13 12:26:40"}
    assert "'1600000002' (log.jsonl.gz line 3)" in report["warnings"][0]
