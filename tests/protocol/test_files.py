import errno
import os
import resource
import subprocess
import sys

import pytest

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import (
    check_room,
    read_bounded,
    remove_leftovers,
    sha256_file,
    sha256_of,
    write_atomic,
    write_json_atomic,
)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_hash_is_sha256(tmp_path):
    write_atomic(tmp_path / "a", b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(b"abc") == sha256_file(tmp_path / "a") == known
    with pytest.raises(CorruptArtefact, match="missing"):
        sha256_file(tmp_path / "missing")


def test_a_full_disk_names_the_path_and_leaves_the_old_file(tmp_path):
    """A file size limit stands in for the full disk: the write fails in the same way."""
    path = tmp_path / "model.bin"
    write_atomic(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FedrecallError, match=r"model\.bin: no room for 100000 bytes.*free some disk") as caught:
            write_atomic(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_room_is_tried_before_it_is_needed_and_given_back(tmp_path):
    check_room(tmp_path, 50_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        check_room(tmp_path, 4096)
        with pytest.raises(FedrecallError, match=f"{tmp_path}: no room for 4097 bytes.*free some disk"):
            check_room(tmp_path, 4097)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_an_error_of_ours(tmp_path):
    (tmp_path / "name").mkdir()
    with pytest.raises(FedrecallError, match="cannot be written"):
        write_atomic(tmp_path / "name", b"x")
    assert os.listdir(tmp_path) == ["name"]


def test_a_killed_writer_never_leaves_half_a_file(tmp_path):
    """Each version is one byte repeated, so that a torn file would show as a mixture."""
    path = tmp_path / "file.bin"
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedrecall.protocol.files import write_atomic\n"
        "i = 0\nwhile True:\n    write_atomic(Path(sys.argv[1]), bytes([i % 256]) * 3_000_000)\n"
        "    i += 1\n    print(i, flush=True)\n"
    )
    for wait in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        for _ in range(wait + 2):
            process.stdout.readline()
        process.kill()
        process.communicate()
        data = path.read_bytes()
        assert len(data) == 3_000_000 and len(set(data)) == 1
    (tmp_path / ".file.bin.xyz.tmp").write_bytes(b"half")
    remove_leftovers(tmp_path, "file.bin")
    assert os.listdir(tmp_path) == ["file.bin"]


def test_json_is_strict_and_ends_in_a_newline(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"b": [1, None], "a": 0.5})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1,\n    null\n  ],\n  "a": 0.5\n}\n'
    with pytest.raises(FedrecallError, match="epsilon"):
        write_json_atomic(tmp_path / "a.json", {"epsilon": float("inf")})


def test_reading_is_bounded(tmp_path):
    write_atomic(tmp_path / "a", b"12345")
    assert read_bounded(tmp_path / "a", max_bytes=5) == b"12345"
    assert read_bounded(tmp_path / "a", max_bytes=1 << 62) == b"12345"
    with pytest.raises(CorruptArtefact, match="5 bytes, at most 4"):
        read_bounded(tmp_path / "a", max_bytes=4)
    with pytest.raises(CorruptArtefact, match="cannot be read"):
        read_bounded(tmp_path, max_bytes=4)
