import numpy as np
import pytest

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import write_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.manifest import verify, write_manifest
from fedrecall.protocol.tensors import pack
from fedrecall.server.recall.release import load_release, write_release

DIGEST = "ab" * 32


def write(folder):
    rng = np.random.default_rng(3)
    table = ItemTable.from_vectors(rng.standard_normal((6, 4)).astype(np.float32), list("abcdeż"))
    model = {"transformer.w": rng.standard_normal((3, 2)).astype(np.float32), "item.bias": np.array(0.5)}
    manifest = write_release(
        folder, model=model, items=table, round=9, plan_digest=DIGEST, ledger_head=None, simulated=True
    )
    return manifest, model, table


def test_a_release_comes_back_whole(tmp_path):
    manifest, model, table = write(tmp_path / "release")
    names = sorted(path.name for path in (tmp_path / "release").iterdir())
    assert names == ["items.safetensors", "manifest.json", "model.safetensors"]
    found = load_release(tmp_path / "release")
    assert found.manifest == manifest == verify(tmp_path / "release")
    assert (manifest.round, manifest.simulated) == (9, True)
    assert found.items.ids == table.ids
    np.testing.assert_array_equal(found.items.vectors(), table.vectors())
    for name, array in model.items():
        np.testing.assert_array_equal(found.model[name], array)


def test_equal_releases_are_equal_bytes(tmp_path):
    assert write(tmp_path / "a")[0] == write(tmp_path / "b")[0]


def test_a_release_never_changes(tmp_path):
    write(tmp_path)
    with pytest.raises(UsageError, match="never changes"):
        write(tmp_path)
    (tmp_path / "manifest.json").unlink()
    write(tmp_path)


def test_every_listed_file_is_checked(tmp_path):
    write(tmp_path)
    write_atomic(tmp_path / "run.json", b"{}")
    names = ["items.safetensors", "model.safetensors", "run.json"]
    write_manifest(tmp_path, names=names, round=9, plan_digest=DIGEST, ledger_head=None, simulated=True)
    assert set(load_release(tmp_path).manifest.files) == set(names)
    write_atomic(tmp_path / "run.json", b"[]")
    with pytest.raises(CorruptArtefact, match=r"run\.json"):
        load_release(tmp_path)


@pytest.mark.parametrize("name", ["items.safetensors", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_named(tmp_path, name, damage):
    write(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] + (bytes([data[-9] ^ 1]) + data[-8:] if damage == "flip" else b""))
    with pytest.raises(CorruptArtefact, match=name.replace(".", r"\.")):
        load_release(tmp_path)


def test_a_manifest_cannot_vouch_for_what_is_not_a_model(tmp_path):
    write(tmp_path)
    write_atomic(tmp_path / "model.safetensors", pack({}, {"format": "something else"}))
    names = ["items.safetensors", "model.safetensors"]
    settings = {"round": 9, "plan_digest": DIGEST, "ledger_head": None, "simulated": True}
    write_manifest(tmp_path, names=names, **settings)
    with pytest.raises(CorruptArtefact, match=r"model\.safetensors is not of format"):
        load_release(tmp_path)
    write_manifest(tmp_path, names=names[:1], **settings)
    with pytest.raises(CorruptArtefact, match=r"model\.safetensors is not in the manifest"):
        load_release(tmp_path)
