"""Reading Parquet, and Arrow files and streams (Feather), whose columns have types."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedrecall.client.events.formats.nested import NoRowError, gather, reach, spread
from fedrecall.client.events.tables import Column, Rows, refuse_shared, resolve_columns, watched_column
from fedrecall.protocol.errors import DataError

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
Told = Callable[[int, int], None]


def read_parquet(path: Path, wanted: Mapping[str, Column], rows: Rows, told: Told) -> tuple[str, ...]:
    """Read the wanted columns of a Parquet file into ``rows``; returns the column names.

    ``told`` is called with the rows read and the rows in all. Columns of moments become seconds since 1970.
    """
    try:
        file = pq.ParquetFile(path)
        chosen = _choose(file.schema_arrow, wanted, path.name, rows)
        tops = list(dict.fromkeys(top for top, _ in chosen.values()))
        batches = file.iter_batches(columns=tops)
        return _read(batches, chosen, rows, path.name, file.schema_arrow, lambda n: told(n, file.metadata.num_rows))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file ({_first(error)}): write it again") from error


def read_arrow(path: Path, wanted: Mapping[str, Column], rows: Rows, told: Told, *, stream: bool) -> tuple[str, ...]:
    """Read the wanted columns of an Arrow IPC file or stream, as ``read_parquet`` does."""
    try:
        with path.open("rb") as file:
            if stream:
                reader = pa.RecordBatchStreamReader(file)
                batches: Iterator[pa.RecordBatch] = iter(reader)
            else:
                reader = pa.RecordBatchFileReader(file)
                batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
            chosen = _choose(reader.schema, wanted, path.name, rows)
            return _read(batches, chosen, rows, path.name, reader.schema, lambda n: told(n, 0))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Arrow file ({_first(error)}): write it again") from error


def read_frame(frame: pa.Table, wanted: Mapping[str, Column], where: str, rows: Rows) -> tuple[str, ...]:
    """Read the wanted columns of a table in memory, as ``read_parquet`` does."""
    chosen = _choose(frame.schema, wanted, where, rows)
    return _read(iter(frame.to_batches()), chosen, rows, where, frame.schema, lambda _: None)


def columns_of(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, and dotted ones of the fields in them."""
    return [*schema.names, *_inside(schema)]


def _inside(schema: pa.Schema) -> dict[str, str]:
    """Return the dotted names of all fields in columns, each with its column; a column of that very name goes first."""
    found = {f"{column.name}.{path}": column.name for column in schema for path in _paths(column.type)}
    return {path: top for path, top in found.items() if path not in schema.names}


def _paths(kind: pa.DataType) -> list[str]:
    """Return the dotted names of the fields in a type, through lists."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _paths(kind.value_type)
    if not pa.types.is_struct(kind):
        return []
    return [name for field in kind for name in (field.name, *(f"{field.name}.{x}" for x in _paths(field.type)))]


def _first(error: Exception) -> str:
    """Return the first words of what Arrow says: it is about the file's layout there."""
    return str(error).split("\n")[0].split(":")[0][:80]


def _choose(
    schema: pa.Schema, wanted: Mapping[str, Column], where: str, rows: Rows
) -> dict[str, tuple[str, str | None]]:
    """Return the top column of each role, and the dotted name within it, if any."""
    names = list(schema.names)
    paths = _inside(schema)
    known = [*names, *paths]
    positions = resolve_columns(known, len(names), wanted, where, header=False)
    refuse_shared(wanted, [known[p] for p in positions])
    tops = [paths.get(known[p], known[p]) for p in positions]
    if twice := next((top for top in tops if names.count(top) > 1), None):
        raise DataError(f"{where} has several columns named {twice!r}: write it with a name for each")
    if watched := watched_column(names, wanted):
        rows.watch(watched)
    chosen = {role: known[p] for role, p in zip(wanted, positions, strict=True)}
    chosen |= {rows.roles[-1]: watched} if watched else {}
    return {role: (paths[c], c) if c in paths else (c, None) for role, c in chosen.items()}


def _read(
    batches: Iterator[pa.RecordBatch],
    chosen: Mapping[str, tuple[str, str | None]],
    rows: Rows,
    where: str,
    schema: pa.Schema,
    told: Callable[[int], None],
) -> tuple[str, ...]:
    done = 0
    for role, (top, path) in chosen.items():
        kind = schema.field(top).type
        if path is None and role == "time" and (said := _moments(kind)):
            rows.typed[role] = said
        clock = pa.types.is_boolean(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)
        if path is None and role == "time" and clock:
            raise DataError(f"{where}: --time {top!r} holds {kind}, which is no moment: name another column")
    nested = any(path is not None or _is_nested(schema.field(top).type) for top, path in chosen.values())
    for batch in batches:
        lines = np.arange(done + 1, done + len(batch) + 1, dtype=np.int64)
        if nested:
            _spread(batch, chosen, rows, lines)
        else:
            rows.add([_text(batch.column(top)) for top, _ in chosen.values()], lines)
        done += len(batch)
        told(done)
    if done == 0:
        raise DataError(f"{where} has no rows: give a file with at least one")
    return tuple(schema.names)


def _spread(batch: pa.RecordBatch, chosen: Mapping[str, tuple[str, str | None]], rows: Rows, lines: np.ndarray) -> None:
    """Add a batch in which a wanted field lies in an object or is a list: a row an item."""
    tops = {top: _plain_times(batch.column(top)).to_pylist() for top, _ in chosen.values()}
    columns: dict[str, list[str]] = {role: [] for role in chosen}
    numbers: list[int] = []
    for n, line in enumerate(lines.tolist()):
        record = {top: values[n] for top, values in tops.items()}
        try:
            found = spread({role: reach(record, path or top) for role, (top, path) in chosen.items()})
        except NoRowError as error:
            rows.refuse(line, str(error))
            continue
        gather(found, line, rows, columns, numbers)
    if numbers:
        rows.add([pa.array(columns[role], pa.string()) for role in chosen], np.array(numbers, dtype=np.int64))


def _text(column: pa.Array) -> pa.Array:
    """Return a flat column as text, null where it has no value."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _text(column.storage)
    if pa.types.is_dictionary(kind):
        # Its values first: Arrow decodes no dictionary of the kind that polars hands over.
        return _text(column.dictionary).take(column.indices)
    if _moments(kind):
        return pc.cast(_seconds(column), pa.string())
    if pa.types.is_floating(kind):
        return pc.cast(pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind)), pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
    return pc.cast(column, pa.string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeError:
        return None


def _moments(kind: pa.DataType) -> str | None:
    """Return the name of a type that holds moments."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else None


def _seconds(column: pa.Array) -> pa.Array:
    """Return moments as seconds since 1970; those without a zone are UTC."""
    kind = column.type
    if pa.types.is_date32(kind):
        return pc.multiply(pc.cast(pc.cast(column, pa.int32()), pa.float64()), 86_400.0)
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    return pc.divide(pc.cast(pc.cast(column, pa.int64()), pa.float64(), safe=False), float(_PER_SECOND[unit]))


def _plain_times(column: pa.Array) -> pa.Array:
    return _seconds(column) if _moments(column.type) and not pa.types.is_dictionary(column.type) else column


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))
