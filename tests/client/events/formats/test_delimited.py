"""Delimited text: the separator, the header, and lines that hold lists."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.tables import Layout
from fedrecall.protocol.errors import DataError

from ..logs import NAMED, clean, delimited, dropped, lines_of, made, rows_of, write

NUMBERED = EventColumns(user=1, item=2, time=3)
NO_HEADER = Layout(header=False)
TIMES: dict[str, Callable[[int], str]] = {
    "seconds": str,
    "a clock with blanks": lambda t: _utc(t).strftime("%Y-%m-%d %H:%M:%S"),
    "asctime": lambda t: _utc(t).strftime("%a %b %d %H:%M:%S %Y"),
    "words": lambda t: _utc(t).strftime("%d %B %Y %H:%M:%S"),
}


def _utc(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize("separator", ["\t", "::", "|", ";", ","])
@pytest.mark.parametrize("clock", TIMES)
@pytest.mark.parametrize("named", [True, False])
def test_a_blank_never_beats_a_separator(
    tmp_path: Path, rng: np.random.Generator, separator: str, clock: str, named: bool
) -> None:
    """Names of two words and dates of five cut as evenly at blanks, into more fields."""
    rows = [(f"ann {u}", f"the {i}", t) for u, i, t in made(rng)]
    text = delimited([(u, i, TIMES[clock](t)) for u, i, t in rows], separator, "user,item,time" if named else None)
    path = write(tmp_path / "log.csv", text)
    events = clean(path, columns=NAMED if named else NUMBERED, layout=Layout(header=named))
    assert rows_of(events) == rows
    about = events.report["files"][0]
    assert (about["separator"], about["separator_found"]) == (separator, True)


@pytest.mark.parametrize("separator", ["\t", "::", "|", ";", ",", " "])
def test_other_separators_in_one_field_change_nothing(tmp_path: Path, rng: np.random.Generator, separator: str) -> None:
    others = [s for s in ("|", ";", ":") if s not in separator]
    rows = [(u, i + others[0] + others[0].join("xy"), t) for u, i, t in made(rng)]
    path = write(tmp_path / "log.csv", delimited(rows, separator, None))
    assert rows_of(clean(path, columns=NUMBERED, layout=NO_HEADER)) == rows


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_a_comma_between_digits_is_a_decimal_one(tmp_path: Path, rng: np.random.Generator, separator: str) -> None:
    rows = made(rng)
    text = "".join(f"{u},5{separator}{i},5{separator}{t},5{separator}1,25\n" for u, i, t in rows)
    events = clean(write(tmp_path / "log.csv", text), columns=EventColumns(user=1, item=2), layout=NO_HEADER)
    assert events.report["files"][0]["separator"] == separator


def test_the_separator_that_a_spreadsheet_names_is_taken(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = made(rng)
    events = clean(write(tmp_path / "log.csv", "sep=^\n" + delimited(rows, "^")))
    assert rows_of(events) == rows
    broken = clean(
        write(tmp_path / "log.csv", "sep=^\n" + delimited(rows[:9], "^") + "x\n" + delimited(rows[9:], "^", None))
    )
    assert lines_of(broken, "malformed line") == [12]


BROKEN = {
    "too few fields": b"u1,i1",
    "too many": b"u1,i1,1600000000,x",
    "no text": b"u1,\xff\xfe,1600000000",
    "an open quote": b'"u1,i1,1600000000',
    "a zero": b"\x00",
    "a long field": b'"' + b"x" * 200_000 + b'",i1,1600000000,',
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_broken_line_costs_itself_alone(tmp_path: Path, rng: np.random.Generator, what: str) -> None:
    rows = made(rng, 300)
    at = int(rng.integers(1, len(rows)))
    lines = delimited(rows).encode().splitlines()
    events = clean(write(tmp_path / "log.csv", b"\n".join([*lines[:at], BROKEN[what], *lines[at:]])))
    assert rows_of(events) == rows
    assert lines_of(events, "malformed line") == [at + 1] and list(dropped(events)) == ["malformed line"]


@pytest.mark.parametrize("header", ["user,item,item,time", "user,user,item,time", "time,user,item,time"])
def test_a_name_that_two_columns_have_is_refused_and_a_number_is_not(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "log.csv", f"{header}\n1,2,3,1600000000\n1,4,5,1600000001\n")
    twice = next(name for name in header.split(",") if header.split(",").count(name) == 2)
    with pytest.raises(DataError, match=rf"2 columns named '{twice}' \(numbers \d, \d\): .*by its number"):
        clean(path)
    columns = EventColumns(user=1 if twice != "time" else 2, item=3, time=4)
    assert clean(path, columns=columns).report["kept"] == 2
    unused = write(tmp_path / "other.csv", "user,x,x,item,time\n1,2,3,4,1600000000\n")
    assert clean(unused).report["kept"] == 1


@pytest.mark.parametrize(
    ("columns", "pair"),
    [
        (EventColumns(user="user", item="user", time="time"), "--user and --item"),
        (EventColumns(user="user", item=1, time="time"), "--user and --item"),
        (EventColumns(user="user", item="item", time=2), "--item and --time"),
        (EventColumns(user="user", item="item", time="user"), "--user and --time"),
        (EventColumns(user="user", item="item", weight="time", time="time"), "--time and --weight"),
        (EventColumns(user="user", item="item", event="item"), "--item and --event"),
    ],
)
def test_one_column_is_not_two_things(
    tmp_path: Path, rng: np.random.Generator, columns: EventColumns, pair: str
) -> None:
    with pytest.raises(DataError, match=f"{pair} name the same column"):
        clean(write(tmp_path / "log.csv", delimited(made(rng))), columns=columns)


@pytest.mark.parametrize("same", [("user", "item"), ("item", "time"), ("user", "time")])
def test_columns_that_are_the_same_throughout_are_refused(
    tmp_path: Path, rng: np.random.Generator, same: tuple[str, str]
) -> None:
    values = rng.integers(0, 50, (30, 3))
    names = ("user", "item", "time")
    values[:, names.index(same[1])] = values[:, names.index(same[0])]
    with pytest.raises(DataError, match=f"--{same[0]} and --{same[1]} hold the same in all 30 rows"):
        clean(write(tmp_path / "log.csv", delimited(values.tolist())))


@pytest.mark.parametrize("separator", [" ", "\t", ","])
@pytest.mark.parametrize("ragged", [True, False])
def test_a_list_a_line_is_named_and_read_when_it_is_said(
    tmp_path: Path, rng: np.random.Generator, separator: str, ragged: bool
) -> None:
    lists = {u: [f"{i}" for i in rng.permutation(500)[: rng.integers(1, 9) if ragged else 6]] for u in range(40)}
    text = "".join(separator.join([str(u), *items]) + "\n" for u, items in lists.items())
    path = write(tmp_path / "lists.txt", text)
    columns = EventColumns(user=1, item=2)
    with pytest.raises(DataError, match=r"--layout lists; .* --layout rows"):
        clean(path, columns=columns, layout=NO_HEADER)
    events = clean(path, columns=columns, layout=Layout(header=False, format="lists"))
    assert rows_of(events) == [(str(u), i, 0) for u, items in lists.items() for i in items]
    assert events.report["files"][0]["lists"] == {"lines": 40, "events": sum(map(len, lists.values()))}
    if not ragged:
        assert clean(path, columns=columns, layout=Layout(header=False, rows=True)).report["kept"] == 40


def test_lists_that_are_broken_cost_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "lists.txt", b"who what\n1 a b\n2\n\n3 c\xff d\n4  e\n")
    events = clean(path, columns=EventColumns(user="who", item="what"), layout=Layout(format="lists"))
    assert rows_of(events) == [("1", "a", 0), ("1", "b", 0), ("4", "e", 0)]
    assert lines_of(events, "malformed line") == [3, 5]
    with pytest.raises(DataError, match="user before the items"):
        clean(path, columns=EventColumns(user=2, item=1), layout=Layout(format="lists", header=False))


def test_what_only_looks_a_little_like_lists_is_read_as_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    ratings = [(u, i, rng.integers(1, 6), rng.integers(0, 3)) for u in range(40) for i in rng.permutation(900)[:3]]
    path = write(tmp_path / "ratings.txt", delimited(ratings, "\t", None))
    assert clean(path, columns=EventColumns(user=1, item=2), layout=NO_HEADER).report["kept"] == 120


@pytest.mark.parametrize(
    "written", [json.dumps, str, lambda items: ",".join(items), lambda items: f"[{', '.join(items)}]"]
)
def test_a_list_in_one_field_is_split_where_its_separator_is_said(tmp_path: Path, rng, written) -> None:
    baskets = [[f"i{n}" for n in rng.permutation(30)[: rng.integers(1, 5)]] for _ in range(20)]
    quoted = ['"' + written(basket).replace('"', '""') + '"' for basket in baskets]
    text = "user,item,time\n" + "".join(f"{u},{field},160000000{u % 9}\n" for u, field in enumerate(quoted))
    path = write(tmp_path / "log.csv", text)
    events = clean(path, layout=Layout(item_separator=","))
    assert [(u, i) for u, i, _ in rows_of(events)] == [(str(u), i) for u, basket in enumerate(baskets) for i in basket]
    if written(["x"]).startswith("["):
        with pytest.raises(DataError, match=r"of 20 fields of --item (are lists in brackets|hold ',').*--item-sep ','"):
            clean(path)


def test_items_of_a_list_are_tidied_as_those_of_a_field_of_their_own(tmp_path: Path) -> None:
    rows = ["ann;1.0,NaN,2.0", "bob;2,,1", "cat;", "dan;3.0", "eve;1,"]
    path = write(tmp_path / "log.csv", "\n".join(["u;i", *rows]) + "\n")
    events = clean(path, columns=EventColumns(user="u", item="i"), layout=Layout(separator=";", item_separator=","))
    wanted = [("ann", "1"), ("ann", "2"), ("bob", "2"), ("bob", "1"), ("dan", "3"), ("eve", "1")]
    assert [(u, i) for u, i, _ in rows_of(events)] == wanted
    assert dropped(events) == {"missing field": 4} and lines_of(events, "missing field") == [2, 3, 4, 6]
    (about,) = events.report["files"]
    assert about["missing_texts"] == 1 and about["respelled_ids"] == {"item": 3}


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_fields_that_look_like_lists_without_brackets_are_named(
    tmp_path: Path, rng: np.random.Generator, separator: str
) -> None:
    baskets = [[f"i{n}" for n in rng.permutation(30)[: rng.integers(1, 6)]] for _ in range(20)]
    rows = [(u, separator.join(basket)) for u, basket in enumerate(baskets)]
    path = write(tmp_path / "log.csv", delimited(rows, ",", "user,items"))
    columns = EventColumns(user="user", item="items")
    with pytest.raises(DataError, match=r"--item-sep .*--layout rows"):
        clean(path, columns=columns)
    events = clean(path, columns=columns, layout=Layout(item_separator=separator))
    assert rows_of(events) == [(str(u), i, 0) for u, basket in enumerate(baskets) for i in basket]
    assert clean(path, columns=columns, layout=Layout(rows=True)).report["kept"] == 20
    titles = write(
        tmp_path / "titles.csv", delimited([(u % 4, f"the {u} films") for u in range(20)], ",", "user,items")
    )
    assert clean(titles, columns=columns).report["kept"] == 20, "users with several lines have items with blanks"


@pytest.mark.parametrize("separator", ["\t", "|", " "])
def test_quotes_around_every_field_are_no_part_of_it(tmp_path: Path, rng: np.random.Generator, separator: str) -> None:
    rows = made(rng)
    text = delimited([(f'"{u}"', f'"{i}"', f'"{t}"') for u, i, t in rows], separator, '"user","item","time"')
    assert rows_of(clean(write(tmp_path / "log", text))) == rows
    some = [(f'"{u}"' if n else u, i, t) for n, (u, i, t) in enumerate(rows)]
    events = clean(write(tmp_path / "log", delimited(some, separator)))
    assert [u for u, *_ in rows_of(events)] == [u for u, *_ in some], "a quote that not all fields have is the user's"


@pytest.mark.parametrize("named", [True, False])
def test_blanks_separate_however_many_there_are(tmp_path: Path, rng: np.random.Generator, named: bool) -> None:
    rows = made(rng)
    lines = [("user", "item", "time")] * named + [(u, i, str(t)) for u, i, t in rows]
    path = write(tmp_path / "log.txt", "".join(f" {u:>5}  {i:<6} {t:>14} \n" for u, i, t in lines))
    assert rows_of(clean(path, columns=NAMED if named else NUMBERED, layout=Layout(header=named))) == rows


def test_bytes_of_another_encoding_have_a_remedy(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [(f"{u}é", i, t) for u, i, t in made(rng)]
    path = write(tmp_path / "log.csv", delimited(rows).encode("cp1252"))
    with pytest.raises(DataError, match="not utf-8; give --encoding, such as latin-1 or cp1252"):
        clean(path)
    assert rows_of(clean(path, layout=Layout(encoding="cp1252"))) == rows
