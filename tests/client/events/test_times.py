"""Times in every spelling give the moment that they were written from, or are refused: never another moment."""

import email.utils
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedrecall.client.events.times import check_pattern, parse_times, shown
from fedrecall.protocol.errors import DataError

from .logs import NAMED, clean, delimited, dropped, lines_of, made, rows_of, write

moments = st.datetimes(datetime(1991, 1, 1), datetime(2049, 12, 30), timezones=st.just(UTC))
few = settings(max_examples=25, deadline=None)
several = st.lists(moments, min_size=1, max_size=8)


def parsed(texts: list[str], time_format: str | None = None) -> list[datetime | None]:
    seconds, *_ = parse_times(pa.array(texts, pa.string()), time_format)
    return [None if np.isnan(s) else datetime.fromtimestamp(float(s), UTC) for s in seconds]


def whole(values: list[datetime]) -> list[datetime]:
    return [value.replace(microsecond=0) for value in values]


NUMBERS: dict[str, Callable[[datetime], str]] = {
    "unix": lambda m: str(int(m.timestamp())),
    "unix-ms": lambda m: str(int(m.timestamp()) * 10**3),
    "unix-us": lambda m: str(int(m.timestamp()) * 10**6),
    "unix-ns": lambda m: str(int(m.timestamp()) * 10**9),
    "%Y%m%d": lambda m: m.strftime("%Y%m%d"),
    "%Y%m%d%H%M": lambda m: m.strftime("%Y%m%d%H%M"),
    "%Y%m%d%H%M%S": lambda m: m.strftime("%Y%m%d%H%M%S"),
    "spreadsheet": lambda m: repr((m - datetime(1899, 12, 30, tzinfo=UTC)) / timedelta(days=1)),
}
KEPT = {"%Y%m%d": {"hour": 0, "minute": 0, "second": 0}, "%Y%m%d%H%M": {"second": 0}}


@pytest.mark.parametrize("unit", NUMBERS)
@few
@given(values=several)
def test_numbers_are_the_unit_that_they_were_written_in(unit: str, values: list[datetime]) -> None:
    values = whole(values)
    texts = [NUMBERS[unit](value) for value in values]
    expected = [value.replace(**KEPT.get(unit, {})) for value in values]
    _, strange, name = parse_times(pa.array(texts))
    assert name == f"{unit} (detected)" and not strange.any()
    assert parsed(texts) == parsed(texts, unit) == expected
    assert parsed([text if "." in text else f"{text}.0" for text in texts]) == expected


@pytest.mark.parametrize(("unit", "asked"), list(itertools.permutations([u for u in NUMBERS if u != "spreadsheet"], 2)))
@few
@given(values=several)
def test_a_format_that_puts_everything_elsewhere_is_refused(unit: str, asked: str, values: list[datetime]) -> None:
    texts = [NUMBERS[unit](value) for value in values]
    with pytest.raises(DataError, match=rf"{asked} puts '\d+' \(row 1\) at .*as {unit} it is {values[0].year}-"):
        parsed(texts, asked)


@pytest.mark.parametrize(("unit", "other"), list(itertools.permutations([u for u in NUMBERS if u != "spreadsheet"], 2)))
def test_rows_a_thousandfold_off_are_refused_by_line(
    tmp_path: Path, rng: np.random.Generator, unit: str, other: str
) -> None:
    rows = made(rng)
    wrong = set(rng.choice(len(rows), 7, replace=False).tolist())
    units = [other if n in wrong else unit for n in range(len(rows))]
    written = [(u, i, NUMBERS[k](datetime.fromtimestamp(t, UTC))) for k, (u, i, t) in zip(units, rows, strict=True)]
    path = write(tmp_path / "log.csv", delimited(written))
    for asked in (None, unit) if not unit.startswith("%") else (None,):
        events = clean(path, time_format=asked)
        assert dropped(events) == {"time of another unit": 7}
        assert lines_of(events, "time of another unit") == [n + 2 for n in sorted(wrong)]
        assert {(u, i) for u, i, _ in rows_of(events)} <= {(u, i) for u, i, _ in rows}
        first = min(wrong)
        assert any(
            f"7 times are of another unit than its file's, a thousandfold off, such as '{written[first][2]}' (log.csv"
            f" line {first + 2})" in warning
            for warning in events.report["warnings"]
        )


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(NUMBERS, 2))[::3])
def test_each_file_has_its_own_unit(tmp_path: Path, rng: np.random.Generator, one: str, two: str) -> None:
    rows = [(u, i, t - t % 86_400 + n) for n, (u, i, t) in enumerate(made(rng, 30))]
    if "%Y%m%d" in (one, two):
        rows = [(u, i, t - t % 86_400) for u, i, t in rows]
    if "%Y%m%d%H%M" in (one, two):
        rows = [(u, i, t - t % 60) for u, i, t in rows]
    rows = list(dict.fromkeys(rows))
    paths = [
        write(
            tmp_path / f"{n}.csv",
            delimited([(u, i, NUMBERS[unit](datetime.fromtimestamp(t, UTC))) for u, i, t in part]),
        )
        for n, (unit, part) in enumerate(((one, rows[:15]), (two, rows[15:])))
    ]
    assert rows_of(clean(*paths)) == rows
    assert [about["time_format"] for about in clean(*paths).report["files"]] == [f"{u} (detected)" for u in (one, two)]


DATES: dict[str, Callable[[datetime], str]] = {
    "ISO": lambda m: m.isoformat(),
    "ISO in UTC": lambda m: m.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "Z": lambda m: m.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "Java": lambda m: m.isoformat() + "[Europe/London]",
    "Go": lambda m: m.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
    "JavaScript": lambda m: m.strftime("%a %b %d %Y %H:%M:%S GMT+0000 (Coordinated Universal Time)"),
    "RFC 2822": email.utils.format_datetime,
    "RFC 2822 in GMT": lambda m: email.utils.format_datetime(m, usegmt=True),
    "with its comment": lambda m: email.utils.format_datetime(m) + " (UTC)",
    "asctime": lambda m: m.strftime("%a %b %d %H:%M:%S %Y"),
    "with a zone before the year": lambda m: m.strftime("%a %b %d %H:%M:%S +0000 %Y"),
    "a server's log": lambda m: m.strftime("%d/%b/%Y:%H:%M:%S +0000"),
    "words": lambda m: m.strftime("%B %d, %Y %I:%M:%S %p"),
    "British": lambda m: m.strftime("%d %B %Y, %H:%M:%S"),
    "short": lambda m: m.strftime("%d-%b-%Y %H:%M:%S"),
    "slashes, year first": lambda m: m.strftime("%Y/%m/%d %H:%M:%S"),
    "ISO without zeros": lambda m: f"{m.year}-{m.month}-{m.day} {m.hour}:{m.minute:02}:{m.second:02}",
    "fractions by a comma": lambda m: m.strftime("%Y-%m-%d %H:%M:%S,000"),
}


@pytest.mark.parametrize("spelling", DATES)
@few
@given(values=several)
def test_dates_are_the_moment_that_they_were_written_from(spelling: str, values: list[datetime]) -> None:
    values = whole(values)
    assert parsed([DATES[spelling](value) for value in values]) == values


@pytest.mark.parametrize("spelling", ["ISO", "RFC 2822", "offset"])
@few
@given(values=several, minutes=st.integers(-14 * 60, 14 * 60))
def test_a_zone_is_taken_off(spelling: str, values: list[datetime], minutes: int) -> None:
    zone = timezone(timedelta(minutes=minutes))
    local = [value.astimezone(zone) for value in whole(values)]
    spell = DATES.get(spelling, lambda m: m.strftime("%Y-%m-%d %H:%M:%S UTC%z"))
    assert parsed([spell(value) for value in local]) == whole(values)


@pytest.mark.parametrize("zone", ["IST", "BST", "Europe/Berlin", "XYZ"])
def test_a_zone_that_means_several_is_no_time(zone: str) -> None:
    with pytest.raises(DataError, match=r"no time can be read: .*\(row 1\).*--time-format"):
        parsed([f"2023-01-01 10:00:00 {zone}"])


ORDERED = ["%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%d{0}%m{0}%y", "%m{0}%d{0}%y", "%y{0}%m{0}%d"]
CLOCKS = ["", " %H:%M", " %H:%M:%S", " %I:%M %p"]


@pytest.mark.parametrize("pattern", ORDERED)
@pytest.mark.parametrize("clock", CLOCKS)
@few
@given(values=st.lists(moments, min_size=1, max_size=12), by=st.sampled_from("/-."))
def test_the_order_of_day_and_month_is_shown_by_the_file_or_asked_for(
    pattern: str, clock: str, values: list[datetime], by: str
) -> None:
    """Either the moments are right, or somebody has to say the order: never two readings without a word."""
    pattern = pattern.format(by) + clock
    texts = [value.strftime(pattern) for value in values]
    expected = [datetime.strptime(text, pattern).replace(tzinfo=UTC) for text in texts]
    dotted = by == "." and pattern.startswith("%m")
    try:
        found = parsed(texts)
    except DataError as error:
        assert "--time-format" in str(error) and repr(texts[0])[:-1] in str(error) + repr(texts[0])
        assert len(readings(texts, by, clock)) > 1
    else:
        assert found == expected or (dotted and len(readings(texts, by, clock)) > 1)
    assert parsed(texts, pattern) == expected


def readings(texts: list[str], by: str, clock: str) -> list[str]:
    """Return the patterns that read all of ``texts``."""

    def reads(pattern: str) -> bool:
        try:
            return all(datetime.strptime(text, pattern) for text in texts)
        except ValueError:
            return False

    return [pattern for pattern in (p.format(by) + clock for p in ORDERED) if reads(pattern)]


@few
@given(values=several, by=st.sampled_from("/-"))
def test_one_day_above_twelve_is_enough(values: list[datetime], by: str) -> None:
    telling = [value.replace(day=13) for value in values[:1]]
    for pattern in (f"%d{by}%m{by}%Y", f"%m{by}%d{by}%Y"):
        texts = [value.strftime(pattern) for value in [*values, *telling]]
        days = [value.replace(hour=0, minute=0, second=0, microsecond=0) for value in [*values, *telling]]
        assert parsed(texts) == days


@few
@given(values=st.lists(moments, min_size=1, max_size=8))
def test_days_that_say_nothing_are_refused_with_both_formats(values: list[datetime]) -> None:
    texts = [value.replace(day=1 + value.day % 12).strftime("%d/%m/%Y %H:%M") for value in values]
    with pytest.raises(DataError, match=r"\(row 1\).*'%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M'"):
        parsed(texts)


def test_a_file_that_shows_both_orders_is_refused_with_a_line_of_each() -> None:
    with pytest.raises(DataError, match=r"day first in '13/05/2023' \(row 2\) and the month first in '05/14/2023'"):
        parsed(["01/02/2023", "13/05/2023", "05/14/2023"])
    many = [f"{day}/{month:02}/2023" for month in range(1, 3) for day in range(13, 29)]
    assert parsed([*many, "05/14/2023"])[-2:] == [datetime(2023, 2, 28, tzinfo=UTC), None], "one typing error"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("dd/mm/yyyy", "give '%d/%m/%Y'"),
        ("yyyy-MM-dd HH:mm:ss", "give '%Y-%m-%d %H:%M:%S'"),
        ("YYYYMMDD", "give '%Y%m%d'|no %"),
        ("ms", "no %: give unix"),
        ("%H:%M", "no year"),
        ("%d.%m.", "no year"),
        ("%Q", "strptime"),
        ("", "no %"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_before_anything_is_read(wrong: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_pattern(wrong)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([4_700_000_000, 4_700_000_100], "2 times lie in the future, up to 2118-12-09 03:35:00 (log.csv line 3)"),
        ([0, 1], "all times lie before 1990, such as 1970-01-01 00:00:00 (log.csv line 2)"),
        ([1_600_000_000, 3], "1 time lies before 1990, such as 1970-01-01 00:00:03 (log.csv line 3)"),
        ([1_600_000_000, 1_600_000_001], None),
    ],
)
def test_years_that_no_log_is_of_are_said(tmp_path: Path, seconds: list[int], said: str | None) -> None:
    events = clean(write(tmp_path / "log.csv", delimited([("u", f"i{t}", t) for t in seconds])))
    assert [said in warning for warning in events.report["warnings"]] == ([True] if said else [])
    assert events.report["times"]["first"] == min(parsed([str(s) for s in seconds])).strftime("%Y-%m-%d %H:%M:%S")


def test_what_cannot_be_read_among_what_can_is_counted_and_one_is_shown(tmp_path: Path) -> None:
    rows = [("u", "a", "2023-02-27"), ("u", "b", "2023-02-30"), ("u", "c", "soon"), ("u", "d", "2023-02-28")]
    events = clean(write(tmp_path / "log.csv", delimited(rows)))
    assert lines_of(events, "impossible time") == [3, 4]
    assert events.report["warnings"] == ["2 times cannot be read, such as '2023-02-30' (log.csv line 3)"]


@given(st.from_regex(r"[a-z]{5,9}[0-9]{0,4}", fullmatch=True))
def test_a_name_is_never_shown_as_a_time(person: str) -> None:
    days = [datetime(2024, month, month).strftime("%A %B").lower().split() for month in range(1, 13)]
    assume(not any(person.rstrip("0123456789") in words for words in days))
    for text in (person, person.upper(), f"2023-01-01 {person}", f"{person}@x.org", f"7{person}"):
        assert person not in shown(text).lower()


def test_events_within_a_second_keep_their_order_and_their_moment(tmp_path: Path, rng: np.random.Generator) -> None:
    micros = 1_600_000_000_000_000 + rng.permutation(10**6)[:50]
    texts = {
        "unix": [f"{m // 10**6}.{m % 10**6:06}" for m in micros],
        "unix-us": [str(m) for m in micros],
        "iso": [f"{datetime.fromtimestamp(m // 10**6, UTC):%Y-%m-%d %H:%M:%S}.{m % 10**6:06}" for m in micros],
    }
    for form, written in texts.items():
        path = write(tmp_path / f"{form}.csv", delimited([("u", f"i{n}", t) for n, t in enumerate(written)]))
        events = clean(path, columns=NAMED, time_format=form)
        assert events.times is not None and events.times.tolist() == sorted(micros.tolist())
        assert [events.item_ids[i] for i in events.items] == [f"i{n}" for n in np.argsort(micros)]
