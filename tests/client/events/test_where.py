"""Row filters keep what a plain comparison keeps, and count the rest; quantities below 0 are named."""

import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.where import Condition, parse_condition
from fedrecall.protocol.errors import DataError, UsageError

from .logs import clean, delimited, dropped, json_lines, lines_of, made, rows_of, write

MEANINGS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def columns(*where: str) -> EventColumns:
    return EventColumns(user="user", item="item", time="time", where=tuple(map(parse_condition, where)))


@pytest.mark.parametrize("sign", MEANINGS)
def test_numbers_and_texts_compare_as_such(tmp_path: Path, rng: np.random.Generator, sign: str) -> None:
    rows = made(rng, 60)
    amounts, kinds = rng.integers(-3, 12, 60).tolist(), [f"k{n}" for n in rng.integers(0, 4, 60)]
    text = delimited(
        [(*row, f"{a}.0" if a % 2 else a, k) for row, a, k in zip(rows, amounts, kinds, strict=True)],
        header="user,item,time,Unit Count,kind",
    )
    path = write(tmp_path / "log.csv", text)
    means = MEANINGS[sign]
    for condition, kept in (
        (f'"Unit Count" {sign} 5', [means(a, 5) for a in amounts]),
        (f"4{sign}5", [means(a, 5) for a in amounts]),
        (f"kind {sign} k2", [means(k, "k2") for k in kinds]),
    ):
        events = clean(path, columns=columns(condition))
        assert rows_of(events) == [row for row, keep in zip(rows, kept, strict=True) if keep]
        assert lines_of(events, "filtered out") == [n + 2 for n, keep in enumerate(kept) if not keep][:20]
        assert list(events.report["filters"].values()) == [kept.count(False)]


def test_all_conditions_must_hold_and_a_field_without_value_fulfils_only_unlike(tmp_path: Path) -> None:
    text = "user,item,time,n,s\nu,a,1,5,open\nu,b,2,,open\nu,c,3,x,closed\nu,d,4,7,\n"
    path = write(tmp_path / "log.csv", text)
    for where, kept in (
        (("n > 4",), "ad"),
        (("n != 5",), "bcd"),
        (("n > 4", "s != open"), "d"),
        (("s = ''",), ""),
        (("s != open",), "cd"),
    ):
        if kept:
            assert [i for _, i, _ in rows_of(clean(path, columns=columns(*where)))] == list(kept)
        else:
            with pytest.raises(DataError, match=r"no event is left .*4 filtered out"):
                clean(path, columns=columns(*where))


@given(st.sampled_from(list(MEANINGS)), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), st.integers())
def test_conditions_are_read_with_or_without_blanks_and_quotes(sign: str, column: str, value: int) -> None:
    expected = Condition(column=column, operator={"==": "=", "<>": "!="}.get(sign, sign), value=str(value))
    for text in (f"{column} {sign} {value}", f"{column}{sign}{value}", f" '{column}' {sign} \"{value}\" "):
        assert parse_condition(text) == expected


@pytest.mark.parametrize("text", ["", "Quantity", "> 5", "Quantity ~ 5", "Quantity 5"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 'Quantity > 0'"):
        parse_condition(text)


def test_a_condition_on_no_column_names_near_ones(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "log.csv", delimited([(*row, 1) for row in made(rng)], header="user,item,time,quantity"))
    with pytest.raises(DataError, match=r"no column 'quantiti' for --where; .*did you mean 'quantity'"):
        clean(path, columns=columns("quantiti > 0"))


@pytest.mark.parametrize("name", ["Quantity", "qty", "order_qty", "quantityOrdered", "menge"])
def test_quantities_below_0_are_named_unless_somebody_handles_them(
    tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    rows = made(rng)
    amounts = rng.integers(-2, 5, len(rows))
    path = write(
        tmp_path / "log.csv",
        delimited([(*r, a) for r, a in zip(rows, amounts, strict=True)], header=f"user,item,time,{name}"),
    )
    negative = np.flatnonzero(amounts < 0)
    (warning,) = clean(path, columns=columns()).report["warnings"]
    assert f"{name} is below 0 in {len(negative)} of the kept rows (first: log.csv line {negative[0] + 2})" in warning
    assert f"--where '{name} > 0'" in warning
    handled = clean(path, columns=columns(f"{name} > 0"))
    assert not handled.report["warnings"] and dropped(handled) == {"filtered out": int(np.sum(amounts <= 0))}
    assert rows_of(handled) == [row for row, a in zip(rows, amounts, strict=True) if a > 0]
    weighed = clean(path, columns=EventColumns(user="user", item="item", time="time", weight=name))
    (warning,) = weighed.report["warnings"]
    assert f"{len(negative)} event" in warning and "weight below 0" in warning and "cancellations" in warning


def test_json_quantities_are_named_too(tmp_path: Path, rng: np.random.Generator) -> None:
    lines = json_lines(made(rng)).splitlines()
    text = "\n".join(line[:-1] + f', "Quantity": {n - 3}}}' for n, line in enumerate(lines))
    assert "Quantity is below 0 in 3 of" in clean(write(tmp_path / "log.jsonl", text)).report["warnings"][0]
