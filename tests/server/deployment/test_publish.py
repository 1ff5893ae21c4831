"""Releases appear whole, never change, and the oldest go."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedrecall.models.recall import ITEM_ID
from fedrecall.protocol.errors import FedrecallError
from fedrecall.server.deployment.publish import found, item_vectors
from fedrecall.server.recall.release import load_release
from fedrecall.simulations.runs.recaller import item_vectors as of_a_simulation

from ...house import ROOT
from .small_jobs import HEAD, ITEMS, publisher, state_of


def test_a_release_holds_the_rounds_model_and_item_table(tmp_path: Path) -> None:
    publisher(tmp_path)(state_of(7), HEAD)
    release = load_release(tmp_path / "releases" / "000007")
    assert release.manifest.round == 7 and not release.manifest.simulated
    assert release.manifest.ledger_head == HEAD
    assert release.items.ids == ITEMS
    for name, array in state_of(7).arrays.items():
        np.testing.assert_array_equal(release.model[name], array)
    np.testing.assert_allclose(release.items.vectors(), release.model[ITEM_ID], atol=0.05)
    assert load_release(tmp_path / "releases" / "latest").manifest == release.manifest


def test_features_count_as_in_a_simulation(rng: np.random.Generator) -> None:
    model = {
        ITEM_ID: rng.standard_normal((3, 2)).astype(np.float32),
        "item.features.weight": rng.standard_normal((2, 5)).astype(np.float32),
    }
    features = rng.integers(0, 2, (3, 5)).astype(np.float32)
    for given in (None, features):
        np.testing.assert_array_equal(item_vectors(model, given), of_a_simulation(model, given))


def test_the_newest_stay_and_latest_is_one_of_them(tmp_path: Path) -> None:
    publish = publisher(tmp_path)
    for round in range(1, 7):
        publish(state_of(round), HEAD)
        assert load_release(tmp_path / "releases" / "latest").manifest.round == round
    assert sorted(found(tmp_path)) == [4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["000004", "000005", "000006", "latest"]


def test_publishing_again_changes_no_byte(tmp_path: Path) -> None:
    publish = publisher(tmp_path)
    publish(state_of(1), HEAD)
    path = tmp_path / "releases" / "000001" / "model.safetensors"
    before, made = path.read_bytes(), path.stat().st_mtime_ns
    publish(state_of(1), "cd" * 32)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, made)


def test_a_kill_leaves_no_half_release(tmp_path: Path) -> None:
    """The process dies at each system call that names a file, one after the other, and is started again."""
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.server.deployment.small_jobs import publisher, state_of, HEAD\n"
        "left = [int(sys.argv[3])]\n"
        "def hook(name, arguments):\n"
        "    if name in ('os.rename', 'os.mkdir', 'os.symlink', 'open') and sys.argv[2] in str(arguments):\n"
        "        left[0] -= 1\n"
        "        if not left[0]: os._exit(9)\n"
        "publisher(Path(sys.argv[2]))(state_of(1), HEAD)\n"
        "sys.addaudithook(hook)\n"
        "publisher(Path(sys.argv[2]))(state_of(2), HEAD)\n"
    )
    root = str(ROOT)
    codes = []
    for at in (2, 5, 9, 12):
        folder = tmp_path / str(at)
        folder.mkdir()
        codes.append(subprocess.run([sys.executable, "-c", code, root, str(folder), str(at)], cwd=root).returncode)
        # Whatever a web server would show is a whole release.
        for path in (folder / "releases").glob("[0-9]*"):
            assert load_release(path).manifest.round == int(path.name)
        assert load_release(folder / "releases" / "latest").manifest.round in (1, 2)
        publisher(folder)(state_of(2), HEAD)
        assert load_release(folder / "releases" / "latest").manifest.round == 2
        assert not [path for path in (folder / "releases").iterdir() if path.name.startswith(".")]
    assert set(codes) <= {0, 9} and codes.count(9) >= 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FedrecallError, match="cannot be"):
        publisher(tmp_path)(state_of(1), HEAD)
    tmp_path.chmod(0o700)
