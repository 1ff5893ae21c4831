"""Data sets from frames in memory: pandas, polars, Arrow, or whatever else hands its columns over."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import EventColumns, RawEvents
from fedrecall.client.events.formats.columnar import columns_of
from fedrecall.client.events.parsing import arrow_table
from fedrecall.client.events.spelling import MISSING
from fedrecall.client.events.tables import Column, Layout, Table
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.build import build_dataset
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.items import ItemFile, items_of
from fedrecall.simulations.data.known import KNOWN
from fedrecall.simulations.data.places import NAME

_KNOWN_WAYS = "an Arrow table or a frame with __arrow_c_stream__, to_arrow() or __dataframe__, as of pandas and polars"


def dataset_from_frame(
    frame: Any,
    *,
    user: str,
    item: str,
    time: str | None = None,
    time_format: str | None = None,
    event: str | None = None,
    event_weights: Mapping[str, float] | None = None,
    weight: str | None = None,
    keep_duplicates: bool = False,
    item_separator: str | None = None,
    missing: Sequence[str] = MISSING,
    items: Any = None,
    item_id: str | None = None,
    title: str | None = None,
    categories: str | None = None,
    category_separator: str = "|",
    k_core: int = 0,
    name: str = "frame",
) -> Dataset:
    """Return the data set of a frame of events, cleaned as ``fedrecall data import`` cleans a file.

    Args:
        frame: one event a row, or a list of one user's items: an Arrow table or record batch, a pandas or polars frame,
            anything with the Arrow PyCapsule or the dataframe interchange interface, or with ``to_arrow()``.
        user: the column of users; identifiers of any type are read as text. ``a.b`` is the field ``b`` of a column
            ``a`` of objects, here and for the other columns.
        item: the column of items.
        time: the column of times (timestamps, dates, numbers or texts); without one, row order is time order.
        time_format: of texts and numbers, as ``fedrecall.client.events.times.parse_times``; found out if absent.
        event: the column of event types.
        event_weights: weight of each type; rows of other types are dropped and counted.
        weight: the column of implicit strength.
        keep_duplicates: rows that agree in user, item, time and type are events of their own.
        item_separator: what separates several items in one text; a list is one without it.
        missing: texts that are no value.
        items: a frame of the public catalogue; events of other items are dropped and counted.
        item_id: its column of identifiers.
        title: its column of titles; without a catalogue one of ``frame``: an item has the first that its events give.
        categories: likewise of categories: lists, or texts with ``category_separator`` between.
        category_separator: see there.
        k_core: as in ``load_dataset``; a benchmark convention that reads private counts.
        name: what the data set is called in reports.

    What was dropped and why is in ``Dataset.cleaning``.

    Raises:
        DataError: no frame, no such column, or nothing left after cleaning.
    """
    if not NAME.fullmatch(name):
        raise DataError(f"name is {name!r}: use 1 to 64 letters, digits, dots, dashes, underscores")
    if name in KNOWN or name == "synthetic":
        raise DataError(f"name is {name!r}, which fedrecall knows already: choose another")
    if (items is None) != (item_id is None):
        raise DataError("items and item_id go together: give both, or neither")
    if event_weights is not None and event is None:
        raise DataError("event_weights needs the column of event types: give event")
    if item_separator == "":
        raise DataError("item_separator is empty: give one character or more")
    columns = EventColumns(
        user=user,
        item=item,
        time=time,
        event=event,
        weight=weight,
        title=title if items is None else None,
        categories=categories if items is None else None,
    )
    layout = Layout(item_separator=item_separator, missing=tuple(missing), rows=True)
    rows = _columns(frame, "frame", columns.wanted(), layout)
    catalogue = None
    if items is not None:
        wanted = {"item-id": item_id, "title": title, "categories": categories}
        named = {role: column for role, column in wanted.items() if column is not None}
        read = _columns(items, "items", named, Layout(missing=tuple(missing)))
        catalogue = items_of("items", read, category_separator)
    events = clean_events(
        [RawEvents(name=name, table=rows)],
        time_format=time_format,
        event_weights=event_weights,
        known_items=None if catalogue is None else catalogue.ids,
        category_separator=category_separator,
        keep_duplicates=keep_duplicates,
    )
    settings = [time_format, event_weights and dict(event_weights), k_core, keep_duplicates, category_separator]
    return build_dataset(
        name=name,
        events=events,
        items=catalogue,
        catalogue="file",
        k_core=k_core,
        groups={},
        sha256=_digest(rows, catalogue, settings),
    )


def _columns(frame: Any, what: str, wanted: Mapping[str, Column], layout: Layout) -> Table:
    """Return the wanted columns as text; raises DataError naming the column that is missing, or why it has no text."""
    table = _arrow(frame, what)
    known = columns_of(table.schema)
    for role, column in wanted.items():
        count = known.count(str(column))
        if count != 1:
            near = difflib.get_close_matches(str(column), known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(table.column_names) or 'none'}"
            found = "is no column" if not count else f"is {count} columns"
            raise DataError(f"{role} is {column!r}, which {found} of {what}: {hint}")
    if not table.num_rows:
        raise DataError(f"{what} has no rows: give one with at least one")
    try:
        return arrow_table(table, wanted, what, layout)
    except pa.ArrowException as error:
        raise DataError(f"a column of {what} cannot be read as text ({error}): give numbers, texts or times") from error


def _arrow(frame: Any, what: str) -> pa.Table:
    """Return the frame as an Arrow table; raises DataError where it is none."""
    try:
        if isinstance(frame, pa.Table):
            return frame
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__arrow_c_array__"):
            return pa.table(frame)
        if hasattr(frame, "to_arrow"):
            return _arrow(frame.to_arrow(), what)
        if hasattr(frame, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return from_dataframe(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be read as columns ({error}): give each column one type") from error
    raise DataError(f"{what} is a {type(frame).__name__}: give {_KNOWN_WAYS}")


def _digest(rows: Table, catalogue: ItemFile | None, settings: list[Any]) -> str:
    """Return the hash of what was read and how, whichever library held it and in whatever pieces."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for role, column in rows.columns.items():
        digest.update(json.dumps([role, column.to_pylist()]).encode())
    if catalogue is not None:
        digest.update(json.dumps([catalogue.ids, catalogue.titles, catalogue.categories]).encode())
    return digest.hexdigest()
