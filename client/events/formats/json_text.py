"""Reading JSON: one object a line, or an array of objects, or objects written over several lines."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fedrecall.client.events import tables
from fedrecall.client.events.formats.nested import NoRowError, gather, paths, reach, spread
from fedrecall.client.events.tables import BAD_BYTES, WATCHED, Column, Rows, read_block, refuse_shared, resolve_columns
from fedrecall.protocol.errors import DataError

Told = Callable[[], None]
_Found = tuple[int, dict[str, Any] | str]
"""A line, and the object that begins there or why there is none."""

_AS_PYTHON = re.compile(r"""\{\s*u?'""")
_AROUND = " \t\r\n,[]"
PYTHON = "looks like a Python dict, not JSON"


class _TwiceError(ValueError):
    """An object names a field twice."""


def one_object_a_line(text: str) -> bool:
    """Whether text that begins with a brace closes in its first line what that opens."""
    line, _, rest = text.lstrip().partition("\n")
    return line.count("{") == line.count("}") or not rest


def read_json_lines(
    file: io.TextIOWrapper, name: str, wanted: Mapping[str, Column], rows: Rows, told: Told
) -> tuple[str, ...]:
    """Read one JSON object a line into ``rows``; returns the names of the fields. An absent key is an empty field."""

    def blocks() -> Iterator[list[_Found]]:
        line = 0
        while text := read_block(file):
            sources = text.removesuffix("\n").split("\n")
            yield [(line + n, _parsed(source)) for n, source in enumerate(sources, 1) if source.strip()]
            line += len(sources)

    return _read(blocks(), name, wanted, rows, told)


def read_json_objects(
    file: io.TextIOWrapper, name: str, wanted: Mapping[str, Column], rows: Rows, told: Told
) -> tuple[str, ...]:
    """Read the outermost objects of a file into ``rows``, wherever they begin and end; returns the field names.

    The line of a row is that on which its object begins. Behind a broken object reading goes on at the next brace.
    """

    def blocks() -> Iterator[list[_Found]]:
        text, line, more = "", 1, True
        while more:
            block = read_block(file)
            more, text = bool(block), text + block
            found, used = _objects(text, line, last=not more)
            yield found
            text, line = text[used:], line + text.count("\n", 0, used)

    return _read(blocks(), name, wanted, rows, told)


def _objects(text: str, line: int, *, last: bool) -> tuple[list[_Found], int]:
    """Return what begins in ``text``, and how many of its characters are done with: all of them, if it is the last."""
    found: list[_Found] = []
    end = counted = 0

    def line_at(place: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, place)
        counted = place
        return line

    def refuse_between(start: int) -> None:
        between = text[end:start].strip(_AROUND)
        if between:
            found.append((line_at(text.index(between, end)), "is not a JSON object"))

    while (start := text.find("{", end)) >= 0:
        try:
            record, after = _DECODER.raw_decode(text, start)
            text[start:after].encode()
        except (ValueError, RecursionError) as error:
            if not last and len(text) - start < tables.BLOCK_CHARACTERS:
                return found, end  # it may go on in the next block
            record, after = _reason(error, text[start : start + 80]), start + 1
        else:
            refuse_between(start)
        found.append((line_at(start), record))
        end = after
        if isinstance(record, str):  # what is left of a broken object is part of it
            following = text.find("{", end)
            end = following if following >= 0 else len(text)
    if last:
        refuse_between(len(text))
        end = len(text)
    return found, end


def _parsed(source: str) -> dict[str, Any] | str:
    """Return the object of one line, or why it is refused."""
    try:
        source.encode()
    except UnicodeError:
        return BAD_BYTES
    try:
        record = json.loads(source, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return _reason(error, source.lstrip())
    return record if isinstance(record, dict) else "is not a JSON object"


def _reason(error: Exception, source: str) -> str:
    if isinstance(error, _TwiceError):
        return "names a field twice"
    return PYTHON if _AS_PYTHON.match(source) else "is not JSON"


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _TwiceError
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _read(
    blocks: Iterator[list[_Found]], name: str, wanted: Mapping[str, Column], rows: Rows, told: Told
) -> tuple[str, ...]:
    refuse_shared(wanted, [str(column) for column in wanted.values()])
    names: dict[str, None] = {}
    fields = {role: str(column) for role, column in wanted.items()}
    objects, only = 0, dict[str, Any]()
    for block in blocks:
        columns: dict[str, list[str]] = {role: [] for role in rows.roles}
        numbers: list[int] = []
        for line, record in block:
            if isinstance(record, str):
                rows.refuse(line, record)
                continue
            objects, only = objects + 1, record
            if record.keys() - names.keys():
                names.update(dict.fromkeys([*record, *paths(record)]))
                if not rows.lines and not numbers and (seen := tables.watched_column([*record], wanted)):
                    rows.watch(seen)
                    fields[WATCHED], columns[WATCHED] = seen, []
            try:
                found = spread({role: reach(record, field) for role, field in fields.items()})
                for row in found:
                    "".join(row.values()).encode()
            except NoRowError as error:
                rows.refuse(line, str(error))
                continue
            except UnicodeError:
                rows.refuse(line, "has half a character in a wanted field")
                continue
            gather(found, line, rows, columns, numbers)
        if numbers:
            rows.add([pa.array(columns[role], pa.string()) for role in rows.roles], np.array(numbers, dtype=np.int64))
        told()
    if objects == 1:
        _refuse_one_object(only, wanted, name)
    for role, column in wanted.items() if names else ():
        _check_name(names, role, column, name, some=bool(rows.lines))
    return tuple(names)


def _refuse_one_object(record: Mapping[str, Any], wanted: Mapping[str, Column], where: str) -> None:
    """Raise DataError where the only object of a file holds the whole table."""
    fields = [reach(record, str(column)) for column in wanted.values()]
    by_columns = dict | list if "user" in wanted else dict  # of one person, lists that go along are events
    if all(isinstance(value, by_columns) for value in fields):
        raise DataError(
            f"{where} is one object, written by columns: write it by records, as pandas does by"
            " to_json(path, orient='records')"
        )
    around = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in record.values())
    if around and all(value is None for value in fields):
        raise DataError(f"{where} is one object around a list of objects: write the list itself, or an object a line")


def _check_name(names: Mapping[str, None], role: str, column: Column, where: str, *, some: bool) -> None:
    """Raise DataError for a wanted field that no record has, or, unless ``some`` were read, that holds objects."""
    text = str(column)
    inside = [name for name in names if name.startswith(f"{text}.")]
    if inside and not some:
        raise DataError(f"{where}: --{role} {text!r} holds objects: name a field of it, such as {inside[0]!r}")
    if text not in names and not inside:
        resolve_columns(list(names), 0, {role: column}, where, header=True)
