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

DEFAULT_TYPE = "event"


@dataclass(frozen=True, kw_only=True)
class EventColumns:
    """Where a file holds what, by column name or 1-based number; ``None`` where it does not.

    Without a user column all rows belong to one user: a device's own file.
    """

    item: Column
    user: Column | None = None
    time: Column | None = None
    event: Column | None = None
    weight: Column | None = None

    def wanted(self) -> dict[str, Column]:
        """Return role to column, for the roles that are there."""
        roles = {r: getattr(self, r) for r in ("user", "item", "time", "event", "weight")}
        return {role: column for role, column in roles.items() if column is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawEvents:
    """The rows of one file as text; ``event_name`` is the type of all of them where no column says it."""

    name: str
    table: Table
    event_name: str = DEFAULT_TYPE


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """Clean events in file order (in time order where times are finer than the seconds that are kept).

    Attributes:
        users: index into ``user_ids``, which are in order of first appearance.
        items: index into ``item_ids``: the known items where given, else in order of first appearance.
        times: whole seconds since 1970, or ``None`` when there is no time column.
        types: index into ``type_names``.
        weights: finite and above 0.
        report: rows read, kept, and dropped by reason, with the first lines of each, as plain JSON data;
            ``kept + sum(dropped.values()) == rows_read``.

    """

    users: Int64[np.ndarray, " events"]
    items: Int64[np.ndarray, " events"]
    times: Int64[np.ndarray, " events"] | None
    types: Int8[np.ndarray, " events"]
    weights: Float32[np.ndarray, " events"]
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    type_names: tuple[str, ...]
    report: dict[str, Any]


def read_events(
    path: Path,
    *,
    columns: EventColumns,
    layout: Layout | None = None,
    event_name: str = DEFAULT_TYPE,
    progress: Progress | None = None,
) -> RawEvents:
    """Read the rows of one event file; raises DataError as ``fedrecall.client.events.parsing.read_table`` does."""
    table = read_table(path, columns.wanted(), layout, progress)
    return RawEvents(name=Path(path).name, table=table, event_name=event_name)


def strength(values: Float64[np.ndarray, " rows"], scale: float = 1.0) -> Float64[np.ndarray, " rows"]:
    """Turn a rating, a count or hours into implicit strength: ``log2(1 + value / scale)``, 1 at ``scale``.

    ``scale`` is a public constant, never computed from the events. Every event stays a positive; only a value
    of 0 or below, or one that is not finite, has no strength (NaN).
    """
    good = np.isfinite(values) & (values > 0)
    return np.where(good, np.log2(1.0 + np.where(good, values, 1.0) / scale), np.nan)
