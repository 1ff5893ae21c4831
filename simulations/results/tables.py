"""The results of a finished run as Arrow tables, which pandas, polars and others read."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import read_bounded
from fedrecall.simulations.runs.folder import PER_USER
from fedrecall.simulations.tracking.scalars import scalars

_MAX_BYTES = 1 << 30


def quality(run: Mapping[str, Any]) -> pa.Table:
    """Return one row a recommender: ``who`` and every metric on the test events, null where it has none."""
    rows = {"this run": run["metrics"], **{who: row for who, row in run["baselines"].items() if row}}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = {name: pa.array([row.get(name) for row in rows.values()], pa.float64()) for name in names}
    return pa.table({"who": pa.array(rows, pa.string()), **columns})


def privacy(run: Mapping[str, Any]) -> pa.Table:
    """Return one row an adversary: its epsilon, null where nothing bounds it, and all that the figure depends on."""
    return pa.Table.from_pylist([{"unit": run["privacy"]["unit"], **row} for row in run["privacy"]["adversaries"]])


def history(run: Mapping[str, Any]) -> pa.Table:
    """Return one row a validation during training: round, metrics, and epsilon so far against each adversary."""
    rows = [scalars(row, all=True) for row in run["history"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names or ["round"]})


def people(folder: Path, user_ids: tuple[str, ...]) -> pa.Table:
    """Return one row a tested user: ``user``, this run's metrics, and those of its rivals as ``rival/metric``.

    Raises UsageError where the folder has no ``private/``.
    """
    path = folder / PER_USER
    if not path.is_file():
        raise UsageError(f"{folder} has no {PER_USER}: a copy without private/ knows nothing of single people")
    with np.load(io.BytesIO(read_bounded(path, max_bytes=_MAX_BYTES)), allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    users = pa.array(user_ids, pa.string()).take(columns.pop("users"))
    return pa.table({"user": users, **columns})
