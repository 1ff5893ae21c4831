"""Reading delimited text in blocks: a fast way for regular blocks, a careful way for the others.

A regular block goes through Arrow, or the csv module where it has quotes. A block with blank lines, wrong
field counts, bad quotes or bad bytes goes line by line, which accepts the same lines and names the rest. All
give the same columns for a regular block.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv

from fedrecall.client.events.formats.separators import (
    QUOTING_SEPARATORS,
    one_blank,
    sniff_separator,
    split,
    try_split,
)
from fedrecall.client.events.tables import (
    BAD_BYTES,
    Column,
    Layout,
    Rows,
    read_block,
    refuse_shared,
    resolve_columns,
    watched_column,
)
from fedrecall.protocol.errors import DataError

MAX_QUOTED_LINES = 100
_HEAD_LINES = 60
_USUAL = 0.6
_UNIT = "\x1f"
_TOLD = re.compile(r"^sep=(.{1,3})$", re.IGNORECASE)


def read_delimited(
    file: io.TextIOWrapper,
    name: str,
    wanted: Mapping[str, Column],
    layout: Layout,
    rows: Rows,
    told: Callable[[], None],
) -> tuple[tuple[str, ...], Layout]:
    """Read the wanted columns of the file called ``name`` into ``rows``; ``told`` is called after each block.

    Returns the column names and the layout with its separator.
    """
    text, first = read_block(file), 1
    names: tuple[str, ...] = ()
    lines = [line for line in text.split("\n", _HEAD_LINES)[:_HEAD_LINES] if line.strip()]
    if not lines:
        raise DataError(f"{name} begins with {_HEAD_LINES} blank lines: give a file with rows")
    if layout.separator is None and (said := _TOLD.match(lines[0].strip())):
        layout = replace(layout, separator=said[1])
        text, first, lines = text[text.index(lines[0]) + len(lines[0]) + 1 :], 1 + first, lines[1:]
    if layout.separator is None:
        layout = replace(layout, separator=sniff_separator(lines, wanted))
    separator = str(layout.separator)
    if not separator:
        raise DataError(f"the separator of {name} is empty: give one character or more")
    fields = [try_split(line, separator) for line in lines]
    widths = [len(row) for row in fields]
    width = widths[0] if layout.header else max(set(widths), key=widths.count)
    if layout.header:
        names = unquoted([x.strip() for x in fields[0]])
        skipped = text.index(lines[0])
        first += text.count("\n", 0, skipped) + 1
        text = text[skipped + len(lines[0]) + 1 :] or read_block(file)
    positions = resolve_columns(names, width, wanted, name, layout.header)
    refuse_shared(wanted, positions)
    if layout.format == "lists":
        _read_lists(file, text, first, separator, positions, rows, told)
        return names, layout
    if not (layout.header or layout.rows):
        _refuse_lists(name, fields, positions, set(wanted))
    if watched := watched_column(names, wanted):
        rows.watch(watched)
        positions.append(names.index(watched))
    if separator == " ":
        text = one_blank(text)
    while text:
        more = read_block(file)
        more = one_blank(more) if separator == " " else more
        columns = _fast(text, separator, width, positions)
        if columns is None:
            used = _careful(text, first, separator, width, positions, rows, last=not more)
            first += text.count("\n", 0, used)
            text = text[used:] + more
        else:
            count = len(columns[0]) if columns else 0
            rows.add(columns, np.arange(first, first + count, dtype=np.int64))
            first += count
            text = more
        told()
    return names, layout


def unquoted(values: Sequence[str]) -> tuple[str, ...]:
    """Return fields without the quotes around them, where all have some."""
    quoted = all(len(value) > 1 and value[0] == value[-1] == '"' for value in values)
    return tuple(value[1:-1].replace('""', '"') if quoted else value for value in values)


def _read_lists(
    file: io.TextIOWrapper,
    text: str,
    first: int,
    separator: str,
    positions: list[int],
    rows: Rows,
    told: Callable[[], None],
) -> None:
    """Read a user and its items a line, oldest first: the item column and all behind it hold items."""
    roles = dict(zip(rows.roles, positions, strict=True))
    start, user = roles["item"], roles.get("user")
    if user is not None and user > start:
        raise DataError("--layout lists has the user before the items: name the columns in that order")
    while text:
        users: list[str] = []
        items: list[str] = []
        numbers: list[int] = []
        lines = text.removesuffix("\n").split("\n")
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            fields = [x.strip() for x in try_split(line, separator)]
            found = [x for x in fields[start:] if x]
            try:
                line.encode()
            except UnicodeError:
                rows.refuse(number, BAD_BYTES)
                continue
            if not found or (user is not None and not fields[user]):
                rows.refuse(number, "has no items behind its user" if user is not None else "has no items")
                continue
            rows.exploded(1, len(found))
            items += found
            users += [fields[user] if user is not None else ""] * len(found)
            numbers += [number] * len(found)
        columns = {"user": users, "item": items}
        if items:
            rows.add([pa.array(columns[role], pa.string()) for role in rows.roles], np.array(numbers, dtype=np.int64))
        first += len(lines)
        text = read_block(file)
        told()


def _refuse_lists(name: str, fields: Sequence[Sequence[str]], positions: Sequence[int], roles: set[str]) -> None:
    """Refuse lines that look like a user and a list of items, of which only the first item would be read."""
    if roles - {"user", "item"} or "item" not in roles:
        return
    item = positions[-1] if len(positions) == 1 else max(positions)
    counts = Counter(len(row) for row in fields)
    widths, least = set(counts), min(counts)
    ragged = len(widths) > 2 and max(counts.values()) < _USUAL * len(fields)
    behind = [column for column in range(item + 1, least) if column not in positions]
    if len(fields) < 3 or not (ragged or len(behind) >= 2):
        return
    own = [row[item] for row in fields if len(row) > item]
    if not ragged and not all(_alike(own, [row[column] for row in fields]) for column in behind):
        return
    count = f"{least}" if len(widths) == 1 else f"{least} to {max(widths)}"
    raise DataError(
        f"{name} has {count} fields a line, and what stands behind column {item + 1} looks like more items: if a line"
        " is one user's list, give --layout lists; if it is one event, --layout rows"
    )


def _alike(items: Sequence[str], others: Sequence[str]) -> bool:
    """Whether a column looks as the items do: spelled alike, and about as many different ones."""
    shapes, theirs = (
        {re.sub(r"[A-Za-z]+", "a", re.sub(r"\d+", "9", value.strip())) for value in values}
        for values in (items, others)
    )
    return bool(theirs & shapes) and 2 * len(set(others)) >= len(set(items)) and 2 * len(set(items)) >= len(set(others))


def _fast(text: str, separator: str, width: int, positions: list[int]) -> list[pa.Array] | None:
    """Parse a regular block at once; None when it needs the careful path."""
    if width < 2 or text.startswith("\n") or "\n\n" in text:
        return None
    if separator in QUOTING_SEPARATORS and '"' in text:
        return _quoted(text, separator, width, positions)
    if len(separator.encode(errors="replace")) > 1:
        if _UNIT in text:
            return None
        text, separator = text.replace(separator, _UNIT), _UNIT
    names = [str(i) for i in range(width)]
    try:
        data = text.encode()
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=names, block_size=len(data) + 1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
                include_columns=[str(i) for i in sorted(set(positions))],
            ),
        )
    except (UnicodeError, pa.ArrowInvalid):
        return None
    return [table[str(i)].combine_chunks() for i in positions]


def _quoted(text: str, separator: str, width: int, positions: list[int]) -> list[pa.Array] | None:
    """Parse a block with quotes whose every line is one record; None when it needs the careful path."""
    lines = text.removesuffix("\n").split("\n")
    try:
        text.encode()
        records = list(csv.reader(lines, delimiter=separator, strict=True))
        if len(records) != len(lines) or any(len(record) != width for record in records):
            return None
        return [pa.array([record[p] for record in records], pa.string()) for p in positions]
    except (csv.Error, UnicodeError):
        return None


def _careful(text: str, first: int, separator: str, width: int, positions: list[int], rows: Rows, *, last: bool) -> int:
    """Parse a block line by line.

    Returns the characters used, fewer than all when a quoted field runs past the block.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    kept: list[list[str]] = []
    numbers: list[int] = []
    i = used = 0
    while i < len(lines):
        record, spent, reason = _record(lines, i, separator, width)
        if record is None and spent == 0 and not last:
            break
        if record is not None and any("\n" in record[p] for p in positions):
            record, spent, reason = None, 1, "has a line break inside a quoted field"
        if record is not None:
            kept.append([record[p] for p in positions])
            numbers.append(first + i)
        elif reason:
            rows.refuse(first + i, reason)
        step = max(spent, 1)
        used += sum(len(line) + 1 for line in lines[i : i + step])
        i += step
    if kept:
        rows.add([pa.array(c, pa.string()) for c in zip(*kept, strict=True)], np.array(numbers, dtype=np.int64))
    return used


def _record(lines: list[str], i: int, separator: str, width: int) -> tuple[list[str] | None, int, str]:
    """Read the record that starts at line ``i``: its fields, the lines it spans, or why it is refused.

    A span of 0 means that the answer may lie beyond ``lines``.
    """
    line = lines[i]
    if not line.strip() and separator not in line:
        return None, 1, ""
    try:
        line.encode()
    except UnicodeError:
        return None, 1, BAD_BYTES
    try:
        fields, spent = split(line, separator), 1
    except csv.Error:
        following = lines[i : i + MAX_QUOTED_LINES]
        reader = csv.reader((x + "\n" for x in following), delimiter=separator, strict=True)
        try:
            fields = next(reader)
            spent = reader.line_num
            "\n".join(following[:spent]).encode()
        except (csv.Error, UnicodeError):
            return None, 0 if len(following) < MAX_QUOTED_LINES else 1, "has an unbalanced quote"
    if len(fields) != width:
        return None, 1, f"has {len(fields)} fields, expected {width}"
    return fields, spent, ""
