"""Reading delimited text in blocks: a fast way for regular blocks, a careful way for the others.

A regular block goes through Arrow, or the csv module where it has quotes. A block with blank lines, wrong
field counts, bad quotes or bad bytes goes line by line, which accepts the same lines and names the rest. All
give the same columns for a regular block.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from fedrecall.client.events.tables import Column, Layout, Progress, Rows, file_position, read_block, resolve_columns
from fedrecall.protocol.errors import DataError

MAX_QUOTED_LINES = 100
SEPARATORS = ("::", "\t", "|", ";", ",", " ")
QUOTING_SEPARATORS = (",", ";")
_UNIT = "\x1f"


def sniff_separator(lines: Sequence[str], wanted: Mapping[str, Column]) -> str:
    """Choose the separator that yields the wanted columns and cuts ``lines`` most evenly."""

    def quality(separator: str) -> tuple[bool, float, int]:
        widths = []
        for line in lines:
            try:
                widths.append(len(_split(line, separator)))
            except csv.Error:
                widths.append(0)
        width = max(set(widths), key=widths.count)
        try:
            header = [x.strip() for x in _split(lines[0], separator)]
        except csv.Error:
            header = []
        numbers = {str(c) for c in wanted.values() if str(c).isdecimal() and int(str(c)) <= width}
        fits = all(str(c) in numbers or str(c) in header for c in wanted.values())
        return fits, widths.count(width) / len(widths) if width > 1 else 0.0, width

    return max(SEPARATORS, key=quality)


def read_delimited(
    file: io.TextIOWrapper,
    path: Path,
    wanted: Mapping[str, Column],
    layout: Layout,
    rows: Rows,
    progress: Progress | None,
) -> tuple[tuple[str, ...], Layout]:
    """Read the wanted columns into ``rows``; returns the column names and the layout with its separator."""
    size = os.path.getsize(path)
    text, first = read_block(file), 1
    names: tuple[str, ...] = ()
    lines = [line for line in text.split("\n", 60)[:60] if line.strip()]
    if not lines:
        raise DataError(f"{path.name} begins with 60 blank lines: give a file with rows")
    if layout.separator is None:
        layout = replace(layout, separator=sniff_separator(lines, wanted))
    separator = str(layout.separator)
    if not separator:
        raise DataError(f"the separator of {path.name} is empty: give one character or more")
    widths = [len(_try_split(line, separator)) for line in lines]
    width = widths[0] if layout.header else max(set(widths), key=widths.count)
    if layout.header:
        names = tuple(x.strip() for x in _try_split(lines[0], separator))
        skipped = text.index(lines[0])
        first += text.count("\n", 0, skipped) + 1
        text = text[skipped + len(lines[0]) + 1 :] or read_block(file)
    positions = resolve_columns(names, width, wanted, path.name, layout.header)
    while text:
        more = read_block(file)
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
        if progress is not None:
            progress(f"reading {path.name}", file_position(file, size), size)
    return names, layout


def _split(line: str, separator: str) -> list[str]:
    """Split one line; raises csv.Error on unbalanced quotes."""
    if separator in QUOTING_SEPARATORS and '"' in line:
        return next(csv.reader((line,), delimiter=separator, strict=True))
    return line.split(separator)


def _try_split(line: str, separator: str) -> list[str]:
    try:
        return _split(line, separator)
    except csv.Error:
        return line.split(separator)


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
        return None, 1, "has bytes that the encoding does not allow"
    try:
        fields, spent = _split(line, separator), 1
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
