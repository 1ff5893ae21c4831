"""Cleaning of raw event rows: explicit, in a fixed order of reasons, and reported to the last row."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from fedrecall.client.events.drops import Drops, Mask, in_words
from fedrecall.client.events.events import MICROS, Events, RawEvents, strength
from fedrecall.client.events.remarks import (
    about_quantities,
    about_repeats,
    about_rounded,
    about_times,
    about_types,
    about_weights,
    span,
)
from fedrecall.client.events.tables import PROSE, WATCHED, one_line, split_categories
from fedrecall.client.events.times import LATEST, parse_numbers, parse_times
from fedrecall.client.events.where import fulfilled
from fedrecall.protocol.errors import DataError

MAX_TYPES = 127
_SAME_ROWS = 3
_NEEDED = ("user", "item", "time", "event", "weight")


def clean_events(
    raws: Sequence[RawEvents],
    *,
    time_format: str | None = None,
    event_weights: Mapping[str, float] | None = None,
    weight_scale: float = 1.0,
    known_items: Sequence[str] | None = None,
    category_separator: str = "|",
    keep_duplicates: bool = False,
) -> Events:
    """Clean the rows of all files, in the order given; a row is dropped for the first of ``REASONS``.

    The times of each file are read by themselves. Duplicates agree in user, item, time and type, without times also
    in the part of the data; the first is kept, or, with ``keep_duplicates``, as many as one file has. Where a weight
    column exists, an event weighs ``strength`` of it, else 1; times ``event_weights[type]`` where that map is given,
    and then other types are dropped. With ``known_items``, rows of other items are dropped. Raises DataError when
    nothing remains, for a weight that is not above 0, for more than 127 event types, for columns that are the same
    throughout, and as ``parse_times`` does.
    """
    roles = sorted(raws[0].table.columns.keys() - {WATCHED})
    columns = {r: pa.concat_arrays([raw.table.columns[r] for raw in raws]) for r in roles}
    _refuse_alike(columns)
    drops = Drops(raws)
    filters: dict[str, int] = {}
    for number, condition in enumerate(raws[0].where, start=1):
        filters[str(condition)] = int(
            drops.add("filtered out", ~fulfilled(columns[f"where {number}"], condition)).sum()
        )
    for role in _NEEDED:
        if role in columns:
            drops.add("missing field", pc.is_null(columns[role]).to_numpy(zero_copy_only=False))
    times, formats = (None, []) if "time" not in columns else _times(raws, time_format, drops)
    warnings = about_rounded(raws)
    if times is not None:
        warnings += about_times(times, columns["time"], drops)
    weights = np.ones(len(drops.lines))
    if "weight" in columns:
        numbers = parse_numbers(columns["weight"])
        weights = strength(numbers, weight_scale)
    types, names = _types(raws, columns.get("event"), drops)
    factors = _factors(names, event_weights)[types]
    weights = (weights * np.where(np.isnan(factors), 1.0, factors)).astype(np.float32)
    bad = drops.add("bad weight", ~((weights > 0) & np.isfinite(weights)))
    if "weight" in columns:
        warnings += about_weights(numbers, bad, drops)
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
    parts = np.array([raw.part for raw in raws], dtype=np.int8)[drops.files]
    micros = None if times is None else np.rint(times[rows] * MICROS).astype(np.int64)
    keys = (users * len(item_ids) + items) * len(names) + types[rows]
    if micros is None:  # Nothing else tells an event of another part from the same event.
        keys = keys * (int(parts.max(initial=0)) + 1) + parts[rows]
    repeated = _repeated(keys, micros, drops.files[rows] if keep_duplicates else None)
    again = np.zeros(len(drops.lines), dtype=bool)
    again[rows[repeated]] = True
    drops.add("duplicate", again)
    if repeated.all():
        said = "; ".join([*in_words(drops.report()), *warnings])
        raise DataError(
            f"no event is left after cleaning; dropped: {said}. Check the columns, the time format and the item file"
        )
    warnings += about_repeats(repeated, timed=times is not None)

    order = np.flatnonzero(~repeated)
    if micros is not None and np.any(micros % MICROS):
        order = order[np.argsort(micros[order], kind="stable")]
    users, items, rows = users[order], items[order], rows[order]
    micros = None if micros is None else micros[order]
    present, kept_types = np.unique(types[rows], return_inverse=True)
    names = [names[t] for t in present]
    if len(names) > MAX_TYPES:
        raise DataError(f"{len(names)} event types, at most {MAX_TYPES}: is the event column the right one?")
    warnings += about_quantities(raws, drops)
    said_types, told = about_types(unknown)
    titles, categories = (_first_of_items(columns.get(role), rows, items) for role in PROSE)
    return Events(
        users=users,
        items=items,
        times=micros,
        types=kept_types.astype(np.int8),
        weights=weights[rows],
        parts=parts[rows],
        user_ids=user_ids,
        item_ids=item_ids,
        type_names=tuple(names),
        titles=tuple(one_line(titles.get(i)) for i in range(len(item_ids))) if "title" in columns else None,
        categories=tuple(split_categories(categories.get(i), category_separator) for i in range(len(item_ids)))
        if "categories" in columns
        else None,
        report=drops.report()
        | {
            "event_types": dict(zip(names, np.bincount(kept_types).tolist(), strict=True)),
            "unknown_event_types": said_types,
            "filters": filters,
            "time_format": ", ".join(dict.fromkeys(formats)) or None,
            "times": None if micros is None else span(micros),
            "weight": f"log2(1 + value / {weight_scale:g})" if "weight" in columns else "1",
            "event_weights": None if event_weights is None else dict(event_weights),
            "files": [raw.table.about | ({"time_format": formats[n]} if formats else {}) for n, raw in enumerate(raws)],
            "warnings": warnings + told,
        },
    )


def _refuse_alike(columns: Mapping[str, pa.Array]) -> None:
    """Raise DataError where two of user, item and time hold the same in every row: one is not what it should be."""
    for one, other in (("user", "item"), ("item", "time"), ("user", "time")):
        if one not in columns or other not in columns or len(columns[one]) < _SAME_ROWS:
            continue
        same = pc.fill_null(pc.equal(columns[one], columns[other]), pc.is_null(columns[one]))
        if pc.all(same).as_py() and pc.count_distinct(columns[one]).as_py() > 1:
            raise DataError(
                f"--{one} and --{other} hold the same in all {len(columns[one])} rows: name another column for one"
            )


def _place(drops: Drops, start: int, row: int) -> str:
    return drops.place(start + row)


def _times(
    raws: Sequence[RawEvents], time_format: str | None, drops: Drops
) -> tuple[Float64[np.ndarray, " rows"], list[str]]:
    """Return the time of each row in seconds, each file read by itself, and the format of each file."""
    seconds, formats, strange = [], [], []
    for n, raw in enumerate(raws):
        found = parse_times(
            raw.table.columns["time"],
            time_format,
            typed=raw.table.typed.get("time"),
            place=partial(_place, drops, int(drops.starts[n])),
        )
        seconds.append(found[0])
        strange.append(found[1])
        formats.append(found[2])
    times, other = np.concatenate(seconds), np.concatenate(strange)
    drops.add("impossible time", ~other & ~((times >= 0) & (times < LATEST)))
    drops.add("time of another unit", other)
    return times, formats


def _types(
    raws: Sequence[RawEvents], column: pa.Array | None, drops: Drops
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


def _repeated(
    keys: Int64[np.ndarray, " rows"],
    times: Int64[np.ndarray, " rows"] | None,
    files: Int64[np.ndarray, " rows"] | None,
) -> Mask:
    """Return where a row repeats the key and time of an earlier row; with ``files``, of one of another file.

    The rows of one file that agree are then told apart by their number among these.
    """
    again = np.zeros(len(keys), dtype=bool)
    if not np.any(np.diff(np.sort(keys)) == 0):
        return again
    moments = np.zeros(len(keys), dtype=np.int64) if times is None else times
    which = np.zeros(len(keys), dtype=np.int64)
    if files is not None:
        order = np.lexsort((files, moments, keys))
        first = np.ones(len(keys), dtype=bool)
        first[1:] = np.any([np.diff(column[order]) != 0 for column in (keys, moments, files)], axis=0)
        place = np.arange(len(keys))
        which[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    order = np.lexsort((which, moments, keys))
    same = np.all([np.diff(column[order]) == 0 for column in (keys, moments, which)], axis=0)
    again[order[1:][same]] = True
    return again


def _first_of_items(
    column: pa.Array | None, rows: Int64[np.ndarray, " kept"], items: Int64[np.ndarray, " kept"]
) -> dict[int, str]:
    """Return the first text that the kept rows have of each item."""
    if column is None:
        return {}
    texts = column.take(pa.array(rows))
    known = np.flatnonzero(~pc.is_null(texts).to_numpy(zero_copy_only=False))
    found, first = np.unique(items[known], return_index=True)
    return dict(zip(found.tolist(), texts.take(pa.array(known[first])).to_pylist(), strict=True))
