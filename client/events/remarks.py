"""What a cleaning must say besides its counts, in sentences that hold no record: times, quantities, repeats, types."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from fedrecall.client.events.drops import REASONS, Drops, Mask
from fedrecall.client.events.events import MICROS, RawEvents
from fedrecall.client.events.tables import WATCHED
from fedrecall.client.events.times import PLAUSIBLE, parse_numbers, shown

_DAY_S = 86_400
_MOST_TYPES = 20
_MANY_REPEATS = 0.01


def span(micros: Int64[np.ndarray, " events"]) -> dict[str, str]:
    """Return the first and the last time as text (UTC)."""
    ends = {"first": int(micros.min()), "last": int(micros.max())}
    return {name: _moment(value / MICROS) for name, value in ends.items()}


def about_times(times: Float64[np.ndarray, " rows"], column: pa.Array, drops: Drops) -> list[str]:
    """Say which times were not read, and which lie where times of a log do not."""
    said = []
    impossible = drops.reason == REASONS.index("impossible time")
    unread, outside = impossible & np.isnan(times), impossible & ~np.isnan(times)
    other = drops.reason == REASONS.index("time of another unit")
    thousandfold = " of another unit than its file's, a thousandfold off"
    for rows, verbs, what in (
        (unread, ("cannot", "cannot"), " be read"),
        (outside, ("lies", "lie"), " before 1970 or after 2199, where no log is"),
        (other, ("is", "are"), thousandfold),
    ):
        if rows.any():
            row = int(np.argmax(rows))
            count = _count(rows, "time", *verbs)
            said.append(f"{count}{what}, such as {shown(column[row].as_py())} ({drops.place(row)})")
    kept = drops.reason == 0
    early = kept & (times < PLAUSIBLE[0])
    if early.any():
        row = int(np.argmax(early))
        all_of_them = "all times lie" if early.sum() == kept.sum() else _count(early, "time", "lies", "lie")
        said.append(
            f"{all_of_them} before 1990, such as {_moment(times[row])} ({drops.place(row)}): if the column is a clock,"
            " give its --time-format; if it only numbers events, their order is all that counts"
        )
    late = kept & (times > datetime.now(UTC).timestamp() + _DAY_S)
    if late.any():
        row = int(np.argmax(np.where(late, times, -np.inf)))
        said.append(
            f"{_count(late, 'time', 'lies', 'lie')} in the future, up to {_moment(times[row])} ({drops.place(row)})"
        )
    return said


def about_weights(numbers: Float64[np.ndarray, " rows"], bad: Mask, drops: Drops) -> list[str]:
    """Name cancellations where weights below 0 were dropped."""
    negative = bad & (numbers < 0)
    if not negative.any():
        return []
    row = int(np.argmax(negative))
    return [
        f"{_count(negative, 'event', 'has', 'have')} a weight below 0 (first: {drops.place(row)}): cancellations or"
        " returns? They are dropped, the events that they take back are not"
    ]


def about_quantities(raws: Sequence[RawEvents], drops: Drops) -> list[str]:
    """Name cancellations where a column of quantities, which nobody asked for, is below 0 in kept rows."""
    found, first, column = 0, "", ""
    for n, raw in enumerate(raws):
        if WATCHED not in raw.table.columns:
            continue
        start = int(drops.starts[n])
        kept = drops.reason[start : start + len(raw.table.lines)] == 0
        rows = np.flatnonzero((parse_numbers(raw.table.columns[WATCHED]) < 0) & kept)
        if len(rows):
            column = column or str(raw.table.about["watched"])
            first = first or drops.place(start + int(rows[0]))
            found += len(rows)
    if not found:
        return []
    return [
        f"{column} is below 0 in {found:,} of the kept rows (first: {first}): cancellations or returns? Leave them out"
        f" with --where '{column} > 0'"
    ]


def about_repeats(repeated: Mask, *, timed: bool) -> list[str]:
    """Say that what was dropped as a duplicate may have been a repeat, where no time tells the two apart."""
    count = int(repeated.sum())
    if timed or count <= _MANY_REPEATS * len(repeated):
        return []
    return [
        f"{count:,} rows repeat an earlier one and were dropped as duplicates: without times nothing tells whether they"
        " happened again; give --time, or --keep-duplicates if they did"
    ]


def about_rounded(raws: Sequence[RawEvents]) -> list[str]:
    """Say that identifiers with an exponent may be several that were rounded to one."""
    counts = {
        role: sum(raw.table.about.get("rounded_ids", {}).get(role, 0) for raw in raws) for role in ("user", "item")
    }
    return [
        f"{count:,} {role} ids have an exponent, as spreadsheets write long numbers: whoever wrote the file may have"
        " rounded several to one; export them as text"
        for role, count in counts.items()
        if count
    ]


def about_types(unknown: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """Return the types that nobody named with their counts, or, of very many, none: they may be no types at all."""
    if len(unknown) <= _MOST_TYPES:
        return dict(unknown), []
    return {}, [f"{len(unknown):,} different event types are not among the named ones: is --event the right column?"]


def _count(rows: Mask, what: str, one: str, several: str) -> str:
    """Spell how many rows do something."""
    count = int(rows.sum())
    return f"{count:,} {what}{'s' * (count != 1)} {one if count == 1 else several}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S")
