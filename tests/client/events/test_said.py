"""What is said of somebody's files holds no record of them: no error, no report, whatever is wrong with either."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.tables import Format, Layout
from fedrecall.protocol.errors import DataError

from .logs import clean, write

SECRETS = ("annsecret", "bobsecret", "mugsecret", "hatsecret", "viewsecret")


def people(rng: np.random.Generator) -> list[list[str]]:
    """Return rows of which every field but the time is somebody's secret, none of them twice."""
    return [
        [f"{SECRETS[n % 2]}{n}", f"{SECRETS[2 + n % 2]}{n}", f"viewsecret{n}", str(1_600_000_000 + n)]
        for n in range(40)
    ]


NAMES = ["who", "what", "how", "when"]
FILES: dict[str, Callable[[list[list[str]]], bytes]] = {
    "csv": lambda rows: "\n".join(map(",".join, [NAMES, *rows])).encode(),
    "csv without a header": lambda rows: "\n".join(map(",".join, rows)).encode(),
    "csv in utf-16": lambda rows: "\n".join(map(",".join, [NAMES, *rows])).encode("utf-16"),
    "csv of torn lines": lambda rows: "\n".join(",".join(row)[: 9 + n] for n, row in enumerate(rows)).encode(),
    "csv of bad bytes": lambda rows: b"\n".join(",".join(row).encode() + b"\xff" for row in rows),
    "csv of open quotes": lambda rows: "\n".join('"' + ",".join(row) for row in rows).encode(),
    "blanks": lambda rows: "\n".join(map(" ".join, rows)).encode(),
    "json lines": lambda rows: "\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in rows).encode(),
    "a json array": lambda rows: json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows]).encode(),
    "json by person": lambda rows: json.dumps({row[0]: {row[1]: row[2]} for row in rows}).encode(),
    "json lines by person": lambda rows: "\n".join(json.dumps({row[0]: row[1:]}) for row in rows).encode(),
    "json arrays": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "python dicts": lambda rows: "\n".join(str(dict(zip(NAMES, row, strict=True))) for row in rows).encode(),
    "torn json": lambda rows: json.dumps(rows).encode()[:900],
    "yaml": lambda rows: "\n".join(f"- {row[0]}: {row[1]}" for row in rows).encode(),
}
COLUMNS = [
    EventColumns(user="who", item="what", time="when"),
    EventColumns(user="user", item="item", time="time"),
    EventColumns(user="who", item="what", time="how"),
    EventColumns(user="who", item="what", event="how"),
    EventColumns(user="when", item="what", time="who", weight="how"),
    EventColumns(user=1, item=2, time=4),
    EventColumns(user=1, item=2),
    EventColumns(user=7, item=8, time=9),
    EventColumns(item="item"),
    EventColumns(user="who.id", item="what.id"),
]
LAYOUTS = [
    Layout(),
    Layout(header=False),
    Layout(encoding="utf-8", separator=";"),
    Layout(encoding="ascii"),
    Layout(format="jsonl"),
    Layout(format="lists", header=False),
    Layout(item_separator=","),
]


def said_of(path: Path, columns: EventColumns, layout: Layout, **settings: Any) -> str:
    try:
        events = clean(path, columns=columns, layout=layout, **settings)
    except DataError as error:
        return str(error)
    return json.dumps({k: v for k, v in events.report.items() if k not in ("event_types", "unknown_event_types")})


@pytest.mark.parametrize("kind", FILES)
def test_no_message_and_no_report_holds_a_record(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    path = write(tmp_path / "log.txt", FILES[kind](people(rng)))
    errors = 0
    for columns, layout in itertools.product(COLUMNS, LAYOUTS):
        for settings in ({}, {"time_format": "unix-ms"}, {"event_weights": {"view": 1.0}, "time_format": "%Y"}):
            said = said_of(path, columns, layout, **settings)
            assert not any(secret in said for secret in SECRETS), (columns, layout, said)
            assert "\n" not in said and all(c.isprintable() for c in said)
            errors += not said.startswith("{")
    assert errors > 50


@pytest.mark.parametrize("as_format", ["parquet", "arrow", "jsonl", "json", "delimited"])
def test_a_file_of_another_format_is_refused_without_its_records(
    tmp_path: Path, rng: np.random.Generator, as_format: Format
) -> None:
    rows = people(rng)
    pq.write_table(pa.table(dict(zip(NAMES, zip(*rows, strict=True), strict=True))), tmp_path / "log.parquet")
    for name, make in FILES.items():
        write(tmp_path / name.replace(" ", "-"), make(rows))
    for path in tmp_path.iterdir():
        for columns in COLUMNS:
            said = said_of(path, columns, Layout(format=as_format))
            assert not any(secret in said for secret in SECRETS), (path.name, columns, said)


def test_types_by_the_hundred_are_counted_not_listed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "log.csv", FILES["csv"]([*people(rng), ["x", "y", "view", "1600000100"]]))
    events = clean(path, columns=EventColumns(user="who", item="what", event="how"), event_weights={"view": 1.0})
    assert events.report["unknown_event_types"] == {} and events.report["dropped"]["unknown event type"] == 40
    assert "40 different event types" in events.report["warnings"][0]


def test_columns_are_listed_where_they_certainly_are_names(tmp_path: Path) -> None:
    for header, wanted, listed in (
        ("user,item_id,when", "item", True),
        ("visitor,product,date", "item", True),
        ("customerId;stockCode;invoiceDate", "item", True),
        ("annsecret,mugsecret,viewsecret", "item", False),
        ("annsecret,mugsecret,viewsecret", "mugsecre", True),
        ("17,mugsecret,2020-01-01", "item", False),
    ):
        path = write(tmp_path / "log.csv", f"{header}\nx,y,z\n")
        with pytest.raises(DataError) as caught:
            clean(path, columns=EventColumns(user="user", item=wanted), layout=Layout(separator=header[4:9] and None))
        assert ("its columns are: " in str(caught.value)) == listed
