"""What a device recommends to its user: its own query, searched in a released item table, on the device.

Nothing of it leaves (docs/privacy.md, rule 11): no query, no fetch of an item, no record of what was shown.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedrecall.client.config import PersonalConfig
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.recall.retrieval import query_vectors, shared_transformer, tune_towers
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import Manifest
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """One recommended item and its score, an inner product."""

    item: str
    score: float


def recommend(
    device: DeviceFolder,
    manifest: Manifest,
    model: Arrays,
    table: ItemTable,
    *,
    k: int,
    personal: PersonalConfig | None = None,
    again: bool = False,
) -> list[Recommended]:
    """Return the ``k`` best items for the device's user, best first; fewer where none are left.

    The tower is the device's own, tuned once more on its latest events; the tuned one is not kept, so that asking
    often changes nothing.

    Args:
        device: whose events and tower these are.
        manifest: of the release, its files checked against it.
        model: the release's shared arrays.
        table: the release's item table.
        k: how many.
        personal: of the tuning.
        again: whether items that the user has an event with may be among them.

    Raises:
        UsageError: the release is of another plan, catalogue or model than the device's task.
        FedrecallError: ``k`` is below 1.
    """
    _check(device, manifest, model, table)
    store, own = device.history(), np.zeros(1, dtype=np.int64)
    vectors, transformer = torch.as_tensor(table.vectors()), shared_transformer(model, device.shape)
    towers = {name: weight[None].clone() for name, weight in device.tower().items()}
    seed = derive_seed(device.task.seed, "tower")
    tuned = tune_towers(towers, transformer, vectors, store, own, device.shape, personal or PersonalConfig(), seed)
    query = query_vectors(transformer, vectors, store, own, tuned)
    items, scores = table.search(query, k, None if again else [np.unique(store.items)])
    found = items[0] >= 0
    return [
        Recommended(item=table.ids[item], score=float(score))
        for item, score in zip(items[0][found].tolist(), scores[0][found].tolist(), strict=True)
    ]


def release_folder(path: Path) -> Path:
    """Return the folder of a release that is named by itself or by one of its files."""
    return path if path.is_dir() else path.parent


def _check(device: DeviceFolder, manifest: Manifest, model: Arrays, table: ItemTable) -> None:
    plan = device.task.plan
    if manifest.plan_digest != plan.digest() or manifest.simulated != plan.simulated:
        raise UsageError("the release is of another plan than this device agreed to: give one of its own server")
    if table.ids != device.invitation.items:
        raise UsageError("the release is of another catalogue than the invitation's: ask for a new invitation")
    expected = {name: array.shape for name, array in device.expected.items()}
    found = {name: array.shape for name, array in model.items()}
    if found != expected or table.dim != device.shape.dim:
        raise UsageError("the release is of another model than the device's task has: give one of its own server")
