"""The FAISS index of a run folder: built over the verified item table, and searched."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded, write_json_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import read_manifest, read_verified
from fedrecall.protocol.randomness import public_rng
from fedrecall.server.recall.index import (
    Kind,
    RecallIndex,
    build_index,
    load_index,
    save_index,
    search_index,
    stated_recall,
)
from fedrecall.server.recall.release import ITEMS

INDEX, SIDECAR = "items.faiss", "index.json"
_MAX_SIDECAR = 1 << 16
_QUERIES = 200


def build_run_index(
    folder: Path,
    kind: Kind | None = None,
    *,
    queries: Float32[np.ndarray, "queries dim"] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Build ``items.faiss`` of a run folder and say in ``index.json`` what it is.

    Args:
        folder: holds ``items.safetensors`` and the manifest that vouches for it.
        kind: as ``build_index``.
        queries: what the stated recall is measured with; 200 items' own vectors, publicly drawn, if absent.
        progress: as ``build_index``.

    Returns:
        ``kind``, ``items``, ``dim``, ``bytes``, ``build_s``, ``recall@10``, ``recall@50``, ``recall@100``
        (against exact search), ``queries`` (``given`` or ``items``), ``sha256`` of the index and
        ``items_sha256`` of its table.

    Raises:
        CorruptArtefact: the item table is missing or is not what the manifest says.
        FedrecallError: a file cannot be written.

    """
    table, items_sha256 = _table(folder)
    asked = "given"
    if queries is None:
        queries, asked = _own_queries(table), "items"
    started = time.perf_counter()
    index = build_index(table, kind, progress=progress)
    seconds = time.perf_counter() - started
    sha256 = save_index(index, Path(folder) / INDEX)
    said = {
        "kind": index.kind,
        "items": len(table),
        "dim": table.dim,
        "bytes": (Path(folder) / INDEX).stat().st_size,
        "build_s": round(seconds, 4),
        **stated_recall(index, table, queries),
        "queries": asked,
        "sha256": sha256,
        "items_sha256": items_sha256,
    }
    write_json_atomic(Path(folder) / SIDECAR, said)
    return said


def replace_run_index(
    folder: Path, kind: Kind | None = None, *, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Build the index of a run folder as ``build_run_index``, beside the one that was there.

    Returns what that returns, and ``replaced``: ``kind`` and recalls of the index before, measured with the same
    queries, or ``None`` where there was none of this item table; ``warning``: a sentence where the new one finds less.
    """
    before = _present(Path(folder))
    said = build_run_index(folder, kind, progress=progress)
    if before is None:
        return said | {"replaced": None, "warning": None}
    table, _ = _table(folder)
    was = stated_recall(before, table, _own_queries(table))
    lower = [name for name, recall in was.items() if said[name] < recall]
    fell = " and ".join(f"{name} from {was[name]:.4f} to {said[name]:.4f}" for name in lower)
    back = f"`fedrecall index build {folder} --kind {before.kind}` brings it back"
    warning = f"{said['kind']} replaced {before.kind}, which found more of exact search ({fell}): {back}"
    return said | {"replaced": {"kind": before.kind, **was}, "warning": warning if lower else None}


def search_run_index(folder: Path, item: str, k: int) -> dict[str, Any]:
    """Return the ``k`` items nearest to ``item`` by inner product, itself left out, as the index finds them.

    Returns ``item``, ``kind`` and ``neighbours`` with ``item`` and ``score``, best first.

    Raises:
        UsageError: no such item, or no index yet.
        CorruptArtefact: the item table or the index is not what it should be, or they do not belong together.

    """
    table, items_sha256 = _table(folder)
    said = _sidecar(Path(folder))
    if said["items_sha256"] != items_sha256:
        raise CorruptArtefact(f"{Path(folder) / INDEX} is of another item table: build the index again")
    if item not in table.ids:
        raise UsageError(f"--item is {item!r}, which is not among the {len(table)} items of this run")
    row = table.ids.index(item)
    index = load_index(Path(folder) / INDEX, sha256=said["sha256"])
    found, scores = search_index(index, table.vectors()[[row]], k, [np.array([row])])
    neighbours = [
        {"item": table.ids[i], "score": float(score)} for i, score in zip(found[0], scores[0], strict=True) if i >= 0
    ]
    return {"item": item, "kind": index.kind, "neighbours": neighbours}


def _table(folder: Path) -> tuple[ItemTable, str]:
    """Return the item table and the hash that the manifest gives it."""
    manifest = read_manifest(folder)
    data = read_verified(folder, manifest, ITEMS)
    return ItemTable.from_bytes(data, what=str(Path(folder) / ITEMS)), manifest.files[ITEMS].sha256


def _own_queries(table: ItemTable) -> Float32[np.ndarray, "queries dim"]:
    """Return the vectors of items that are drawn publicly."""
    rows = public_rng(0, "index queries").permutation(len(table))[:_QUERIES]
    return table.vectors()[rows]


def _present(folder: Path) -> RecallIndex | None:
    """Return the whole index of this very item table that a folder has, ``None`` where it has none."""
    _, items_sha256 = _table(folder)
    try:
        said = _sidecar(folder)
        return load_index(folder / INDEX, sha256=said["sha256"]) if said["items_sha256"] == items_sha256 else None
    except (UsageError, CorruptArtefact):
        return None


def _sidecar(folder: Path) -> dict[str, str]:
    path = folder / SIDECAR
    if not path.is_file():
        raise UsageError(f"{folder} has no index: build it with `fedrecall index build {folder}`")
    try:
        said = json.loads(read_bounded(path, max_bytes=_MAX_SIDECAR))
        return {key: str(said[key]) for key in ("sha256", "items_sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): build the index again") from error
