"""One spelling an identifier, and nobody called NaN."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.spelling import MISSING, one_spelling, without_missing
from fedrecall.client.events.tables import Layout

from .logs import clean, delimited, lines_of, made, rows_of, write


def spelled(texts: list[str]) -> list[str]:
    found: list[str] = one_spelling(pa.array(texts, pa.string()))[0].to_pylist()
    return found


@given(st.integers(-(10**15), 10**15))
def test_a_whole_number_has_one_spelling(number: int) -> None:
    ways = [str(number), f"{number}.0", f"{number}.000", repr(float(number))]
    if number and str(number).rstrip("0").lstrip("-")[1:] == "":  # one digit, then zeros
        ways.append(f"{number:.0e}")
    ways.append(f"{number:.15e}" if abs(number) >= 10 else str(number))
    assert set(spelled(ways)) <= {str(number)} | ({"0", "-0", "-0.0"} if number == 0 else set())


@given(st.integers(0, 22), st.integers(1, 9))
def test_large_round_numbers_are_written_out(zeros: int, digit: int) -> None:
    whole = f"{digit}{'0' * zeros}"
    assert set(spelled([whole, f"{digit}e+{zeros:02}", f"{digit}E+{zeros}", repr(float(whole))])) == {whole}


@pytest.mark.parametrize(
    "name",
    [
        "007",
        "007.0",
        "1.5",
        "1e5",
        "12e10",
        "9e107d9d",
        "1.0.0",
        "v1.0",
        "1.0a",
        "1e+400",
        "0x10",
        "+5",
        "1e-05",
        "1.5e+0",
    ],
)
def test_a_name_that_only_looks_like_a_number_stays(name: str) -> None:
    assert spelled([name]) == [name]


def test_people_and_items_are_one_across_files_and_formats(tmp_path: Path, rng: np.random.Generator) -> None:
    """The same log by pandas with a gap, by JSON, by doubles and by whole numbers: the same people, the same items."""
    rows = [(int(u[1:]) + 101, (int(i[1:]) + 1) * 10**14, t) for u, i, t in made(rng, 60)]
    parts = [rows[n::4] for n in range(4)]
    paths = [
        write(tmp_path / "whole.csv", delimited(parts[0])),
        write(tmp_path / "pandas.csv", delimited([(f"{u}.0", f"{i:.1f}", f"{t}.0") for u, i, t in parts[1]])),
        write(
            tmp_path / "log.jsonl",
            "".join(json.dumps({"user": float(u), "item": float(i), "time": t}) + "\n" for u, i, t in parts[2]),
        ),
        tmp_path / "doubles.parquet",
    ]
    users, items, times = zip(*parts[3], strict=True)
    pq.write_table(pa.table({"user": np.array(users, float), "item": np.array(items, float), "time": times}), paths[3])
    events = clean(*paths)
    assert set(events.user_ids) == {str(u) for u, *_ in rows} and set(events.item_ids) == {str(i) for _, i, _ in rows}
    assert sorted(rows_of(events), key=lambda row: row[2]) == [(str(u), str(i), t) for u, i, t in rows]
    about = events.report["files"]
    assert "respelled_ids" not in about[0] and about[1]["respelled_ids"] == {"user": 15, "item": 15}


@pytest.mark.parametrize("text", MISSING)
@pytest.mark.parametrize("role", [0, 1, 2])
def test_no_value_is_nobody(tmp_path: Path, rng: np.random.Generator, text: str, role: int) -> None:
    rows = made(rng)
    gone = set(rng.choice(len(rows), 9, replace=False).tolist())
    written = [list(map(str, row)) for row in rows]
    for n in gone:
        written[n][role] = text
    events = clean(write(tmp_path / "log.csv", delimited(written)))
    assert rows_of(events) == [row for n, row in enumerate(rows) if n not in gone]
    assert lines_of(events, "missing field") == [n + 2 for n in sorted(gone)]
    assert events.report["files"][0]["missing_texts"] == 9


@pytest.mark.parametrize("text", ["NA", "null", "None"])
def test_what_is_missing_is_what_somebody_says(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "log.csv", delimited([(text, "a", 1_600_000_000), ("?", "b", 1_600_000_001), ("u", "", 5)]))
    events = clean(path, layout=Layout(missing=("?",)))
    assert rows_of(events) == [(text, "a", 1_600_000_000)] and lines_of(events, "missing field") == [3, 4]


def test_a_film_may_be_called_null(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,title,kind\nu,1,Null,None|NA\nu,2,NaN,\nv,1,Other,x\n")
    columns = EventColumns(user="user", item="item", title="title", categories="kind")
    events = clean(path, columns=columns)
    assert events.titles == ("Null", "NaN") and events.categories == (("None", "NA"), ())


@given(st.lists(st.sampled_from([*MISSING, "a", "na", "nano", " NaN"])))
def test_exactly_the_texts_that_are_named_go(texts: list[str]) -> None:
    column, count = without_missing(pa.array(texts, pa.string()), MISSING)
    assert column.to_pylist() == [None if text in MISSING else text for text in texts]
    assert count == sum(text in MISSING for text in texts)


def test_identifiers_that_a_spreadsheet_rounded_are_said(tmp_path: Path) -> None:
    rows = [("1.23457E+15", "a", 1_600_000_000), ("1.23457E+15", "b", 1_600_000_001), ("17", "1.5e+1", 1_600_000_002)]
    events = clean(write(tmp_path / "log.csv", delimited(rows)))
    assert events.user_ids == ("1234570000000000", "17") and events.item_ids == ("a", "b", "15")
    assert events.report["files"][0]["rounded_ids"] == {"user": 2}
    assert "2 user ids have an exponent" in events.report["warnings"][0] and "123457" not in str(events.report)
