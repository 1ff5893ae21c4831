"""Importing event files of any layout under a name, so that ``load_dataset`` finds them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import EventColumns, Events, read_events
from fedrecall.client.events.tables import Column, Layout, Progress
from fedrecall.protocol.errors import DataError
from fedrecall.protocol.files import write_json_atomic
from fedrecall.simulations.data.cache import check_folder, new_folder, sha256_of_files
from fedrecall.simulations.data.items import ItemColumns, ItemFile, read_items
from fedrecall.simulations.data.known import KNOWN
from fedrecall.simulations.data.places import NAME, imported_folder

EVENTS, USERS, ITEMS, REPORT = "events.parquet", "users.parquet", "items.parquet", "report.json"


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """What ``fedrecall data import`` is told; columns by name or 1-based number.

    Attributes:
        files: event files, read in this order.
        name: the data set's name from now on.
        user, item, time, event, weight: columns of the event files; ``None`` where they have none. Without
            times, file order is time order.
        time_format: as ``fedrecall.client.events.times.parse_times``.
        event_weights: weight of each event type; types outside the map are dropped and reported.
        separator, encoding, header: as ``fedrecall.client.events.tables.Layout``.
        items_file: the public catalogue; events of other items are dropped and reported.
        item_id, title, categories: its columns. It has a header if ``item_id`` is a name, else as ``header``
            says; its separator is found by itself.
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
    separator: str | None = None
    encoding: str = "utf-8"
    header: bool = True
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
        if (self.items_file is None) != (self.item_id is None):
            raise DataError("--items and --item-id go together: give both, or neither")
        of_items = (self.title, self.categories, self.items_encoding)
        if self.items_file is None and any(value is not None for value in of_items):
            raise DataError("--title, --categories, --items-encoding are of an item file: give --items and --item-id")
        if self.event_weights is not None and self.event is None:
            raise DataError("--event-weight needs the column of event types: give --event")
        if self.time_format is not None and self.time is None:
            raise DataError("--time-format needs the column of times: give --time")
        if not self.category_separator:
            raise DataError("the category separator is empty: give one character or more")

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the result as plain JSON data; file names without their folders."""
        plain = {k: v for k, v in vars(self).items() if k != "replace"}
        return plain | {
            "files": [Path(f).name for f in self.files],
            "items_file": None if self.items_file is None else Path(self.items_file).name,
            "event_weights": None if self.event_weights is None else dict(self.event_weights),
        }


def import_files(spec: ImportSpec, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read, clean and store event files; returns the report (what was kept, dropped and why).

    Nothing is stored unless everything is. The same files with the same settings again change nothing;
    anything else under a name that exists raises DataError, unless ``replace``. Also raises DataError as
    ``read_table`` and ``clean_events`` do, and FedrecallError when the cache cannot be written.
    """
    files = tuple(Path(f) for f in spec.files)
    sources = files if spec.items_file is None else (*files, Path(spec.items_file))
    digest = sha256_of_files(sources)
    folder = imported_folder(spec.name)
    if folder.exists() and not spec.replace:
        check_folder(folder, f"import {spec.name} again with --replace")
        report: dict[str, Any] = json.loads((folder / REPORT).read_bytes())
        if report["sha256"] == digest and report["spec"] == json.loads(json.dumps(spec.as_dict())):
            return report
        raise DataError(
            f"a data set {spec.name!r} of other files or settings exists: choose another --name or --replace"
        )
    items = _read_item_file(spec, progress)
    layout = Layout(separator=spec.separator, encoding=spec.encoding, header=spec.header)
    columns = EventColumns(user=spec.user, item=spec.item, time=spec.time, event=spec.event, weight=spec.weight)
    events = clean_events(
        [read_events(path, columns=columns, layout=layout, progress=progress) for path in files],
        time_format=spec.time_format,
        event_weights=spec.event_weights,
        known_items=None if items is None else items.ids,
    )
    report = {
        "name": spec.name,
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        "interactions": len(events.items),
        "type_names": list(events.type_names),
        "cleaning": events.report,
        "items_report": None if items is None else items.report,
        "sha256": digest,
        "spec": spec.as_dict(),
    }
    with new_folder(folder) as fresh:
        _write(fresh, events, items, report)
    return report


def read_imported(name: str) -> tuple[Events, ItemFile | None, str]:
    """Return the events, items and source hash of an imported data set.

    Raises CorruptArtefact when the cached files are not those that were stored.
    """
    folder = imported_folder(name)
    check_folder(folder, f"import {name} again with --replace")
    report = json.loads((folder / REPORT).read_bytes())
    table = pq.read_table(folder / EVENTS)
    stored = pq.read_table(folder / ITEMS)
    items = None
    if report["items_report"] is not None:
        items = ItemFile(
            ids=tuple(stored["id"].to_pylist()),
            titles=tuple(stored["title"].to_pylist()),
            categories=tuple(tuple(c) for c in stored["categories"].to_pylist()),
            report=report["items_report"],
        )
    events = Events(
        users=table["user"].to_numpy(),
        items=table["item"].to_numpy(),
        times=table["time"].to_numpy() if "time" in table.column_names else None,
        types=table["type"].to_numpy(),
        weights=table["weight"].to_numpy(),
        user_ids=tuple(pq.read_table(folder / USERS)["id"].to_pylist()),
        item_ids=tuple(stored["id"].to_pylist()),
        type_names=tuple(report["type_names"]),
        report=report["cleaning"],
    )
    return events, items, report["sha256"]


def _read_item_file(spec: ImportSpec, progress: Progress | None) -> ItemFile | None:
    if spec.items_file is None or spec.item_id is None:
        return None
    named = not str(spec.item_id).isdecimal()
    return read_items(
        Path(spec.items_file),
        ItemColumns(
            item=spec.item_id,
            title=spec.title,
            categories=spec.categories,
            category_separator=spec.category_separator,
        ),
        Layout(encoding=spec.items_encoding or spec.encoding, header=named or spec.header),
        progress,
    )


def _write(folder: Path, events: Events, items: ItemFile | None, report: dict[str, Any]) -> None:
    columns = {
        "user": events.users,
        "item": events.items,
        "type": events.types,
        "weight": events.weights,
    }
    if events.times is not None:
        columns["time"] = events.times
    pq.write_table(pa.table({k: np.ascontiguousarray(v) for k, v in columns.items()}), folder / EVENTS)
    pq.write_table(pa.table({"id": pa.array(events.user_ids, pa.string())}), folder / USERS)
    ids = pa.array(events.item_ids, pa.string())
    titles = items.titles if items is not None else [""] * len(ids)
    categories = items.categories if items is not None else [()] * len(ids)
    pq.write_table(
        pa.table(
            {
                "id": ids,
                "title": pa.array(titles, pa.string()),
                "categories": pa.array([list(c) for c in categories], pa.list_(pa.string())),
            }
        ),
        folder / ITEMS,
    )
    write_json_atomic(folder / REPORT, report)
