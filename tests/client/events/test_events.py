import json
import math
import string
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedrecall.client.events import tables
from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import EventColumns, Events, read_events, strength
from fedrecall.client.events.formats import delimited
from fedrecall.client.events.formats.separators import SEPARATORS, sniff_separator
from fedrecall.client.events.parsing import read_table
from fedrecall.client.events.tables import Layout
from fedrecall.client.events.times import parse_times
from fedrecall.protocol.errors import DataError

NUMBERED = EventColumns(user=1, item=2, time=3)
NO_HEADER = Layout(header=False)


def write(folder: Path, text: str | bytes, name: str = "events.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def clean(path: Path, columns: EventColumns = NUMBERED, layout: Layout = NO_HEADER, **settings: object) -> Events:
    return clean_events([read_events(path, columns=columns, layout=layout)], **settings)  # type: ignore[arg-type]


def rows(events: Events) -> list[tuple[str, str]]:
    return [(events.user_ids[u], events.item_ids[i]) for u, i in zip(events.users, events.items, strict=True)]


@pytest.mark.parametrize("separator", ["::", "\t", ",", ";", "|", " ", "@@", "\x01", "→"])
def test_any_separator_gives_the_same_events(tmp_path: Path, separator: str) -> None:
    lines = [("ann", "x", "30"), ("bob", "y", "20"), ("ann", "z", "10")]
    path = write(tmp_path, "".join(separator.join(line) + "\n" for line in lines))
    given_layout = Layout(separator=separator, header=False)
    events = clean(path, layout=given_layout)
    assert rows(events) == [("ann", "x"), ("bob", "y"), ("ann", "z")]
    assert events.times is not None
    assert (events.times // 10**6).tolist() == [30, 20, 10]
    if separator in SEPARATORS:
        assert rows(clean(path)) == rows(events)


def test_the_separator_that_yields_the_named_columns_wins() -> None:
    lines = ["user id,item|kind,time", "1,2|a,3", "4,5|b,6"]
    assert sniff_separator(lines, {"item": "item|kind"}) == ","
    assert sniff_separator(lines, {"item": "kind,time"}) == "|"


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("latin-1", b""), ("utf-16", b"")]
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, mark: bytes, ending: str) -> None:
    text = ending.join(["käufer,ding,zeit", "jürgen,tür,1", "zoë,naïf,2"])
    path = write(tmp_path, mark + text.encode(encoding))
    layout = Layout(encoding=encoding)
    events = clean(path, EventColumns(user="käufer", item="ding", time="zeit"), layout)
    assert rows(events) == [("jürgen", "tür"), ("zoë", "naïf")]


def test_quoted_fields_may_hold_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'user,item,note\na,"x, y",1\nb,"say ""z""","two\nlines"\n"c",w,3\n'
    events = clean(write(tmp_path, text), EventColumns(user="user", item="item"), Layout())
    assert rows(events) == [("a", "x, y"), ("b", 'say "z"'), ("c", "w")]


def test_a_stray_quote_costs_one_line(tmp_path: Path) -> None:
    lines = ["user,item"] + [f"u{i},i{i}" for i in range(300)]
    lines[150] = '"u149,i149'
    events = clean(write(tmp_path, "\n".join(lines)), EventColumns(user="user", item="item"), Layout())
    assert events.report["dropped"]["malformed line"] == 1
    assert events.report["malformed_lines"] == [
        {"file": "events.txt", "line": 151, "reason": "has an unbalanced quote"}
    ]
    assert events.report["kept"] == 299


def test_every_reason_is_counted_with_its_line(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "user,item,when,what,much",
            "a,x,100,view,1",
            "a,x,100,view,9",  # line 3: duplicate
            "",
            "a,x,100,click,1",
            "a,x",  # line 6: malformed
            ",x,100,view,1",  # line 7: missing user
            "a,x,,view,1",  # line 8: missing time
            "a,x,-5,view,1",  # line 9: negative
            "a,x,9999999999,view,1",  # line 10: beyond 2200
            "a,x,soon,view,1",  # line 11: unparsable
            "a,y,101,view,nan",  # line 12: missing weight
            "a,y,101,view,0",  # line 13
            "a,y,101,view,-1",  # line 14
            "a,y,101,view,inf",  # line 15
            "a,y,101,hover,1",  # line 16: unknown type
            "a,q,101,view,1",  # line 17: unknown item
            "b,y,101,view,3",
            "b,x,102,view,1",
            "b,y,103,click,1",
            "b,x,104,click,1",
            "a,y,105,view,1",
        ]
    )
    columns = EventColumns(user="user", item="item", time="when", event="what", weight="much")
    events = clean(
        write(tmp_path, text),
        columns,
        Layout(),
        time_format="unix",
        event_weights={"view": 1.0, "click": 2.0},
        known_items=["y", "x", "never"],
    )
    report = events.report
    assert report["dropped"] == {
        "malformed line": 1,
        "filtered out": 0,
        "missing field": 3,
        "impossible time": 3,
        "time of another unit": 0,
        "bad weight": 3,
        "unknown event type": 1,
        "unknown item": 1,
        "duplicate": 1,
    }
    assert report["kept"] + sum(report["dropped"].values()) == report["rows_read"] == 20
    lines = {reason: [x["line"] for x in where] for reason, where in report["dropped_lines"].items()}
    assert lines == {
        "missing field": [7, 8, 12],
        "impossible time": [9, 10, 11],
        "bad weight": [13, 14, 15],
        "unknown event type": [16],
        "unknown item": [17],
        "duplicate": [3],
    }
    assert report["malformed_lines"][0]["line"] == 6
    assert report["unknown_event_types"] == {"hover": 1}
    assert events.item_ids == ("y", "x", "never")
    assert events.type_names == ("view", "click")
    assert events.weights[:3].tolist() == [1.0, 2.0, 2.0]  # log2(1 + 1), twice that for a click, log2(1 + 3)


def test_types_are_all_kept_at_weight_one_without_a_map(tmp_path: Path) -> None:
    events = clean(write(tmp_path, "u,i,hover\nu,j,view\n"), EventColumns(user=1, item=2, event=3))
    assert events.type_names == ("hover", "view")
    assert events.weights.tolist() == [1.0, 1.0]


def test_without_a_user_column_all_rows_are_one_device(tmp_path: Path) -> None:
    events = clean(write(tmp_path, "x\ny\n\nx\nz\n"), EventColumns(item=1))
    assert rows(events) == [("", "x"), ("", "y"), ("", "z")]
    assert events.report["dropped"]["duplicate"] == 1


@pytest.mark.parametrize(
    ("text", "time_format", "expected", "used"),
    [
        (["5", "1e3", "7.9"], None, [5, 1000, 7.9], "unix (detected)"),
        (["1609459200000"], None, [1609459200], "unix-ms (detected)"),
        (["1609459200500"], "unix-ms", [1609459200.5], "unix-ms"),
        (["2021-01-01", "2021-01-01T00:00:01Z"], None, [1609459200, 1609459201], "ISO 8601 (detected)"),
        (["2021-01-01 02:00:00+02:00", "?"], None, [1609459200, math.nan], "ISO 8601 (detected)"),
        (["01.01.2021", "32.01.2021"], "%d.%m.%Y", [1609459200, math.nan], "%d.%m.%Y"),
        (["1", None, "1e999", "0x10", "1_0"], "unix", [1, math.nan, math.nan, math.nan, math.nan], "unix"),
    ],
)
def test_times(text: list[str], time_format: str | None, expected: list[float], used: str) -> None:
    seconds, strange, name = parse_times(pa.array(text, pa.string()), time_format)
    np.testing.assert_array_equal(seconds, expected)
    assert not strange.any()
    assert name == used


def test_times_without_an_offset_are_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_times(pa.array(["2021-01-01 00:00"]))[0].tolist() == [1609459200]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_milliseconds_decide_the_order_within_a_second(tmp_path: Path) -> None:
    text = "u,late,1609459200900\nu,early,1609459200100\nu,x,1609459200100\n"
    events = clean(write(tmp_path, text))
    assert rows(events) == [("u", "early"), ("u", "x"), ("u", "late")]


def test_strength() -> None:
    assert strength(np.array([1.0, 3.0, 5.0])).tolist() == [1.0, 2.0, math.log2(6)]
    assert strength(np.array([5.0]), scale=5.0).tolist() == [1.0]
    assert np.isnan(strength(np.array([0.0, -1.0, math.nan, math.inf]))).all()


@pytest.mark.parametrize(
    ("text", "columns", "layout", "message"),
    [
        ("", NUMBERED, NO_HEADER, "is empty"),
        ("  \n\n", NUMBERED, NO_HEADER, "is empty"),
        ("user,item,time\n", EventColumns(user="user", item="item"), Layout(), "no rows"),
        ("user,item_id\n1,2\n", EventColumns(user="user", item="item"), Layout(), "did you mean 'item_id'"),
        ("a,b\n1,2\n", EventColumns(user=1, item=3), Layout(), "no column '3' .* holds 2 fields"),
        ("item,b\n1,2\n", EventColumns(user=1, item=3), Layout(), "columns are: item, b"),
        ("1,2\n3,4\n", EventColumns(user=1, item=2), Layout(), "--no-header"),
        ("1\t2\t3\n4\t5\t6\n", NUMBERED, Layout(separator=";", header=False), "no column '2' .*--sep"),
        ("1;2;3\n4;5\n6;7\n", NUMBERED, Layout(separator=";", header=False), "no column '3' .*--sep"),
        ("1,2,3\n", NUMBERED, Layout(header=False, encoding="klingon"), "--encoding"),
        ("1,2,soon\n1,3,later\n", NUMBERED, NO_HEADER, "no time can be read: .*line 1.*--time-format"),
        (
            "1,2,-5\n1,3,-6\n",
            NUMBERED,
            NO_HEADER,
            r"no event is left .*2 impossible time .*2 times lie before 1970 .* such as '-5' \(events\.txt line 1\)",
        ),
        ("1,2,3\n", NUMBERED, Layout(header=False, separator=""), "separator"),
    ],
)
def test_bad_files_are_refused_with_a_remedy(
    tmp_path: Path, text: str, columns: EventColumns, layout: Layout, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        clean(write(tmp_path, text), columns, layout)


def test_a_wrong_separator_is_named_when_most_lines_are_malformed(tmp_path: Path) -> None:
    text = "a|b|c\n1|2|3\n" + "1\t2\t3\n" * 3
    with pytest.raises(DataError, match=r"3 of 4 lines are malformed \(line 3 has 1 fields.*'\|' the separator"):
        clean(write(tmp_path, text), EventColumns(user="a", item="b"), Layout(separator="|"))


def test_a_missing_file_and_a_bad_time_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        read_events(tmp_path / "nowhere.csv", columns=NUMBERED)
    with pytest.raises(DataError, match="strptime"):
        parse_times(pa.array(["1"]), "%Q")
    with pytest.raises(DataError, match="above 0"):
        clean(write(tmp_path, "u,i,e\n"), EventColumns(user=1, item=2, event=3), event_weights={"e": math.nan})


@pytest.mark.parametrize("start", ["", "\n", "\n \n"])
def test_blank_lines_are_no_rows(tmp_path: Path, start: str) -> None:
    events = clean(write(tmp_path, start + "a,x,1\n\n\nb,y,2\n\n"))
    assert rows(events) == [("a", "x"), ("b", "y")]
    assert events.report["rows_read"] == 2


@pytest.mark.parametrize("quote", [b"z", b'"z"'])
def test_undecodable_lines_are_counted_not_fatal(tmp_path: Path, quote: bytes) -> None:
    path = write(tmp_path, b"a,x,1," + quote + b"\nb,x,2,\xff\xfe\nc,y,3,z\n")
    events = clean(path)
    assert rows(events) == [("a", "x"), ("c", "y")]
    assert events.report["malformed_lines"][0]["line"] == 2


def test_json_lines(tmp_path: Path) -> None:
    records = [{"u": 7, "i": "é", "t": 5, "tags": ["a", "b"]}, {"i": "x", "u": 7}, [1], {"u": {}, "i": "y"}]
    text = "\n".join([*map(json.dumps, records), "{broken", "", '{"u": 8, "i": "z", "t": 9.0}', *['{"u":1}'] * 3])
    events = clean(write(tmp_path, text), EventColumns(user="u", item="i", time="t"), Layout())
    assert rows(events) == [("7", "é"), ("8", "z")]
    assert events.report["dropped"]["malformed line"] == 3
    assert events.report["dropped"]["missing field"] == 4
    assert [x["line"] for x in events.report["malformed_lines"]] == [3, 4, 5]
    tags = read_table(tmp_path / "events.txt", {"c": "tags", "i": "i"}, None).columns["c"]
    assert tables.split_categories(tags[0].as_py(), "/") == ("a", "b")
    with pytest.raises(DataError, match="did you mean 'tags'"):
        read_table(tmp_path / "events.txt", {"c": "tag"}, None)


def test_parquet_with_real_times_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "events.bin"
    when = pa.array([1_609_459_200_250, None, 0], pa.timestamp("ms"))
    users = pa.array(["a", "b", "c"]).dictionary_encode()
    pq.write_table(pa.table({"u": users, "i": pa.array([1.0, 2.0, None]), "t": when}), path)
    events = clean(path, EventColumns(user="u", item=2, time="t"), Layout())
    assert rows(events) == [("a", "1")]
    assert events.times is not None
    assert events.times.tolist() == [1_609_459_200_250_000]
    assert events.report["dropped"]["missing field"] == 2
    with pytest.raises(DataError, match="Parquet"):
        clean(write(tmp_path, b"PAR1 but not really"), NUMBERED, Layout())


@pytest.mark.parametrize("line", ["u{}::item {}::{}", "u{},item {},{}", 'u{},"item, {}",{}'])
def test_the_careful_and_the_fast_path_agree_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    lines = [line.format(i % 7, i, i) for i in range(400)]
    path = write(tmp_path, "\n".join(lines))
    wanted: dict[str, tables.Column] = {"user": 1, "item": 2, "time": 3}
    whole = read_table(path, wanted, NO_HEADER)
    monkeypatch.setattr(tables, "BLOCK_CHARACTERS", 97)
    fast = read_table(path, wanted, NO_HEADER)
    monkeypatch.setattr(delimited, "_fast", lambda *_: None)
    careful = read_table(path, wanted, NO_HEADER)
    for other in (fast, careful):
        assert other.lines.tolist() == whole.lines.tolist() == list(range(1, 401))
        assert all(other.columns[r].equals(whole.columns[r]) for r in wanted)


def test_quoted_line_ends_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_CHARACTERS", 13)
    text = "user,item,note\n" + "".join(f'u{i},i{i},"one\ntwo\nthree {i}"\n' for i in range(50))
    events = clean(write(tmp_path, text), EventColumns(user="user", item="item"), Layout(separator=","))
    assert rows(events) == [(f"u{i}", f"i{i}") for i in range(50)]
    assert events.report["dropped"]["malformed line"] == 0


field = st.text(st.sampled_from(string.ascii_letters + "é\u2028 1.-\"'\\"), max_size=5)
line = st.one_of(
    st.lists(field, min_size=3, max_size=3).map(",".join),
    st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(-9, 99)).map(lambda t: f"{t[0]},{t[1]},{t[2]}"),
    st.text(max_size=12),
)


@given(
    lines=st.lists(line, max_size=12),
    header=st.booleans(),
    separator=st.sampled_from([None, ",", "::", ";"]),
    columns=st.sampled_from([NUMBERED, EventColumns(item=1), EventColumns(user=1, item=2, event=3, weight=3)]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(lines=['a,x,"1', "a,x,2"], header=False, separator=None, columns=NUMBERED)
@example(lines=["a,x,1", "\0,\0,1"], header=False, separator=",", columns=NUMBERED)
def test_arbitrary_text_is_counted_or_refused(
    tmp_path: Path, lines: list[str], header: bool, separator: str | None, columns: EventColumns
) -> None:
    path = write(tmp_path, "\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        events = clean(path, columns, Layout(header=header, separator=separator))
    except DataError:
        return
    report = events.report
    assert report["kept"] == len(events.items) > 0
    assert report["kept"] + sum(report["dropped"].values()) == report["rows_read"]
    physical = [x for x in "\n".join(lines).replace("\r\n", "\n").replace("\r", "\n").split("\n") if x]
    assert report["rows_read"] <= len(physical) - header
    assert np.isfinite(events.weights).all()
    assert (events.weights > 0).all()
    assert set(events.users.tolist()) == set(range(len(events.user_ids)))


@given(st.binary(max_size=60), st.sampled_from([None, "delimited", "jsonl", "parquet"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_never_crash(tmp_path: Path, data: bytes, kind: tables.Format | None) -> None:
    try:
        clean(write(tmp_path, data), NUMBERED, Layout(format=kind, header=False))
    except DataError as error:
        assert str(error)
