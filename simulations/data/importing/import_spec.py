"""What ``fedrecall data import`` is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrecall.client.events.events import EventColumns
from fedrecall.client.events.spelling import MISSING
from fedrecall.client.events.tables import Column, Layout, refuse_shared
from fedrecall.client.events.times import check_pattern
from fedrecall.client.events.where import Condition
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.known import KNOWN
from fedrecall.simulations.data.places import NAME


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """What to import, and how; columns by name or 1-based number.

    Attributes:
        files: event files, read in this order.
        validation_files, test_files: files of events that are held out for it, read after ``files``.
        name: the data set's name from now on.
        user, item, time, event, weight: columns of the event files; ``None`` where they have none. Without
            times, file order is time order.
        time_format: as ``fedrecall.client.events.times.parse_times``.
        event_weights: weight of each event type; types outside the map are dropped and reported.
        where: conditions that an event must fulfil; the others are dropped and reported.
        keep_duplicates: events that agree in user, item, time and type each count, as many as one file has.
        separator, encoding, header, item_separator, missing: as ``fedrecall.client.events.tables.Layout``.
        layout: ``lists`` (one user's items a line), ``rows`` (one event a line), ``None`` to find out.
        items_file: the public catalogue; events of other items are dropped and reported.
        item_id: its column of identifiers. It has a header if that is a name, else as ``header`` says; its separator
            is found by itself.
        title, categories: columns of the catalogue, or, without one, of the event files: an item has the first that
            its events give.
        items_encoding: of the catalogue, where it is not ``encoding``.
        category_separator: what separates the categories of one item.
        replace: overwrite another data set of this name.
    """

    files: tuple[Path, ...]
    name: str
    user: Column
    item: Column
    time: Column | None = None
    time_format: str | None = None
    event: Column | None = None
    event_weights: Mapping[str, float] | None = None
    weight: Column | None = None
    where: tuple[Condition, ...] = ()
    keep_duplicates: bool = False
    separator: str | None = None
    encoding: str | None = None
    header: bool = True
    layout: str | None = None
    item_separator: str | None = None
    missing: tuple[str, ...] = MISSING
    validation_files: tuple[Path, ...] = ()
    test_files: tuple[Path, ...] = ()
    items_file: Path | None = None
    items_encoding: str | None = None
    item_id: Column | None = None
    title: Column | None = None
    categories: Column | None = None
    category_separator: str = "|"
    replace: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be imported as asked."""
        if not NAME.fullmatch(self.name):
            raise DataError(f"--name is {self.name!r}: use 1 to 64 letters, digits, dots, dashes, underscores")
        if self.name in KNOWN or self.name == "synthetic":
            raise DataError(f"--name is {self.name!r}, which fedrecall knows already: choose another")
        if not self.files:
            raise DataError("no file to import: name one or more")
        if bool(self.validation_files) != bool(self.test_files):
            raise DataError("--validation and --test go together: give a file for each, or for neither")
        if (self.items_file is None) != (self.item_id is None):
            raise DataError("--items and --item-id go together: give both, or neither")
        if self.items_file is None and self.items_encoding is not None:
            raise DataError("--items-encoding is of an item file: give --items and --item-id")
        if self.event_weights is not None and self.event is None:
            raise DataError("--event-weight needs the column of event types: give --event")
        if self.time_format is not None and self.time is None:
            raise DataError("--time-format needs the column of times: give --time")
        if self.time_format is not None:
            check_pattern(self.time_format)
        for name, value in (("category", self.category_separator), ("item", self.item_separator)):
            if value == "":
                raise DataError(f"the {name} separator is empty: give one character or more")
        wanted = self.columns().wanted()
        refuse_shared(wanted, [str(column) for column in wanted.values()])
        if self.layout not in (None, "rows", "lists"):
            raise DataError(f"--layout is {self.layout!r}: choose 'rows' (one event a line) or 'lists'")
        if self.layout == "lists" and (other := wanted.keys() - {"user", "item"}):
            raise DataError(f"--layout lists has a user and items a line, in their order: leave out --{min(other)}")

    def columns(self) -> EventColumns:
        """Return where the event files hold what."""
        own = self.items_file is None
        return EventColumns(
            user=self.user,
            item=self.item,
            time=self.time,
            event=self.event,
            weight=self.weight,
            title=self.title if own else None,
            categories=self.categories if own else None,
            where=self.where,
        )

    def parts(self) -> list[tuple[Path, int]]:
        """Return every event file with its part: 0 training, or all; 1 validation; 2 test."""
        given = (self.files, self.validation_files, self.test_files)
        return [(Path(file), part) for part, files in enumerate(given) for file in files]

    def event_layout(self) -> Layout:
        """Return how the event files are written."""
        return Layout(
            format="lists" if self.layout == "lists" else None,
            separator=self.separator,
            encoding=self.encoding,
            header=self.header,
            item_separator=self.item_separator,
            missing=self.missing,
            rows=self.layout == "rows",
        )

    def item_layout(self) -> Layout:
        """Return how the catalogue is written."""
        named = not str(self.item_id).isdecimal()
        return Layout(encoding=self.items_encoding or self.encoding, header=named or self.header, missing=self.missing)

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the result as plain JSON data; file names without their folders."""
        plain = {k: v for k, v in vars(self).items() if k != "replace"}
        return plain | {
            **{key: [Path(f).name for f in plain[key]] for key in ("files", "validation_files", "test_files")},
            "items_file": None if self.items_file is None else Path(self.items_file).name,
            "event_weights": None if self.event_weights is None else dict(self.event_weights),
            "where": [str(condition) for condition in self.where],
            "missing": list(self.missing),
        }
