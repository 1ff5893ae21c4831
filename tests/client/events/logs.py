"""Logs made for tests: rows that are known, written down in whatever way is tried."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import EventColumns, Events, read_events
from fedrecall.client.events.tables import Layout

NAMED = EventColumns(user="user", item="item", time="time")
START = 1_600_000_000

Row = tuple[str, str, int]


def made(rng: np.random.Generator, count: int = 40) -> list[Row]:
    """Return rows (user, item, seconds since 1970) in order of time, no two alike."""
    times = START + np.cumsum(rng.integers(1, 10**6, count))
    return [(f"u{rng.integers(7)}", f"i{rng.integers(20)}", int(t)) for t in times]


def delimited(rows: Sequence[Sequence[object]], separator: str = ",", header: str | None = "user,item,time") -> str:
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([*([header.replace(",", separator)] if header else []), *lines]) + "\n"


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) + "\n" for row in rows)


def clean(*paths: Path, columns: EventColumns = NAMED, layout: Layout | None = None, **settings: Any) -> Events:
    return clean_events([read_events(path, columns=columns, layout=layout) for path in paths], **settings)


def rows_of(events: Events) -> list[Row]:
    """Return clean events as the rows that they were made from."""
    times = [0] * len(events.items) if events.times is None else (events.times // 10**6).tolist()
    return [
        (events.user_ids[u], events.item_ids[i], t)
        for u, i, t in zip(events.users.tolist(), events.items.tolist(), times, strict=True)
    ]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def dropped(events: Events) -> dict[str, int]:
    return {reason: count for reason, count in events.report["dropped"].items() if count}


def lines_of(events: Events, reason: str) -> list[int]:
    if reason == "malformed line":
        return [one["line"] for one in events.report["malformed_lines"]]
    return [one["line"] for one in events.report["dropped_lines"].get(reason, [])]
