"""The data of a run: named by its configuration, or kept in its folder where a program handed them over in memory.

Loads nothing that learns.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedrecall.client.events.store import EventStore
from fedrecall.client.events.tables import Progress
from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import read_bounded, sha256_of, write_atomic, write_json_atomic
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Catalogue, Dataset
from fedrecall.simulations.data.registry import load_dataset

KEPT = Path("private") / "data"
_EVENTS, _ITEMS, _USERS, _ABOUT = "events.parquet", "items.parquet", "users.parquet", "dataset.json"
_GROUP = "group "
_MAX_BYTES = 64 << 30


def load_data(config: RunConfig, progress: Progress) -> Dataset:
    """Return the data set that a configuration names."""
    return load_dataset(
        config.data.name,
        data_path=config.data.path,
        catalogue=config.data.catalogue,
        k_core=config.data.k_core,
        seed=config.seed,
        progress=progress,
    )


def data_of(folder: Path, config: RunConfig, progress: Progress) -> Dataset:
    """Return the data of the run in ``folder``: those that it keeps, unless its configuration says where others are.

    Raises:
        CorruptArtefact: what is kept is not what was stored.
        DataError: as ``load_dataset``.
    """
    if config.data.path is None and (folder / KEPT / _ABOUT).is_file():
        return _kept(folder / KEPT)
    return load_data(config, progress)


def keep_data(folder: Path, dataset: Dataset) -> None:
    """Keep a data set in a run's folder, under ``private/`` and readable by its owner alone; once.

    Raises FedrecallError when it cannot be written.
    """
    place = folder / KEPT
    if (place / _ABOUT).is_file():
        return
    events, catalogue = dataset.events, dataset.catalogue
    columns: dict[str, Any] = {"item": events.items, "type": events.types, "weight": events.weights}
    columns |= {} if events.times is None else {"time": events.times}
    columns |= {} if dataset.parts is None else {"part": dataset.parts}
    items = {
        "id": pa.array(catalogue.ids, pa.string()),
        "title": pa.array(catalogue.titles, pa.string()),
        "categories": pa.array([list(c) for c in catalogue.categories], pa.list_(pa.string())),
    }
    users = {"id": pa.array(dataset.user_ids, pa.string()), "events": events.counts()}
    users |= {f"{_GROUP}{attribute}": pa.array(labels, pa.string()) for attribute, labels in dataset.groups.items()}
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FedrecallError(f"{place} cannot be made ({error.strerror}): choose another folder") from error
    files = {_EVENTS: _parquet(columns), _ITEMS: _parquet(items), _USERS: _parquet(users)}
    for name, data in files.items():
        write_atomic(place / name, data, mode=0o600)
    about = {
        "name": dataset.name,
        "source": catalogue.source,
        "type_names": list(events.type_names),
        "cleaning": dataset.cleaning,
        "sha256": dataset.sha256,
        "files": {name: sha256_of(data) for name, data in files.items()},
    }
    write_json_atomic(place / _ABOUT, about, mode=0o600)


def _kept(place: Path) -> Dataset:
    try:
        about = json.loads(read_bounded(place / _ABOUT, max_bytes=_MAX_BYTES))
        tables = {name: _table(place / name, sha256) for name, sha256 in about["files"].items()}
        events, items, users = tables[_EVENTS], tables[_ITEMS], tables[_USERS]
        ids = tuple(items["id"].to_pylist())
        groups = [name for name in users.column_names if name.startswith(_GROUP)]
        return Dataset(
            name=about["name"],
            catalogue=Catalogue(
                ids=ids,
                titles=tuple(items["title"].to_pylist()),
                categories=tuple(tuple(row) for row in items["categories"].to_pylist()),
                source=about["source"],
            ),
            user_ids=tuple(users["id"].to_pylist()),
            events=EventStore(
                offsets=np.concatenate([[0], np.cumsum(users["events"].to_numpy())]),
                items=events["item"].to_numpy(),
                times=events["time"].to_numpy() if "time" in events.column_names else None,
                types=events["type"].to_numpy(),
                weights=events["weight"].to_numpy(),
                n_items=len(ids),
                type_names=tuple(about["type_names"]),
            ),
            groups={name.removeprefix(_GROUP): tuple(users[name].to_pylist()) for name in groups},
            cleaning=about["cleaning"],
            sha256=about["sha256"],
            parts=events["part"].to_numpy() if "part" in events.column_names else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise CorruptArtefact(f"{place / _ABOUT} cannot be read ({error}): run again on the same data") from error


def _table(path: Path, sha256: str) -> pa.Table:
    data = read_bounded(path, max_bytes=_MAX_BYTES)
    if sha256_of(data) != sha256:
        raise CorruptArtefact(f"{path} is not the file that was stored there: run again on the same data")
    return pq.read_table(io.BytesIO(data))


def _parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()
