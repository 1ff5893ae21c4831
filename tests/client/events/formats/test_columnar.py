"""Parquet and Arrow: the types of columns are believed, and no format goes past them."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from fedrecall.client.events.events import EventColumns
from fedrecall.protocol.errors import DataError

from ..logs import NAMED, clean, lines_of, made, rows_of


def as_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def as_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "Parquet": lambda table, path: pq.write_table(table, path, row_group_size=7),
    "Feather": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
    "Feather, unpacked": lambda t, path: pyarrow.feather.write_feather(t, str(path), compression="uncompressed"),
    "an Arrow file": as_file,
    "an Arrow stream": as_stream,
}
MOMENTS = {
    **{f"timestamp {unit}": pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")},
    **{f"timestamp {unit} in a zone": pa.timestamp(unit, "Europe/Berlin") for unit in ("s", "ns")},
    "date64": pa.date64(),
    "date32": pa.date32(),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", MOMENTS)
def test_moments_are_what_their_type_says(tmp_path: Path, rng: np.random.Generator, writer: str, kind: str) -> None:
    rows = made(rng)
    moments = [datetime.fromtimestamp(time, UTC) for _, _, time in rows]
    days = kind.startswith("date")
    expected = [t - t % 86_400 if days else t for *_, t in rows]
    values = [m.date() for m in moments] if days else [m.replace(tzinfo=None) for m in moments]
    column = pa.array(values, MOMENTS[kind]) if "zone" not in kind else pa.array(moments, MOMENTS[kind])
    users, items, _ = zip(*rows, strict=True)
    table = pa.table({"user": pa.array(users).dictionary_encode(), "item": items, "time": column})
    path = tmp_path / "log"
    WRITERS[writer](table, path)
    assert rows_of(clean(path)) == [(u, i, t) for (u, i, _), t in zip(rows, expected, strict=True)]
    for asked in ("unix-ms", "unix", "%Y-%m-%d", "iso"):
        with pytest.raises(DataError, match=rf"already, not '{asked}': give no --time-format"):
            clean(path, time_format=asked)


@pytest.mark.parametrize("writer", ["Parquet", "Feather"])
def test_numbers_and_text_take_a_format_as_anywhere(tmp_path: Path, rng: np.random.Generator, writer: str) -> None:
    rows = made(rng)
    for column, asked in (
        (pa.array([t * 1000 for *_, t in rows]), "unix-ms"),
        (pa.array([float(t) for *_, t in rows]), "unix"),
        (pa.array([str(datetime.fromtimestamp(t, UTC)) for *_, t in rows], pa.large_string()), "iso"),
    ):
        table = pa.table({"user": [u for u, *_ in rows], "item": [i for _, i, _ in rows], "time": column})
        WRITERS[writer](table, tmp_path / "log")
        for time_format in (None, asked):
            assert rows_of(clean(tmp_path / "log", time_format=time_format)) == rows


def test_a_clock_without_a_day_is_no_time(tmp_path: Path) -> None:
    for column in (pa.array([1, 2], pa.time64("us")), pa.array([1, 2], pa.duration("s")), pa.array([True, False])):
        pq.write_table(pa.table({"user": ["a", "b"], "item": ["x", "y"], "time": column}), tmp_path / "log")
        with pytest.raises(DataError, match="no moment: name another column"):
            clean(tmp_path / "log")


def test_no_value_is_no_id_whatever_the_type(tmp_path: Path) -> None:
    time = [1_600_000_000 + n for n in range(4)]
    for users in (
        pa.array([7.0, float("nan"), None, float("inf")]),
        pa.array(["7", "NaN", None, "NA"]),
        pa.array([b"7", b"\xff", None, b""]),
        pa.array([Decimal(7), None, None, None]),
        pa.array([7, None, None, None], pa.int8()),
    ):
        pq.write_table(pa.table({"user": users, "item": ["a", "b", "c", "d"], "time": time}), tmp_path / "log")
        events = clean(tmp_path / "log")
        assert rows_of(events) == [("7", "a", time[0])] and lines_of(events, "missing field") == [2, 3, 4]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda inner: pa.list_(inner, 3)])
def test_a_list_of_items_is_an_event_each(
    tmp_path: Path, rng: np.random.Generator, writer: str, kind: Callable[[pa.DataType], pa.DataType]
) -> None:
    baskets = [[f"i{n}" for n in rng.permutation(30)[:3]] for _ in range(20)]
    table = pa.table({"user": list(range(20)), "item": pa.array(baskets, kind(pa.string()))})
    WRITERS[writer](table, tmp_path / "log")
    events = clean(tmp_path / "log", columns=EventColumns(user="user", item="item"))
    assert rows_of(events) == [(str(u), i, 0) for u, basket in enumerate(baskets) for i in basket]
    assert events.report["files"][0]["lists"] == {"lines": 20, "events": 60}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_dotted_name_reaches_into_a_column(tmp_path: Path, rng: np.random.Generator, writer: str) -> None:
    rows = made(rng)
    table = pa.table(
        {
            "who": [{"id": u, "x": 1} for u, *_ in rows],
            "basket": [[{"id": i}] for _, i, _ in rows],
            "time": pa.array([t for *_, t in rows], pa.timestamp("s")),
        }
    )
    WRITERS[writer](table, tmp_path / "log")
    columns = EventColumns(user="who.id", item="basket.id", time="time")
    assert rows_of(clean(tmp_path / "log", columns=columns)) == rows
    with pytest.raises(DataError, match=r"no column 'who\.ids' for --user; .*did you mean 'who\.id'"):
        clean(tmp_path / "log", columns=EventColumns(user="who.ids", item="basket.id"))
    with pytest.raises(DataError, match="object where --user is one value: name a field of it"):
        clean(tmp_path / "log", columns=EventColumns(user="who", item="basket.id"))


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["y"])], ["user", "item", "item"])
    pq.write_table(table, tmp_path / "log")
    for item in ("item", 2):
        with pytest.raises(DataError, match="columns named 'item'"):
            clean(tmp_path / "log", columns=EventColumns(user="user", item=item))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_cut_off_file_is_refused(tmp_path: Path, rng: np.random.Generator, writer: str) -> None:
    rows = made(rng, 400)
    names = dict(zip(("user", "item", "time"), zip(*rows, strict=True), strict=True))
    WRITERS[writer](pa.table(names), tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="write it again"):
        clean(tmp_path / "log", columns=NAMED)
