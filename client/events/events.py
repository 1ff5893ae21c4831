"""Raw rows of events: where a file holds what, and how a rating or hours become implicit strength.

What a device ingests and what a simulation imports goes the same way: ``read_events``, then ``clean_events``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int64

from fedrecall.client.events.parsing import read_table
from fedrecall.client.events.tables import Column, Layout, Progress, Table
from fedrecall.client.events.where import Condition

DEFAULT_TYPE = "event"
MICROS = 1_000_000
"""Events are kept to the microsecond."""


@dataclass(frozen=True, kw_only=True)
class EventColumns:
    """Where a file holds what, by column name or 1-based number; ``None`` where it does not.

    Without a user column all rows belong to one user: a device's own file. ``title`` and ``categories`` are those of
    the item; ``where`` are the conditions that a row must fulfil, all of them.
    """

    item: Column
    user: Column | None = None
    time: Column | None = None
    event: Column | None = None
    weight: Column | None = None
    title: Column | None = None
    categories: Column | None = None
    where: tuple[Condition, ...] = ()

    def wanted(self) -> dict[str, Column]:
        """Return role to column, for the roles that are there; conditions are ``where 1`` and so on."""
        roles = {r: getattr(self, r) for r in ("user", "item", "time", "event", "weight", "title", "categories")}
        found = {role: column for role, column in roles.items() if column is not None}
        return found | {f"where {number}": one.column for number, one in enumerate(self.where, start=1)}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawEvents:
    """The rows of one file as text.

    Attributes:
        name: of the file.
        table: what was read.
        event_name: the type of all of them where no column says it.
        where: conditions, in the order of their columns ``where 1`` and so on.
        part: 0 is training, or all; 1 validation, 2 test, where a file is one of them.
    """

    name: str
    table: Table
    event_name: str = DEFAULT_TYPE
    where: tuple[Condition, ...] = ()
    part: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """Clean events in file order (in time order where times are finer than a second, as stores keep seconds).

    Attributes:
        users: index into ``user_ids``, which are in order of first appearance.
        items: index into ``item_ids``: the known items where given, else in order of first appearance.
        times: microseconds since 1970, or ``None`` when there is no time column.
        types: index into ``type_names``.
        weights: finite and above 0.
        parts: 0 is training, 1 validation, 2 test; all 0 where no file was given for a part.
        titles: of each item, empty where unknown; ``None`` when there is no column of them.
        categories: of each item; ``None`` when there is no column of them.
        report: rows read, kept, and dropped by reason, with the first lines of each; how each file was read; and
            ``warnings`` in words, as plain JSON data. ``kept + sum(dropped.values()) == rows_read``.
    """

    users: Int64[np.ndarray, " events"]
    items: Int64[np.ndarray, " events"]
    times: Int64[np.ndarray, " events"] | None
    types: Int8[np.ndarray, " events"]
    weights: Float32[np.ndarray, " events"]
    parts: Int8[np.ndarray, " events"] | None = None
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    type_names: tuple[str, ...]
    titles: tuple[str, ...] | None = None
    categories: tuple[tuple[str, ...], ...] | None = None
    report: dict[str, Any]


def read_events(
    path: Path,
    *,
    columns: EventColumns,
    layout: Layout | None = None,
    event_name: str = DEFAULT_TYPE,
    part: int = 0,
    progress: Progress | None = None,
) -> RawEvents:
    """Read the rows of one event file; raises DataError as ``fedrecall.client.events.parsing.read_table`` does."""
    table = read_table(path, columns.wanted(), layout, progress)
    return RawEvents(name=Path(path).name, table=table, event_name=event_name, where=columns.where, part=part)


def strength(values: Float64[np.ndarray, " rows"], scale: float = 1.0) -> Float64[np.ndarray, " rows"]:
    """Turn a rating, a count or hours into implicit strength: ``log2(1 + value / scale)``, 1 at ``scale``.

    ``scale`` is a public constant, never computed from the events. Every event stays a positive; only a value
    of 0 or below, or one that is not finite, has no strength (NaN).
    """
    good = np.isfinite(values) & (values > 0)
    return np.where(good, np.log2(1.0 + np.where(good, values, 1.0) / scale), np.nan)
