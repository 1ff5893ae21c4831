"""Files of a release against the weights: their own are sound, and a number that moved is seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import ReleaseFiles, load_release, write_release
from fedrecall.simulations.audit.checks.released import file_faults
from fedrecall.simulations.runs.recaller import item_vectors

RNG = np.random.default_rng(0)
ARRAYS = {
    "item.id.weight": RNG.standard_normal((200, 16)).astype(np.float32),
    "item.features.weight": RNG.standard_normal((16, 5)).astype(np.float32),
    "transformer.out.bias": RNG.standard_normal(16).astype(np.float32),
}
FEATURES = RNG.standard_normal((200, 5)).astype(np.float32)


def release(folder: Path, features: np.ndarray | None = FEATURES) -> ReleaseFiles:
    ids = [str(item) for item in range(200)]
    write_release(
        folder,
        model={name: array for name, array in ARRAYS.items() if name != "item.id.weight"},
        items=ItemTable.from_vectors(item_vectors(ARRAYS, features), ids),
        round=3,
        plan_digest="0" * 64,
        ledger_head=None,
        simulated=True,
    )
    return load_release(folder)


@pytest.mark.parametrize("features", [FEATURES, None])
def test_a_release_as_a_run_writes_it_is_sound(features: np.ndarray | None, tmp_path: Path) -> None:
    assert file_faults(release(tmp_path, features), ARRAYS, features) == []


def moved_bias(found: ReleaseFiles) -> ReleaseFiles:
    bias = found.model["transformer.out.bias"].copy()
    bias[3] = np.nextafter(bias[3], np.float32(9))
    return replace(found, model={**found.model, "transformer.out.bias": bias})


def moved_code(found: ReleaseFiles) -> ReleaseFiles:
    codes = found.items.codes.copy()
    codes[17, 2] -= 1
    return replace(found, items=replace(found.items, codes=codes))


def moved_scale(found: ReleaseFiles) -> ReleaseFiles:
    scales = found.items.scales.copy()
    scales[17] = np.nextafter(np.nextafter(scales[17], np.float16(9)), np.float16(9))
    return replace(found, items=replace(found.items, scales=scales))


def moved_vectors(found: ReleaseFiles) -> ReleaseFiles:
    """A hundredth of a level, which leaves nearly all codes as they were."""
    shift = found.items.scales.astype(np.float32)[:, None] / 100
    return replace(found, items=ItemTable.from_vectors(item_vectors(ARRAYS, FEATURES) + shift, found.items.ids))


def without_bias(found: ReleaseFiles) -> ReleaseFiles:
    return replace(found, model={"item.features.weight": found.model["item.features.weight"]})


@pytest.mark.parametrize("change", [moved_bias, moved_code, moved_scale, moved_vectors, without_bias])
def test_a_number_that_moved_is_seen(change: Callable[[ReleaseFiles], ReleaseFiles], tmp_path: Path) -> None:
    assert file_faults(change(release(tmp_path)), ARRAYS, FEATURES)
