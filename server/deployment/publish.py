"""Each round's release as a folder of files for a web server: ``releases/000007/``, and ``latest`` to the newest.

A release appears whole or not at all, and never changes. What is released was charged and checkpointed before.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.files import sync_folder
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import NAME as MANIFEST
from fedrecall.protocol.records import Arrays
from fedrecall.server.recall.release import write_release
from fedrecall.server.training.rounds import ServerState

RELEASES, LATEST = "releases", "latest"
_ID, _FEATURES = "item.id.weight", "item.features.weight"
_NAME = re.compile(r"\d{6,}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Publisher:
    """Writes releases into ``folder / "releases"``.

    Attributes:
        folder: the job's.
        items: identifiers of the catalogue's items, in order.
        features: public item features [items, features], where the model has them.
        plan_digest: of the privacy plan.
        simulated: as in ``Plan``.
        keep: how many of the newest releases stay; devices may still be fetching the one before the last.
    """

    folder: Path
    items: tuple[str, ...]
    features: Float32[np.ndarray, "items features"] | None
    plan_digest: str
    simulated: bool
    keep: int

    def __call__(self, state: ServerState, ledger_head: str) -> None:
        """Publish the model of ``state`` unless it is; raises FedrecallError where the disk refuses."""
        releases = self.folder / RELEASES
        name = f"{state.round:06d}"
        try:
            if not (releases / name / MANIFEST).exists():
                self._write(releases, name, state, ledger_head)
            link = releases / f".{LATEST}.new"
            link.unlink(missing_ok=True)
            link.symlink_to(name)
            link.replace(releases / LATEST)
            sync_folder(releases)
            for old in sorted(found(self.folder))[: -max(2, self.keep)]:
                shutil.rmtree(releases / f"{old:06d}")
        except OSError as error:
            raise FedrecallError(
                f"{releases / name} cannot be published ({error.strerror}): free some room, check its rights"
            ) from error

    def _write(self, releases: Path, name: str, state: ServerState, ledger_head: str) -> None:
        unfinished = releases / f".{name}.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        model = state.released()
        write_release(
            unfinished,
            model=model,
            items=ItemTable.from_vectors(item_vectors(model, self.features), self.items),
            round=state.round,
            plan_digest=self.plan_digest,
            ledger_head=ledger_head,
            simulated=self.simulated,
        )
        os.rename(unfinished, releases / name)


def item_vectors(model: Arrays, features: np.ndarray | None) -> Float32[np.ndarray, "items dim"]:
    """Return the item tower's vectors of the whole catalogue: id rows plus projected public features."""
    vectors = np.asarray(model[_ID], dtype=np.float32)
    return vectors if features is None else vectors + features @ np.asarray(model[_FEATURES], dtype=np.float32).T


def found(folder: Path) -> list[int]:
    """Return the rounds whose releases are in the job's ``folder``."""
    paths = (folder / RELEASES).glob("*")
    return [int(path.name) for path in paths if _NAME.fullmatch(path.name) and (path / MANIFEST).exists()]
