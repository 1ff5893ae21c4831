"""Everybody's list of a finished run, and what was held out, as Arrow tables and as files that other programs read.

In a simulation alone: a deployment has no such table, for every list is made on its own device and stays there.
"""

import io
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.simulations.runs.inspect import Finished, lists_of
from fedrecall.simulations.training.world import Progress

_AT_ONCE = 512
_NO_SPACE = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")
"""Characters that stay as they are where fields are separated by spaces; others become their percent codes."""


def recommend_all(opened: Finished, k: int, progress: Progress) -> pa.Table:
    """Return the ``k`` best items of every device, its own left out unless the run recommends repeats.

    One row an item, best first: ``user``, ``place`` from 1, ``item``, ``title``, ``score``; fewer than ``k`` where no
    more are left. Each list is what ``recommend`` says of that user; scores may differ in their last bits.
    """
    if k < 1:
        raise UsageError(f"k is {k}: ask for at least 1 item")
    dataset, total = opened.dataset, opened.dataset.events.n_users
    users, places, items, scores = [], [], [], []
    for start in range(0, total, _AT_ONCE):
        batch = np.arange(start, min(start + _AT_ONCE, total))
        found, score = lists_of(opened, batch, k)
        row, place = np.nonzero(found >= 0)
        users.append(batch[row])
        places.append(place + 1)
        items.append(found[row, place])
        scores.append(score[row, place])
        progress("recommend", int(batch[-1]) + 1, total)
    item = np.concatenate(items)
    return pa.table(
        {
            "user": pa.array(dataset.user_ids, pa.string()).take(np.concatenate(users)),
            "place": pa.array(np.concatenate(places), pa.int32()),
            "item": pa.array(dataset.catalogue.ids, pa.string()).take(item),
            "title": pa.array(dataset.catalogue.titles, pa.string()).take(item),
            "score": pa.array(np.concatenate(scores), pa.float32()),
        }
    )


def held_out(opened: Finished) -> pa.Table:
    """Return what the test hid: one row an event of a tested device, ``user`` and ``item``, each pair once."""
    test, dataset = opened.split.test, opened.dataset
    pairs = np.unique(np.stack([np.repeat(test.users, np.diff(test.offsets)), test.items]), axis=1)
    return pa.table(
        {
            "user": pa.array(dataset.user_ids, pa.string()).take(pairs[0]),
            "item": pa.array(dataset.catalogue.ids, pa.string()).take(pairs[1]),
        }
    )


def write_lists(table: pa.Table, path: Path) -> None:
    """Write what ``recommend_all`` returned: ``.parquet``, ``.trec`` (a run of trec_eval) or ``.json`` (one of ranx).

    Those programs order items by score, so that in their files equal scores are set apart by the last bit, in the order
    of the list. White space in an identifier becomes its percent code in ``.trec``. Readable by its owner alone.

    Raises:
        UsageError: another ending.
        FedrecallError: the file cannot be written.
    """
    _write(table, path, _trec_run, lambda rows: _nested(rows, falling(rows).tolist()))


def write_held_out(table: pa.Table, path: Path) -> None:
    """Write what ``held_out`` returned: ``.parquet``, ``.trec`` or ``.json``, as relevance judgements."""
    _write(table, path, _trec_judgements, lambda rows: _nested(rows, [1] * len(rows)))


def check_ending(path: Path) -> None:
    """Raise UsageError unless a file of this name can be written."""
    if path.suffix not in (".parquet", ".trec", ".json"):
        raise UsageError(f"{path} ends in {path.suffix or 'nothing'}: choose .parquet, .trec or .json")


def _write(
    table: pa.Table, path: Path, trec: Callable[[pa.Table], str], nested: Callable[[pa.Table], dict[str, object]]
) -> None:
    check_ending(path)
    if path.suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink)
        write_atomic(path, sink.getvalue(), mode=0o600)
    elif path.suffix == ".trec":
        write_atomic(path, trec(table).encode(), mode=0o600)
    else:
        write_atomic(path, (dumps(nested(table)) + "\n").encode(), mode=0o600)


def _trec_run(table: pa.Table) -> str:
    rows = zip(_words(table["user"]), _words(table["item"]), table["place"].to_pylist(), falling(table), strict=True)
    return "".join(f"{user} Q0 {item} {place} {score} fedrecall\n" for user, item, place, score in rows)


def _trec_judgements(table: pa.Table) -> str:
    return "".join(f"{user} 0 {item} 1\n" for user, item in zip(*map(_words, table.columns), strict=True))


def _nested(table: pa.Table, values: list[float] | list[int]) -> dict[str, object]:
    found: dict[str, dict[str, float]] = {}
    for user, item, value in zip(table["user"].to_pylist(), table["item"].to_pylist(), values, strict=True):
        found.setdefault(user, {})[item] = value
    return dict(found)


def _words(column: pa.ChunkedArray) -> list[str]:
    return [quote(text, safe=_NO_SPACE) for text in column.to_pylist()]


def falling(table: pa.Table) -> Float32[np.ndarray, "rows"]:
    """Return the scores, each below the one before it in its list, by the last bit where they were equal."""
    places = table["place"].to_numpy()
    scores: Float32[np.ndarray, "rows"] = table["score"].to_numpy().copy()
    for row in np.flatnonzero((places[1:] > 1) & (scores[1:] >= scores[:-1])) + 1:
        # What was moved may meet the next one: go on to the end of such a stretch.
        while row < len(scores) and places[row] > 1 and scores[row] >= scores[row - 1]:
            scores[row] = np.nextafter(scores[row - 1], np.float32(-np.inf))
            row += 1
    return scores
