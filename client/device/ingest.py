"""From files of events to a device's store: read, cleaned as everywhere, and added once, however often they are given.

The store holds events of the catalogue and of the types that the invitation names; all others are counted and dropped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrecall.client.device.enrolment import EVENTS, enrolled
from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.events import EventColumns, read_events
from fedrecall.client.events.tables import Layout, Progress
from fedrecall.protocol.errors import UsageError


def ingest(
    folder: Path,
    sources: Sequence[Path],
    *,
    columns: EventColumns,
    layout: Layout | None = None,
    time_format: str | None = None,
    keep_duplicates: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Add the events of ``sources`` to the store of the device in ``folder``, all of them or, if anything fails, none.

    Args:
        folder: of an enrolled device.
        sources: files of any layout that ``read_table`` knows.
        columns: where they hold what; a user column has no place here.
        layout: how they are written; found out if absent.
        time_format: as for ``parse_times``.
        keep_duplicates: events that agree in item, type and time each count, as many as one file has.
        progress: told how far reading is.

    Returns:
        ``read``, ``clean`` (of known items and types, each once), ``added`` (those that were new), ``dropped`` by
        reason, ``malformed_lines`` and ``dropped_lines`` (the first of each), ``unknown_event_types``, ``files`` (how
        each was read), ``times`` (the first and the last), ``warnings``, ``stored`` (events in the store now).

    Raises:
        DataError: others may read the folder; as reading and cleaning do, and as ``EventDatabase.add`` does.
        UsageError: no device is enrolled in it; several event types count, and no column tells them apart.
        FedrecallError: the disk failed.
    """
    invitation = enrolled(folder)
    types = dict.fromkeys(invitation.event_weights, 1.0)
    if columns.event is None and len(types) > 1:
        raise UsageError(f"events are of {len(types)} types ({', '.join(types)}): name their column with --event")
    raws = [
        read_events(path, columns=columns, layout=layout, event_name=next(iter(types)), progress=progress)
        for path in sources
    ]
    # What a type weighs is applied when the store is read: it may change, the events do not.
    events = clean_events(
        raws,
        time_format=time_format,
        event_weights=types,
        known_items=invitation.items,
        keep_duplicates=keep_duplicates,
    )
    with EventDatabase(folder / EVENTS) as database:
        added = database.add(events)
        stored = sum(1 for _ in database.events())
    report = events.report
    told = (
        "dropped",
        "malformed_lines",
        "dropped_lines",
        "unknown_event_types",
        "filters",
        "files",
        "times",
        "warnings",
    )
    return {
        "read": report["rows_read"],
        "clean": report["kept"],
        "added": added,
        "stored": stored,
        **{name: report[name] for name in told},
    }
