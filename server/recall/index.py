"""The FAISS index over an item table, where a server searches. Devices search the table itself.

FAISS is imported in this file alone, and its bytes never leave the server: ``faiss.read_index`` loads about
half of randomly damaged files without complaint, so the hash is checked before a byte is parsed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
from jaxtyping import Float32, Int32, Integer

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import read_bounded, sha256_of, write_atomic
from fedrecall.protocol.item_table import ItemTable

Kind = Literal["flat", "sq8", "hnsw", "ivf"]
Progress = Callable[[str, int, int], None]

MAX_BYTES = 64 << 30
_FLAT_UP_TO, _SQ8_UP_TO = 50_000, 500_000
_ADD_ROWS = 65_536
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 100, 512
_IVF_PROBED = 0.25  # share of the lists that a search visits
_TRAIN_PER_LIST = 64
_CLASSES: dict[str, Kind] = {
    "IndexFlat": "flat",
    "IndexFlatIP": "flat",
    "IndexScalarQuantizer": "sq8",
    "IndexHNSWFlat": "hnsw",
    "IndexIVFFlat": "ivf",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RecallIndex:
    """A FAISS index by inner product; entry ``i`` is item ``i`` of the table it was built from."""

    kind: Kind
    index: Any

    def __len__(self) -> int:
        """Return the number of items."""
        return int(self.index.ntotal)


def build_index(table: ItemTable, kind: Kind | None = None, *, progress: Progress | None = None) -> RecallIndex:
    """Index the dequantised vectors of ``table``.

    ``flat`` is exact and costs 4 bytes a dimension, ``sq8`` scans 1 byte a dimension, ``hnsw`` and ``ivf``
    visit a part of the items. ``None`` is ``flat`` up to 50,000 items, ``sq8`` up to 500,000, then ``hnsw``.

    Raises:
        FedrecallError: ``kind`` is none of these.
    """
    if kind is None:
        kind = "flat" if len(table) <= _FLAT_UP_TO else "sq8" if len(table) <= _SQ8_UP_TO else "hnsw"
    vectors = table.vectors()
    index = _empty(kind, len(table), table.dim)
    if not index.is_trained:
        index.train(vectors)
    for start in range(0, len(vectors), _ADD_ROWS):
        index.add(vectors[start : start + _ADD_ROWS])
        if progress is not None:
            progress("index", min(start + _ADD_ROWS, len(vectors)), len(vectors))
    return RecallIndex(kind=kind, index=index)


def search_index(
    index: RecallIndex,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    exclude: Sequence[Integer[np.ndarray, "excluded"]] | None = None,
) -> tuple[Int32[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
    """Return ``k`` items and scores a query, best first, without those that ``exclude`` lists for it.

    Rows with fewer items end in item -1 with score -inf, as in ``ItemTable.search``, which is the exact answer. A
    search that would find fewer than are left visits all items: what is missing does not exist.

    Raises:
        FedrecallError: wrong shapes, ``k`` below 1, or a query that is not finite.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.index.d:
        raise FedrecallError(f"queries have shape {queries.shape}: this index wants (queries, {index.index.d})")
    if k < 1:
        raise FedrecallError(f"k is {k}: ask for at least 1 item")
    if not np.isfinite(queries).all():
        raise FedrecallError("a query is not finite: check the user tower and the context that made it")
    if exclude is not None and len(exclude) != len(queries):
        raise FedrecallError(f"exclude has {len(exclude)} rows for {len(queries)} queries: give one each")
    items = np.full((len(queries), k), -1, dtype=np.int32)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    if not len(queries):
        return items, scores
    longest = max((len(row) for row in exclude), default=0) if exclude is not None else 0
    asked = min(k + longest, len(index))
    raw_scores, raw_items = index.index.search(queries, asked)
    # What visits a part of the items may find too few of them there: those queries visit everything.
    short = np.flatnonzero((raw_items < 0).any(axis=1))
    if len(short):
        everything = _thorough(index)
        raw_scores[short], raw_items[short] = index.index.search(queries[short], asked, params=everything)
    for row in range(len(queries)):
        keep = raw_items[row] >= 0
        if exclude is not None:
            keep &= ~np.isin(raw_items[row], exclude[row])
        kept = np.flatnonzero(keep)[:k]
        items[row, : len(kept)] = raw_items[row, kept]
        scores[row, : len(kept)] = raw_scores[row, kept]
    return items, scores


def recall_against_exact(
    index: RecallIndex, table: ItemTable, queries: Float32[np.ndarray, "queries dim"], k: int = 100
) -> float:
    """Return the mean share of the exact top ``k`` of ``table`` that the index finds; 1.0 is exact.

    With fewer than ``k`` items, the top is all of them.

    Raises:
        FedrecallError: no query, or the index holds another number of items than the table.
    """
    if len(index) != len(table):
        raise FedrecallError(f"the index holds {len(index)} items, the table {len(table)}: build it again")
    if not len(queries):
        raise FedrecallError("no queries: recall needs at least one")
    k = min(k, len(table))
    exact, _ = table.search(queries, k)
    found, _ = search_index(index, queries, k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]))


def stated_recall(
    index: RecallIndex, table: ItemTable, queries: Float32[np.ndarray, "queries dim"]
) -> dict[str, float]:
    """Return what every report states of its index: ``recall_against_exact`` at 10, 50 and 100."""
    return {f"recall@{k}": recall_against_exact(index, table, queries, k) for k in (10, 50, 100)}


def save_index(index: RecallIndex, path: Path) -> str:
    """Write the index atomically; returns its SHA-256 in hex, which belongs in the manifest."""
    data = faiss.serialize_index(index.index).tobytes()
    write_atomic(path, data)
    return sha256_of(data)


def load_index(path: Path, *, sha256: str) -> RecallIndex:
    """Read an index that ``save_index`` wrote, after checking that its bytes hash to ``sha256``.

    Raises:
        CorruptArtefact: missing, other bytes, or not an index of a kind that ``build_index`` makes.
    """
    data = read_bounded(path, max_bytes=MAX_BYTES)
    if sha256_of(data) != sha256:
        raise CorruptArtefact(f"{path} has other bytes than its manifest says: build the index again")
    try:
        index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
    except RuntimeError as error:
        raise CorruptArtefact(f"{path} is not a FAISS index: build the index again") from error
    kind = _CLASSES.get(type(index).__name__)
    if kind is None or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise CorruptArtefact(f"{path} holds a {type(index).__name__}: build the index again")
    return RecallIndex(kind=kind, index=index)


def _thorough(index: RecallIndex) -> Any:
    """Return search parameters with which an index leaves nothing out, where it has such."""
    if index.kind == "ivf":
        return faiss.SearchParametersIVF(nprobe=index.index.nlist)  # type: ignore[call-arg]
    if index.kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=len(index))  # type: ignore[attr-defined]
    return None


def _empty(kind: Kind, items: int, dim: int) -> Any:
    """Return an index of ``kind`` with nothing in it."""
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "sq8":
        return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, metric)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, metric)
        graph.hnsw.efConstruction = _HNSW_BUILD
        graph.hnsw.efSearch = _HNSW_SEARCH
        return graph
    if kind == "ivf":
        lists = max(1, min(int(4 * items**0.5), items // 39))
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, metric)
        cells.nprobe = max(1, round(lists * _IVF_PROBED))
        cells.cp.max_points_per_centroid = _TRAIN_PER_LIST
        return cells
    raise FedrecallError(f"index kind is {kind!r}: choose one of {', '.join(get_args(Kind))}")
