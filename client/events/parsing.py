"""Reading an event or item file of any layout into columns of text, with line numbers."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedrecall.client.events.delimited import read_delimited
from fedrecall.client.events.tables import (
    Column,
    Format,
    Layout,
    Progress,
    Rows,
    Table,
    file_position,
    open_text,
    read_block,
    resolve_columns,
)
from fedrecall.protocol.errors import DataError

LIST_SEPARATOR = "|"


def read_table(
    path: Path, wanted: Mapping[str, Column], layout: Layout | None = None, progress: Progress | None = None
) -> Table:
    """Read the ``wanted`` columns (role to name or 1-based number) of one file.

    Raises DataError when the file is missing, empty or undecodable, lacks a wanted column (the message lists
    what was found and the nearest name), or when more than half of its lines are malformed (usually a wrong
    separator).
    """
    layout = layout or Layout()
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not head.strip():
        raise DataError(f"{path.name} is empty: give a file with at least one event")
    try:
        kind = layout.format or _guess_format(head, layout.encoding)
        layout = replace(layout, format=kind)
        if kind == "parquet":
            return _read_parquet(path, wanted, layout, progress)
        with open_text(path, layout) as file:
            rows = Rows(chunks=[], lines=[], malformed=0, examples=[])
            if kind == "jsonl":
                names = _read_json_lines(file, path, wanted, rows, progress)
            else:
                names, layout = read_delimited(file, path, wanted, layout, rows, progress)
    except (UnicodeError, LookupError) as error:
        raise DataError(
            f"{path.name} cannot be read as {layout.encoding}: {error}; choose another --encoding"
        ) from error
    read = rows.malformed + sum(len(x) for x in rows.lines)
    if read == 0:
        raise DataError(f"{path.name} has a header and no rows: give a file with at least one row")
    if rows.malformed > read / 2:
        line, reason = rows.examples[0]
        raise DataError(
            f"{path.name}: {rows.malformed} of {read} lines are malformed (line {line} {reason}): is"
            f" {layout.separator!r} the separator and {layout.encoding} the encoding?"
            " Choose --sep and --encoding"
        )
    return rows.table(list(wanted), names, layout)


def arrow_table(frame: pa.Table, wanted: Mapping[str, str]) -> Table:
    """Return the ``wanted`` columns (role to name) of a frame in memory as text, as a Parquet file's are read."""
    rows, done = Rows(chunks=[], lines=[], malformed=0, examples=[]), 0
    for batch in frame.select(list(wanted.values())).to_batches():
        columns = [_text(batch.column(place)) for place in range(len(wanted))]
        rows.add(columns, np.arange(done + 1, done + len(batch) + 1, dtype=np.int64))
        done += len(batch)
    return rows.table(list(wanted), tuple(frame.column_names), Layout())


def _guess_format(head: bytes, encoding: str) -> Format:
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    return "jsonl" if start.startswith("{") else "delimited"


def _read_json_lines(
    file: io.TextIOWrapper, path: Path, wanted: Mapping[str, Column], rows: Rows, progress: Progress | None
) -> tuple[str, ...]:
    """Read one JSON object a line; lists are joined with ``|``, an absent key is an empty field."""
    size, line = os.path.getsize(path), 0
    names: dict[str, None] = {}
    while text := read_block(file):
        kept: list[list[str]] = []
        numbers: list[int] = []
        for source in text.removesuffix("\n").split("\n"):
            line += 1
            if not source.strip():
                continue
            try:
                record = json.loads(source)
                source.encode()
            except (ValueError, RecursionError):
                rows.refuse(line, "is not JSON")
                continue
            if not isinstance(record, dict):
                rows.refuse(line, "is not a JSON object")
                continue
            names.update(dict.fromkeys(record))
            try:
                kept.append([_plain(record.get(str(column))) for column in wanted.values()])
            except TypeError:
                rows.refuse(line, "has a nested value in a wanted field")
                continue
            numbers.append(line)
        if kept:
            rows.add([pa.array(c, pa.string()) for c in zip(*kept, strict=True)], np.array(numbers, dtype=np.int64))
        if progress is not None:
            progress(f"reading {path.name}", file_position(file, size), size)
    if names:
        resolve_columns(list(names), 0, wanted, path.name, header=True)
    return tuple(names)


def _plain(value: object) -> str:
    """Return a JSON value as the text of one field."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(x, str | int | float) for x in value):
        return LIST_SEPARATOR.join(str(x) for x in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError(type(value).__name__)


def _read_parquet(path: Path, wanted: Mapping[str, Column], layout: Layout, progress: Progress | None) -> Table:
    """Read the wanted columns of a Parquet file; time columns become seconds since 1970."""
    try:
        file = pq.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
        positions = resolve_columns(names, len(names), wanted, path.name, header=False)
        rows = Rows(chunks=[], lines=[], malformed=0, examples=[])
        total, done = file.metadata.num_rows, 0
        for batch in file.iter_batches(columns=[names[p] for p in positions]):
            columns = [_text(batch.column(names[p])) for p in positions]
            rows.add(columns, np.arange(done + 1, done + len(batch) + 1, dtype=np.int64))
            done += len(batch)
            if progress is not None:
                progress(f"reading {path.name}", done, total)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {error}; write it again") from error
    if done == 0:
        raise DataError(f"{path.name} has no rows: give a file with at least one")
    return rows.table(list(wanted), names, layout)


def _text(column: pa.Array) -> pa.Array:
    """Return a Parquet column as text, null where it is null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        # Its values first: Arrow decodes no dictionary of the kind that polars hands over.
        return _text(column.dictionary).take(column.indices)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        return pc.cast(pc.divide(pc.cast(micros, pa.float64()), 1e6), pa.string())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pc.binary_join(pc.cast(column, pa.list_(pa.string())), LIST_SEPARATOR)
    return pc.cast(column, pa.string())
