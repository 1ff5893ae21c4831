"""A release as files: the item table that devices search, the shared weights, and the manifest of both."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrecall.protocol import manifest as manifests
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import write_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import Manifest, read_verified, write_manifest
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.tensors import pack, unpack

ITEMS = "items.safetensors"
MODEL = "model.safetensors"
_FORMAT = "model/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleaseFiles:
    """What ``load_release`` found, every byte of it checked against the manifest."""

    manifest: Manifest
    model: dict[str, np.ndarray]
    items: ItemTable


def write_release(
    folder: Path,
    *,
    model: Arrays,
    items: ItemTable,
    round: int,
    plan_digest: str,
    ledger_head: str | None,
    simulated: bool,
) -> Manifest:
    """Write ``items.safetensors``, ``model.safetensors`` and last ``manifest.json`` into ``folder``.

    Until the manifest stands there is no release, so a kill leaves none or all of it. A release is never
    changed: devices may hold half of it already. Charge the ledger before calling this.

    Args:
        folder: made when it is missing.
        model: the shared weights by name; no user tower.
        items: the item table of the same round.
        round: whose model this is.
        plan_digest: of the privacy plan.
        ledger_head: hash of the ledger's last line, ``None`` without a ledger.
        simulated: noise or coins came from a known seed.

    Raises:
        UsageError: the folder already holds a release.
        FedrecallError: a file cannot be written.
    """
    folder = Path(folder)
    if (folder / manifests.NAME).exists():
        raise UsageError(f"{folder} already holds a release, which never changes: choose another folder")
    write_atomic(folder / ITEMS, items.to_bytes())
    write_atomic(folder / MODEL, pack(model, {"format": _FORMAT}))
    return write_manifest(
        folder,
        names=[ITEMS, MODEL],
        round=round,
        plan_digest=plan_digest,
        ledger_head=ledger_head,
        simulated=simulated,
    )


def load_release(folder: Path) -> ReleaseFiles:
    """Read a release, or a run folder that holds one, after checking every file that its manifest lists.

    Raises:
        CorruptArtefact: a file is missing, differs from the manifest, or is malformed; names the file.
    """
    folder = Path(folder)
    manifest = manifests.verify(folder)
    items = ItemTable.from_bytes(read_verified(folder, manifest, ITEMS), what=str(folder / ITEMS))
    model, header = unpack(read_verified(folder, manifest, MODEL), what=str(folder / MODEL))
    if header.get("format") != _FORMAT:
        raise CorruptArtefact(f"{folder / MODEL} is not of format {_FORMAT!r}: fetch the release again")
    return ReleaseFiles(manifest=manifest, model=model, items=items)
