"""Reading an event or item file of any layout into columns of text, with line numbers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedrecall.client.events.formats.columnar import (
    ARROW_FILE,
    ARROW_STREAM,
    PARQUET,
    read_arrow,
    read_frame,
    read_parquet,
)
from fedrecall.client.events.formats.containers import Opened, check_text, encoding_of, opened, text_of
from fedrecall.client.events.formats.delimited import read_delimited
from fedrecall.client.events.formats.json_text import PYTHON, one_object_a_line, read_json_lines, read_json_objects
from fedrecall.client.events.formats.nested import refuse_written_lists, split_items
from fedrecall.client.events.spelling import one_spelling, without_missing
from fedrecall.client.events.tables import BAD_BYTES, Column, Format, Layout, Progress, Rows, Table
from fedrecall.protocol.errors import DataError


def read_table(
    path: Path, wanted: Mapping[str, Column], layout: Layout | None = None, progress: Progress | None = None
) -> Table:
    """Read the ``wanted`` columns (role to name or 1-based number) of one file, packed or not.

    Raises DataError when the file is missing, empty, no text or undecodable, lacks a wanted column (the message says
    what was found, where that is certainly no record), has one twice, gives one column two roles, or when more than
    half of its lines are malformed (usually a wrong separator).
    """
    layout = layout or Layout()
    path = Path(path)
    rows = Rows(roles=list(wanted))
    with opened(path) as file:
        if not file.head.strip():
            raise DataError(f"{path.name} is empty: give a file with at least one event")
        about: dict[str, Any] = {"file": path.name}
        about |= {"packed": list(file.packed)} if file.packed else {}
        binary = _binary_format(file.head, layout)
        if binary is None:
            names, layout, read = _read_text(file, path, wanted, layout, rows, progress)
            about |= read
        elif file.packed:
            raise DataError(f"{path.name} is {binary.title()} inside {file.packed[-1]}: unpack it first")
        else:
            names, layout = _read_binary(binary, path, wanted, layout, rows, progress)
            about |= {"format": binary}
    return _tidied(path.name, rows, names, layout, about)


def arrow_table(frame: pa.Table, wanted: Mapping[str, Column], name: str, layout: Layout | None = None) -> Table:
    """Return the ``wanted`` columns of a frame in memory, as those of a Parquet file are read.

    ``name`` is for messages. Of ``layout`` what separates items and what is missing counts. Raises DataError as
    ``read_table`` does.
    """
    rows = Rows(roles=list(wanted))
    names = read_frame(frame, wanted, name, rows)
    layout = replace(layout or Layout(), format="arrow")
    return _tidied(name, rows, names, layout, {"file": name, "format": "frame"})


def _tidied(name: str, rows: Rows, names: tuple[str, ...], layout: Layout, about: dict[str, Any]) -> Table:
    """Return everything read, lists of items as a row an item; raises DataError where most of it is malformed."""
    _check_amount(name, rows, layout)
    table = rows.table(names, layout, about)
    if "item" not in table.columns:
        return table
    if layout.item_separator is None:
        if not (layout.rows or "lists" in table.about):
            refuse_written_lists(table.columns["item"], table.columns.get("user"), name)
        return table
    columns, lines, (several, events) = split_items(table.columns, table.lines, layout.item_separator)
    items, missing = without_missing(columns["item"], layout.missing)
    columns["item"], respelled, rounded = one_spelling(items)
    said: dict[str, Any] = {"lists": {"lines": several, "events": events}} if several else {}
    said |= {"missing_texts": table.about.get("missing_texts", 0) + missing} if missing else {}
    for key, count in (("respelled_ids", respelled), ("rounded_ids", rounded)):
        before = table.about.get(key, {})
        said |= {key: before | {"item": before.get("item", 0) + count}} if count else {}
    return replace(table, columns=columns, lines=lines, about=table.about | said)


def _binary_format(head: bytes, layout: Layout) -> Format | None:
    if layout.format in ("parquet", "arrow"):
        return layout.format
    if layout.format is not None:
        return None
    if head.startswith(PARQUET):
        return "parquet"
    return "arrow" if head.startswith((ARROW_FILE, ARROW_STREAM)) else None


def _read_binary(
    kind: Format, path: Path, wanted: Mapping[str, Column], layout: Layout, rows: Rows, progress: Progress | None
) -> tuple[tuple[str, ...], Layout]:
    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(f"reading {path.name}", done, total)

    if kind == "parquet":
        names = read_parquet(path, wanted, rows, told)
    else:
        with path.open("rb") as file:
            stream = file.read(len(ARROW_STREAM)) == ARROW_STREAM
        names = read_arrow(path, wanted, rows, told, stream=stream)
    return names, replace(layout, format=kind)


def _read_text(
    file: Opened, path: Path, wanted: Mapping[str, Column], layout: Layout, rows: Rows, progress: Progress | None
) -> tuple[tuple[str, ...], Layout, dict[str, Any]]:
    """Read delimited text or JSON; also returns what was found out about the file."""
    size = path.stat().st_size

    def told() -> None:
        if progress is not None:
            progress(f"reading {path.name}", min(file.raw.tell(), size), size)

    asked = layout
    encoding, by = encoding_of(file.head, layout.encoding)
    try:
        head = check_text(file.head, encoding, layout.separator, path)
        kind = layout.format or _text_format(head)
        layout = replace(layout, format=kind, encoding=encoding)
        text = text_of(file, encoding)
        if kind == "jsonl":
            names = read_json_lines(text, path.name, wanted, rows, told)
        elif kind == "json":
            names = read_json_objects(text, path.name, wanted, rows, told)
        else:
            names, layout = read_delimited(text, path.name, wanted, layout, rows, told)
        text.detach()
    except (UnicodeError, LookupError) as error:
        raise DataError(
            f"{path.name} cannot be read as {encoding}: {_bare(error)}; choose another --encoding"
        ) from error
    about: dict[str, Any] = {"format": layout.format, "encoding": encoding}
    about |= {"encoding_found": True} if by == "found" else {}
    if layout.separator is not None:
        about |= {"separator": layout.separator}
        about |= {"separator_found": True} if asked.separator is None else {}
    return names, layout, about


def _text_format(head: str) -> Format:
    start = head.lstrip()
    if start.startswith("[") and start[1:].lstrip().startswith(("{", "[", "]")):
        return "json"
    if start.startswith("{"):
        return "jsonl" if one_object_a_line(start) else "json"
    return "delimited"


def _bare(error: Exception) -> str:
    """Return what a codec says without the bytes that it met."""
    return error.reason if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else str(error)


def _check_amount(name: str, rows: Rows, layout: Layout) -> None:
    """Raise DataError when nothing was read, or when most of it is malformed."""
    read = rows.malformed + sum(len(x) for x in rows.lines)
    if read == 0:
        raise DataError(f"{name} has a header and no rows: give a file with at least one row")
    if rows.malformed <= read / 2:
        return
    line, reason = rows.examples[0]
    if layout.format in ("parquet", "arrow"):
        remedy = "name other columns, or write the file with one value where one belongs"
    elif layout.format in ("jsonl", "json"):
        remedy = "write each record as one JSON object, a line each, or give another file"
        if reason == PYTHON:
            remedy = (
                "write JSON instead, such as by python -c 'import ast, json, sys;"
                " [print(json.dumps(ast.literal_eval(x))) for x in sys.stdin]'"
            )
    elif reason == BAD_BYTES:
        remedy = f"they are not {layout.encoding}; give --encoding, such as latin-1 or cp1252"
    else:
        remedy = (
            f"is {layout.separator!r} the separator and {layout.encoding} the encoding? Choose --sep and --encoding"
        )
    raise DataError(f"{name}: {rows.malformed} of {read} lines are malformed (line {line} {reason}): {remedy}")
