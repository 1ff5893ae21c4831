import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.manifest import Manifest, read_manifest, read_verified, verify, write_manifest

DIGEST, HEAD = "ab" * 32, "cd" * 32


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "items.bin").write_bytes(b"items")
    (tmp_path / "logs" / "a.txt").write_bytes(b"")
    (tmp_path / "unlisted").write_bytes(b"whatever")
    write_manifest(
        tmp_path,
        names=["logs/a.txt", "items.bin"],
        round=7,
        plan_digest=DIGEST,
        ledger_head=HEAD,
        simulated=True,
    )
    return tmp_path


def test_a_manifest_says_what_the_files_are(folder):
    manifest = verify(folder)
    assert manifest == read_manifest(folder)
    assert list(manifest.files) == ["items.bin", "logs/a.txt"]
    assert manifest.files["items.bin"].size == 5
    assert manifest.files["items.bin"].sha256 == hashlib.sha256(b"items").hexdigest()
    assert (manifest.round, manifest.plan_digest, manifest.ledger_head) == (7, DIGEST, HEAD)
    assert manifest.simulated is True
    assert read_verified(folder, manifest, "items.bin") == b"items"
    (folder / "unlisted").unlink()
    verify(folder)


@pytest.mark.parametrize("data", [b"itemz", b"item", b"items!", None])
def test_a_changed_file_is_named(folder, data):
    manifest = read_manifest(folder)
    path = folder / "items.bin"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(CorruptArtefact, match=r"items\.bin"):
        verify(folder)
    with pytest.raises(CorruptArtefact, match=r"items\.bin"):
        read_verified(folder, manifest, "items.bin")


def test_a_file_that_is_not_listed_is_not_verified(folder):
    with pytest.raises(CorruptArtefact, match="unlisted is not in the manifest"):
        read_verified(folder, read_manifest(folder), "unlisted")


@pytest.mark.parametrize("name", ["../x", "/etc/hosts", "a/../../x", ".", "", "a\\b", "c:x", "manifest.json", "a//b"])
def test_names_cannot_lead_out_of_the_folder(folder, name):
    with pytest.raises(FedrecallError, match="leads out"):
        write_manifest(folder, names=[name], round=0, plan_digest=DIGEST, ledger_head=None, simulated=False)
    data = json.loads((folder / "manifest.json").read_text())
    data["files"][name] = data["files"]["items.bin"]
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(CorruptArtefact, match="not a manifest"):
        verify(folder)


def test_a_missing_file_cannot_be_listed(folder):
    with pytest.raises(CorruptArtefact, match="gone"):
        write_manifest(folder, names=["gone"], round=0, plan_digest=DIGEST, ledger_head=None, simulated=False)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=2))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_other_field_value_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("manifest")
    text = write_and_read(folder)
    key = data.draw(st.sampled_from([*text, "more"]))
    text[key] = data.draw(JSON)
    (folder / "manifest.json").write_text(json.dumps(text))
    try:
        assert isinstance(read_manifest(folder), Manifest)
    except CorruptArtefact:
        return
    assert key in ("round", "simulated", "ledger_head"), "only these have other good values that were drawn"


def write_and_read(folder):
    write_manifest(folder, names=[], round=0, plan_digest=DIGEST, ledger_head=None, simulated=False)
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"\\ud800', " " * (1 << 20) + "{}", "\xff"])
def test_bytes_that_are_no_manifest_are_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptArtefact, match=r"manifest\.json"):
        verify(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CorruptArtefact, match=r"manifest\.json"):
        verify(tmp_path)
