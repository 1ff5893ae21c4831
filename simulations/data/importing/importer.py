"""Importing event files of any layout under a name, so that ``load_dataset`` finds them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import MICROS, Events, read_events
from fedrecall.client.events.store import EventStore
from fedrecall.client.events.tables import Progress
from fedrecall.protocol.errors import DataError
from fedrecall.protocol.files import write_json_atomic
from fedrecall.simulations.data.cache import check_folder, new_folder, sha256_of_files
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.items import ItemColumns, ItemFile, read_items
from fedrecall.simulations.data.order import order_of, warning_of
from fedrecall.simulations.data.places import imported_folder
from fedrecall.simulations.data.splits.repeats import remark_of, share_of_repeats

EVENTS, USERS, ITEMS, REPORT = "events.parquet", "users.parquet", "items.parquet", "report.json"
VERSION = 2


def import_files(spec: ImportSpec, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read, clean and store event files; returns the report (what was kept, dropped and why).

    Nothing is stored unless everything is. The same files with the same settings again change nothing;
    anything else under a name that exists raises DataError, unless ``replace``. Also raises DataError as
    ``read_table`` and ``clean_events`` do, and FedrecallError when the cache cannot be written.
    """
    sources = [path for path, _ in spec.parts()] + ([Path(spec.items_file)] if spec.items_file else [])
    digest = sha256_of_files(sources)
    folder = imported_folder(spec.name)
    if folder.exists() and not spec.replace:
        check_folder(folder, f"import {spec.name} again with --replace")
        report: dict[str, Any] = json.loads((folder / REPORT).read_bytes())
        same = report["sha256"] == digest and report["spec"] == json.loads(json.dumps(spec.as_dict()))
        if same and report.get("version") == VERSION:
            return report
        raise DataError(
            f"a data set {spec.name!r} of other files or settings exists: choose another --name or --replace"
        )
    items = _read_item_file(spec, progress)
    columns, layout = spec.columns(), spec.event_layout()
    events = clean_events(
        [
            read_events(path, columns=columns, layout=layout, part=part, progress=progress)
            for path, part in spec.parts()
        ],
        time_format=spec.time_format,
        event_weights=spec.event_weights,
        known_items=None if items is None else items.ids,
        category_separator=spec.category_separator,
        keep_duplicates=spec.keep_duplicates,
    )
    store = EventStore.from_columns(
        users=events.users,
        items=events.items,
        n_users=len(events.user_ids),
        n_items=len(events.item_ids),
        times=None if events.times is None else events.times // MICROS,
        weights=events.weights,
    )
    order, repeats = order_of(store, events.item_ids), share_of_repeats(store)
    told = [said for said in (warning_of(order), remark_of(repeats)) if said]
    report = {
        "version": VERSION,
        "name": spec.name,
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        "interactions": len(events.items),
        "type_names": list(events.type_names),
        "cleaning": events.report
        | {"order": order, "repeats": repeats, "warnings": [*events.report["warnings"], *told]},
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
    if report.get("version") != VERSION:
        raise DataError(f"{name} was imported by another version of fedrecall: import it again with --replace")
    table = pq.read_table(folder / EVENTS)
    stored = pq.read_table(folder / ITEMS)
    events = Events(
        users=table["user"].to_numpy(),
        items=table["item"].to_numpy(),
        times=table["time"].to_numpy() if "time" in table.column_names else None,
        types=table["type"].to_numpy(),
        weights=table["weight"].to_numpy(),
        parts=table["part"].to_numpy() if "part" in table.column_names else None,
        user_ids=tuple(pq.read_table(folder / USERS)["id"].to_pylist()),
        item_ids=tuple(stored["id"].to_pylist()),
        titles=tuple(stored["title"].to_pylist()),
        categories=tuple(tuple(c) for c in stored["categories"].to_pylist()),
        type_names=tuple(report["type_names"]),
        report=report["cleaning"],
    )
    items = None
    if report["items_report"] is not None:
        titles, categories = events.titles or (), events.categories or ()
        items = ItemFile(ids=events.item_ids, titles=titles, categories=categories, report=report["items_report"])
    return events, items, report["sha256"]


def _read_item_file(spec: ImportSpec, progress: Progress | None) -> ItemFile | None:
    if spec.items_file is None or spec.item_id is None:
        return None
    columns = ItemColumns(
        item=spec.item_id,
        title=spec.title,
        categories=spec.categories,
        category_separator=spec.category_separator,
    )
    return read_items(Path(spec.items_file), columns, spec.item_layout(), progress)


def _write(folder: Path, events: Events, items: ItemFile | None, report: dict[str, Any]) -> None:
    columns = {
        "user": events.users,
        "item": events.items,
        "type": events.types,
        "weight": events.weights,
    }
    if events.times is not None:
        columns["time"] = events.times
    if events.parts is not None and events.parts.any():
        columns["part"] = events.parts
    pq.write_table(pa.table({k: np.ascontiguousarray(v) for k, v in columns.items()}), folder / EVENTS)
    pq.write_table(pa.table({"id": pa.array(events.user_ids, pa.string())}), folder / USERS)
    ids = pa.array(events.item_ids, pa.string())
    known = items if items is not None else events
    titles = known.titles or [""] * len(ids)
    categories = known.categories or [()] * len(ids)
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
