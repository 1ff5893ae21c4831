"""A device's events on its own disk: SQLite in WAL mode, readable by its user alone.

Adding is one transaction: a kill leaves all of a batch or nothing of it. An event that is there already is not added
again: what tells events apart is item, type, time to the microsecond, and which one of several that agree in all three
it is.
"""

import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from fedrecall.client.events.events import MICROS, Events
from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import CorruptArtefact, DataError, FedrecallError

VERSION = 2
_APPLICATION = 0x46524543
_WAIT_S = 30.0
_STRENGTHS = (1e-30, 1e30)
_SCHEMA = """
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    item TEXT NOT NULL,
    time INTEGER,
    type TEXT NOT NULL,
    strength REAL NOT NULL CHECK (strength > 0),
    occurrence INTEGER NOT NULL
);
CREATE UNIQUE INDEX once ON events (item, type, ifnull(time, -1), occurrence);
"""


class Event(NamedTuple):
    """One event; ``time`` is seconds since 1970, ``None`` throughout a store whose events came without."""

    item: str
    time: float | None
    type: str
    strength: float


class EventDatabase:
    """The events of one device. Close it, or use it as a context; any number of processes may have it open."""

    def __init__(self, path: Path) -> None:
        """Open the database at ``path``.

        Raises:
            CorruptArtefact: there is none, it is another program's, or of another version.
            FedrecallError: the disk failed, or others kept it locked.
        """
        self._path = Path(path)
        if not self._path.is_file():
            raise CorruptArtefact(f"{path} is missing: restore it, or forget this device and enrol anew")
        with _said(self._path):
            self._connection = _connected(self._path)
            try:
                found = self._pragma("application_id"), self._pragma("user_version")
                if found != (_APPLICATION, VERSION):
                    raise CorruptArtefact(
                        f"{path} is no event store of version {VERSION} (it says {found}): another fedrecall made it, "
                        "older or newer than this, or another program"
                    )
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def create(cls, path: Path) -> "EventDatabase":
        """Open the database at ``path``, made with mode 600 where there is none; raises as opening does."""
        path = Path(path)
        with _said(path):
            # SQLite gives its own files beside it the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = _connected(path)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                fresh = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
                if fresh:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
            finally:
                connection.close()
        return cls(path)

    def add(self, events: Events) -> int:
        """Add what is new of ``events``, all or nothing, on disk when this returns; returns how many were new.

        Raises:
            DataError: these events have times and those in the store have none, or the other way round.
            FedrecallError: the disk failed; nothing was added.
        """
        rows = _rows(events)
        other = "IS NOT NULL" if events.times is None else "IS NULL"
        with _said(self._path):
            before = self._connection.total_changes
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._connection.execute(f"SELECT 1 FROM events WHERE time {other} LIMIT 1").fetchone():
                    said = ("these have none", "name their --time column")
                    said = said if events.times is None else ("those in the store have none", "ingest without --time")
                    raise DataError(f"events with and without times have no common order; {said[0]}: {said[1]}")
                self._connection.executemany(
                    "INSERT INTO events (item, time, type, strength, occurrence) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    rows,
                )
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return self._connection.total_changes - before

    def events(self) -> Iterator[Event]:
        """Yield all events, oldest first; of equal times, and without times, in the order of ingestion."""
        with _said(self._path):
            for item, time, kind, strength in self._connection.execute(
                "SELECT item, time, type, strength FROM events ORDER BY time, number"
            ):
                if not isinstance(time, int | None):
                    raise CorruptArtefact(f"{self._path} holds an event that was not ingested: restore it")
                yield Event(item, None if time is None else time / MICROS, kind, strength)

    def store(self, items: Sequence[str], event_weights: Mapping[str, float]) -> EventStore:
        """Return the events of known items and types as a store of one device.

        Args:
            items: the catalogue, in item order.
            event_weights: the types that count, in the order of their numbers, and the factor of each.

        Raises:
            CorruptArtefact: the database holds what ``add`` never wrote.
        """
        places, types = {item: place for place, item in enumerate(items)}, list(event_weights)
        numbers = {name: number for number, name in enumerate(types)}
        kept = [event for event in self.events() if event.item in places and event.type in numbers]
        factors = np.array([event_weights[event.type] for event in kept], dtype=np.float64)
        timed = [event.time for event in kept if event.time is not None]
        try:
            strengths = np.array([event.strength for event in kept], dtype=np.float64)
            times = np.floor(np.array(timed, dtype=np.float64)).astype(np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise CorruptArtefact(f"{self._path} holds an event that was not ingested: restore it") from error
        # A strength is any number above 0: none may become one that training cannot bear.
        with np.errstate(over="ignore", under="ignore"):
            weights = np.clip(strengths * factors, *_STRENGTHS).astype(np.float32)
        if not ((strengths > 0) & np.isfinite(strengths)).all() or len(timed) not in (0, len(kept)):
            raise CorruptArtefact(f"{self._path} holds an event that was not ingested: restore it")
        return EventStore(
            offsets=np.array([0, len(kept)], dtype=np.int64),
            items=np.array([places[event.item] for event in kept], dtype=np.int32),
            times=times if timed else None,
            types=np.array([numbers[event.type] for event in kept], dtype=np.int8),
            weights=weights,
            n_items=len(items),
            type_names=tuple(types),
        )

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def __enter__(self) -> "EventDatabase":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        # A commit that returned survives a power cut; what is deleted is overwritten.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def _rows(events: Events) -> list[tuple[str, int | None, str, float, int]]:
    """Return the rows of clean events, each with its occurrence: the how-manieth it is of those that agree with it."""
    seen: Counter[tuple[str, int | None, str]] = Counter()
    times = [None] * len(events.items) if events.times is None else events.times.tolist()
    rows = []
    for item, time, kind, weight in zip(
        events.items.tolist(), times, events.types.tolist(), events.weights.tolist(), strict=True
    ):
        if not 0.0 < weight < math.inf:
            raise DataError(f"an event's strength is {weight}: clean the events first")
        agreeing = events.item_ids[item], time, events.type_names[kind]
        rows.append((*agreeing, weight, seen[agreeing]))
        seen[agreeing] += 1
    return rows


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what SQLite says into errors with a remedy; none of its texts holds a value of an event."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise FedrecallError(
            f"{path} cannot be used ({error}); nothing was added: free disk space, check rights, or try again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise CorruptArtefact(f"{path} is damaged ({error}): restore it, or forget this device") from error
    except OSError as error:
        raise FedrecallError(f"{path} cannot be made ({error.strerror}): check the folder's permissions") from error
