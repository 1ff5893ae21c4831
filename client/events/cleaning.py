"""Cleaning of raw event rows: explicit, in a fixed order of reasons, and reported to the last row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64

from fedrecall.client.events.events import Events, RawEvents, strength
from fedrecall.client.events.tables import SHOWN_LINES
from fedrecall.client.events.times import LATEST, parse_numbers, parse_times
from fedrecall.protocol.errors import DataError

REASONS = (
    "malformed line",
    "missing field",
    "impossible time",
    "bad weight",
    "unknown event type",
    "unknown item",
    "duplicate",
)
MAX_TYPES = 127

Mask = Bool[np.ndarray, " rows"]


class _Drops:
    """Which row is dropped for which reason: the first that applies."""

    def __init__(self, raws: Sequence[RawEvents]) -> None:
        self.raws = raws
        lengths = [len(raw.table.lines) for raw in raws]
        self.files = np.repeat(np.arange(len(raws)), lengths)
        self.lines = np.concatenate([raw.table.lines for raw in raws])
        self.reason = np.zeros(len(self.lines), dtype=np.int8)

    def add(self, reason: str, rows: Mask) -> Mask:
        """Drop ``rows`` for ``reason``, except those dropped before; returns the newly dropped."""
        fresh: Mask = rows & (self.reason == 0)
        self.reason[fresh] = REASONS.index(reason)
        return fresh

    def kept(self) -> Int64[np.ndarray, " kept"]:
        """Return the numbers of the rows not dropped."""
        return np.flatnonzero(self.reason == 0)

    def report(self) -> dict[str, Any]:
        """Return counts and the first lines of each reason as plain JSON data."""
        malformed = sum(raw.table.malformed for raw in self.raws)
        counts = np.bincount(self.reason, minlength=len(REASONS))
        dropped = {reason: int(counts[i]) for i, reason in enumerate(REASONS)} | {REASONS[0]: malformed}
        first = {
            REASONS[i]: [
                {"file": self.raws[self.files[row]].name, "line": int(self.lines[row])}
                for row in np.flatnonzero(self.reason == i)[:SHOWN_LINES]
            ]
            for i in range(1, len(REASONS))
            if counts[i]
        }
        lines = [
            {"file": raw.name, "line": line, "reason": why} for raw in self.raws for line, why in raw.table.examples
        ]
        return {
            "rows_read": len(self.reason) + malformed,
            "kept": int(counts[0]),
            "dropped": dropped,
            "malformed_lines": lines[:SHOWN_LINES],
            "dropped_lines": first,
        }


def clean_events(
    raws: Sequence[RawEvents],
    *,
    time_format: str | None = None,
    event_weights: Mapping[str, float] | None = None,
    weight_scale: float = 1.0,
    known_items: Sequence[str] | None = None,
) -> Events:
    """Clean the rows of all files, in the order given; a row is dropped for the first of ``REASONS``.

    Duplicates agree in user, item, time and type; the first is kept. Where a weight column exists, an event
    weighs ``strength`` of it, else 1; times ``event_weights[type]`` where that map is given, and then other
    types are dropped. With ``known_items``, rows of other items are dropped. Raises DataError when nothing
    remains, for a weight that is not above 0, and for more than 127 event types.
    """
    roles = sorted(raws[0].table.columns)
    columns = {r: pa.concat_arrays([raw.table.columns[r] for raw in raws]) for r in roles}
    drops = _Drops(raws)
    for role in roles:
        drops.add("missing field", pc.is_null(columns[role]).to_numpy(zero_copy_only=False))
    times: Float64[np.ndarray, " rows"] | None = None
    used_format = None
    if "time" in columns:
        times, used_format = parse_times(columns["time"], time_format)
        drops.add("impossible time", ~((times >= 0) & (times < LATEST)))
    weights = np.ones(len(drops.lines))
    if "weight" in columns:
        weights = strength(parse_numbers(columns["weight"]), weight_scale)
    types, names = _types(raws, columns.get("event"), drops)
    factors = _factors(names, event_weights)[types]
    weights = (weights * np.where(np.isnan(factors), 1.0, factors)).astype(np.float32)
    drops.add("bad weight", ~((weights > 0) & np.isfinite(weights)))
    strange = drops.add("unknown event type", np.isnan(factors))
    unknown = {names[t]: int(n) for t, n in enumerate(np.bincount(types[strange])) if n}
    if known_items is not None:
        places = pc.index_in(columns["item"], value_set=pa.array(known_items, pa.string()))
        drops.add("unknown item", pc.is_null(places).to_numpy(zero_copy_only=False))

    rows = drops.kept()
    users, user_ids = _codes(columns["user"], rows) if "user" in columns else (np.zeros_like(rows), ("",))
    if known_items is None:
        items, item_ids = _codes(columns["item"], rows)
    else:
        items = places.take(pa.array(rows)).to_numpy().astype(np.int64)
        item_ids = tuple(known_items)
    keys = (users * len(item_ids) + items) * len(names) + types[rows]
    repeated = _repeated(keys, None if times is None else times[rows])
    again = np.zeros(len(drops.lines), dtype=bool)
    again[rows[repeated]] = True
    drops.add("duplicate", again)
    if repeated.all():
        raise DataError(
            f"no event is left after cleaning; dropped {drops.report()['dropped']}: check the columns,"
            " the time format and the item file"
        )

    users, items, rows = users[~repeated], items[~repeated], rows[~repeated]
    if times is not None and np.any(times[rows] % 1):
        order = np.argsort(times[rows], kind="stable")
        users, items, rows = users[order], items[order], rows[order]
    present, kept_types = np.unique(types[rows], return_inverse=True)
    names = [names[t] for t in present]
    if len(names) > MAX_TYPES:
        raise DataError(f"{len(names)} event types, at most {MAX_TYPES}: is the event column the right one?")
    return Events(
        users=users,
        items=items,
        times=None if times is None else np.floor(times[rows]).astype(np.int64),
        types=kept_types.astype(np.int8),
        weights=weights[rows],
        user_ids=user_ids,
        item_ids=item_ids,
        type_names=tuple(names),
        report=drops.report()
        | {
            "event_types": dict(zip(names, np.bincount(kept_types).tolist(), strict=True)),
            "unknown_event_types": unknown,
            "time_format": used_format,
            "weight": f"log2(1 + value / {weight_scale:g})" if "weight" in columns else "1",
            "event_weights": None if event_weights is None else dict(event_weights),
        },
    )


def _types(
    raws: Sequence[RawEvents], column: pa.Array | None, drops: _Drops
) -> tuple[Int64[np.ndarray, " rows"], list[str]]:
    """Return the type of each row and the names of all types."""
    if column is None:
        names = list(dict.fromkeys(raw.event_name for raw in raws))
        return np.array([names.index(raw.event_name) for raw in raws])[drops.files], names
    codes, ids = _codes(pc.fill_null(column, ""))
    return codes, list(ids)


def _factors(names: Sequence[str], event_weights: Mapping[str, float] | None) -> Float64[np.ndarray, " types"]:
    """Return the weight of each type, NaN for one outside a given map."""
    if event_weights is None:
        return np.ones(len(names))
    for name, weight in event_weights.items():
        if not 0.0 < weight < float("inf"):
            raise DataError(f"the weight of event type {name!r} is {weight}: choose a finite one above 0")
    return np.array([event_weights.get(name, np.nan) for name in names], dtype=np.float64)


def _codes(column: pa.Array, rows: np.ndarray | None = None) -> tuple[Int64[np.ndarray, " rows"], tuple[str, ...]]:
    """Number the texts of ``rows`` in order of first appearance."""
    coded = (column if rows is None else column.take(pa.array(rows))).dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), tuple(coded.dictionary.to_pylist())


def _repeated(keys: Int64[np.ndarray, " rows"], times: Float64[np.ndarray, " rows"] | None) -> Mask:
    """Return where a row repeats the key and time of an earlier row."""
    again = np.zeros(len(keys), dtype=bool)
    if not np.any(np.diff(np.sort(keys)) == 0):
        return again
    order = np.argsort(keys, kind="stable") if times is None else np.lexsort((times, keys))
    same = keys[order][1:] == keys[order][:-1]
    if times is not None:
        same &= times[order][1:] == times[order][:-1]
    again[order[1:][same]] = True
    return again
