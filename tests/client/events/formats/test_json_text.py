"""JSON in each of its forms gives the same events, and what is broken costs itself alone."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrecall.client.events import tables
from fedrecall.client.events.events import EventColumns
from fedrecall.protocol.errors import DataError

from ..logs import NAMED, clean, dropped, lines_of, made, rows_of, write

Records = list[dict[str, Any]]
FORMS: dict[str, Callable[[Records], str]] = {
    "one a line": lambda records: "".join(json.dumps(r) + "\n" for r in records),
    "an array on one line": json.dumps,
    "an array, one a line": lambda records: "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
    "an indented array": lambda records: json.dumps(records, indent=2),
    "indented objects": lambda records: "\n".join(json.dumps(r, indent=1) for r in records),
}


def records_of(rows: list[tuple[str, str, int]]) -> Records:
    return [{"user": u, "item": i, "time": t, "note": 'a "}{" \\ , [x] ü'} for u, i, t in rows]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [150, 1 << 22])
def test_every_form_gives_the_same_events(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, form: str, block: int
) -> None:
    monkeypatch.setattr(tables, "BLOCK_CHARACTERS", block)
    rows = made(rng)
    events = clean(write(tmp_path / "log.json", FORMS[form](records_of(rows))))
    assert rows_of(events) == rows and not dropped(events)


BROKEN = {
    "a cut": '{"user": "u1", "item": "x", "ti',
    "half a character": '{"user": "u1", "item": "b\\ud83d", "time": 1600000000}',
    "no key": '{"user": "u1", "item": , "time": 1600000000}',
    "a list of users": '{"user": ["u1", "u2"], "item": "x", "time": 1600000000}',
    "an object": '{"user": {"id": "u1"}, "item": "x", "time": 1600000000}',
    "a field twice": '{"user": "u1", "user": "u2", "item": "x", "time": 1600000000}',
    "Python": "{'user': 'u1', 'item': 'x', 'time': 1600000000}",
    "depth": '{"user":' + "[" * 100_000,
    "long digits": '{"user": "u1", "item": 1' + "0" * 5000 + ', "time": 1600000000}',
    "a number": "17",
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("form", ["one a line", "an array, one a line"])
def test_one_broken_object_costs_itself_alone(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, what: str, form: str
) -> None:
    monkeypatch.setattr(tables, "BLOCK_CHARACTERS", 400)
    rows = made(rng)
    at = int(rng.integers(1, len(rows)))
    lines = FORMS[form](records_of(rows)).splitlines()
    comma = "," * (form != "one a line")
    place = at + len(comma)
    events = clean(write(tmp_path / "log.json", "\n".join([*lines[:place], BROKEN[what] + comma, *lines[place:]])))
    assert rows_of(events) == rows
    assert set(lines_of(events, "malformed line")) == {place + 1} and list(dropped(events)) == ["malformed line"]


def test_bytes_that_are_no_text_cost_their_line(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = made(rng)
    lines = FORMS["one a line"](records_of(rows)).encode().splitlines()
    events = clean(write(tmp_path / "log.json", b"\n".join([*lines[:7], b'{"user": "\xff\xfe"}', *lines[7:]])))
    assert rows_of(events) == rows and lines_of(events, "malformed line") == [8]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_a_field_is_read_or_counted(tmp_path: Path, value: object) -> None:
    lines = [{"user": "u", "item": "i", "time": 1_600_000_000 + n} for n in range(3)]
    strange = {"user": value, "item": value, "time": value}
    text = "\n".join(map(json.dumps, [*lines, strange]))
    events = clean(write(tmp_path / "log.jsonl", text.encode("utf-8", "surrogatepass")))
    report = events.report
    assert report["kept"] >= 3
    assert report["kept"] + sum(report["dropped"].values()) == report["rows_read"]


@pytest.mark.parametrize("form", ["one a line", "an array on one line"])
def test_a_dotted_name_reaches_into_objects_and_lists_of_them(
    tmp_path: Path, rng: np.random.Generator, form: str
) -> None:
    rows = made(rng)
    nested = [
        {
            "who": {"id": {"n": u}},
            "basket": [{"id": i, "name": i.upper()}, {"id": i + "b", "name": "B"}],
            "at": {"t": t},
        }
        for u, i, t in rows
    ]
    columns = EventColumns(user="who.id.n", item="basket.id", time="at.t", title="basket.name")
    events = clean(write(tmp_path / "log.json", FORMS[form](nested)), columns=columns)
    assert rows_of(events) == [(u, i + end, t) for u, i, t in rows for end in ("", "b")]
    assert events.titles is not None
    assert dict(zip(events.item_ids, events.titles, strict=True))[rows[0][1]] == rows[0][1].upper()
    assert events.report["files"][0]["lists"] == {"lines": len(rows), "events": 2 * len(rows)}
    flat = [{"who.id.n": u, "basket.id": i, "at.t": t} for u, i, t in rows]
    columns = EventColumns(user="who.id.n", item="basket.id", time="at.t")
    assert rows_of(clean(write(tmp_path / "flat.json", FORMS[form](flat)), columns=columns)) == rows


def test_lists_go_along_one_by_one_or_are_refused(tmp_path: Path) -> None:
    records: Records = [
        {"user": "u", "item": ["a", "b"], "time": [1_600_000_000, 1_600_000_005]},
        {"user": "u", "item": ["c", "d"], "time": 1_600_000_010},
        {"user": "u", "item": ["e"], "time": [1_600_000_020, 1_600_000_021]},
        {"user": "u", "item": [], "time": 1_600_000_030},
        {"user": "u", "item": [["f"]], "time": 1_600_000_040},
    ]
    events = clean(write(tmp_path / "log.json", FORMS["one a line"](records)))
    assert [(i, t - 1_600_000_000) for _, i, t in rows_of(events)] == [("a", 0), ("b", 5), ("c", 10), ("d", 10)]
    assert lines_of(events, "malformed line") == [3, 4, 5]


@pytest.mark.parametrize(
    ("records", "columns", "message"),
    [
        ([{"user": {"id": 1}, "item": 2, "time": 3}], NAMED, "holds objects: name a field of it, such as 'user.id'"),
        ([{"ann": ["x"], "bob": ["y"]}], NAMED, "none of them a known name"),
        ([{"data": [{"user": 1, "item": 2, "time": 3}]}], NAMED, "one object around a list of objects"),
        ([{"user": {"0": 1}, "item": {"0": 2}, "time": {"0": 3}}], NAMED, "written by columns: .*records"),
        ([{"user": [1, 2], "item": [2, 3], "time": [3, 4]}], NAMED, "written by columns: .*records"),
    ],
)
def test_what_is_not_there_is_explained(tmp_path: Path, records: Records, columns: EventColumns, message: str) -> None:
    for form in FORMS.values():
        with pytest.raises(DataError, match=message) as caught:
            clean(write(tmp_path / "log.json", form(records)), columns=columns)
        assert "--sep" not in str(caught.value) or ("known" in message and "bob" not in str(caught.value))


def test_python_dicts_get_a_remedy_that_works(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = made(rng)
    path = write(tmp_path / "log.json", "".join(f"{record}\n" for record in records_of(rows)))
    with pytest.raises(DataError, match="looks like a Python dict") as caught:
        clean(path)
    command = str(caught.value).split("such as by ")[1]
    done = subprocess.run(command, shell=True, input=path.read_bytes(), capture_output=True, check=True)
    assert rows_of(clean(write(tmp_path / "log.jsonl", done.stdout))) == rows


def test_arrays_of_arrays_are_no_records(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match=r"line 1 is not a JSON object.*one JSON object, a line each"):
        clean(write(tmp_path / "log.json", json.dumps(made(rng))))


def test_one_object_of_one_person_may_hold_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", json.dumps({"item": ["a", "b"], "time": [1_600_000_000, 1_600_000_009]}))
    events = clean(path, columns=EventColumns(item="item", time="time"))
    assert [(i, t % 100) for _, i, t in rows_of(events)] == [("a", 0), ("b", 9)]
