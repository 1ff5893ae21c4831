"""Which rows are dropped, each for the first reason that applies, with their lines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fedrecall.client.events.events import RawEvents
from fedrecall.client.events.tables import SHOWN_LINES

REASONS = (
    "malformed line",
    "filtered out",
    "missing field",
    "impossible time",
    "time of another unit",
    "bad weight",
    "unknown event type",
    "unknown item",
    "duplicate",
)

Mask = Bool[np.ndarray, " rows"]


class Drops:
    """The rows of several files, one after the other, and why some of them are dropped."""

    def __init__(self, raws: Sequence[RawEvents]) -> None:
        """Begin with all rows kept."""
        self.raws = raws
        lengths = [len(raw.table.lines) for raw in raws]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
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

    def place(self, row: int) -> str:
        """Say where a row is."""
        return f"{self.raws[self.files[row]].name} line {self.lines[row]}"

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


def in_words(report: dict[str, Any], lines: int = 3) -> list[str]:
    """Say what was dropped of a report of ``Drops``: a part a reason, with its count and first ``lines``.

    Of malformed lines also what is wrong with the first.
    """
    where = {REASONS[0]: report["malformed_lines"]} | report["dropped_lines"]
    files = {one["file"] for places in where.values() for one in places}
    said = []
    for reason, count in report["dropped"].items():
        if not count:
            continue
        places = [(f"{one['file']} " if len(files) > 1 else "") + str(one["line"]) for one in where[reason][:lines]]
        more = ", ..." if count > len(places) else ""
        why = where[reason][0].get("reason")
        because = "" if why is None else f": {why}" if count == 1 else f"; the first {why}"
        said.append(f"{count:,} {reason} (line{'s' * (count > 1)} {', '.join(places)}{more}{because})")
    return said
