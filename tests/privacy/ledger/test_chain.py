"""The chain under both ledgers; what it promises them is in ``ledger_contract``."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.privacy.ledger.chain import Chain, Head, head_path
from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.text().filter(lambda key: key not in ("previous", "sha256")), VALUES, max_size=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    chain = Chain.create(tmp_path / "chain.jsonl", {"first": True})
    for n in range(3):
        chain.append({"n": n})
    return tmp_path / "chain.jsonl"


class TestKeeping:
    @given(entries=st.lists(ENTRIES, min_size=1, max_size=5))
    @settings(max_examples=40, deadline=None)
    def test_what_was_appended_is_read_back(self, entries: list[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            chain = Chain.create(Path(folder) / "chain.jsonl", entries[0])
            for entry in entries[1:]:
                chain.append(entry)
            for again in (chain, Chain.read(chain.path), Chain.open(chain.path, at_least=chain.head())):
                assert list(again.entries) == entries and again.head() == chain.head()
            assert chain.path.read_bytes().count(b"\n") == len(entries) == chain.head().lines

    def test_a_value_that_json_lacks_is_not_written(self, path: Path) -> None:
        before = path.read_bytes()
        with pytest.raises(ValueError):
            Chain.open(path).append({"epsilon": float("inf")})
        assert path.read_bytes() == before

    def test_it_says_which_hashes_it_holds(self, path: Path) -> None:
        chain = Chain.open(path)
        old = chain.head().sha256
        chain.append({})
        assert chain.holds(old) and chain.holds(chain.head().sha256) and not chain.holds("0" * 64)

    def test_the_folder_is_made(self, tmp_path: Path) -> None:
        for name in ("create", "resume"):
            getattr(Chain, name)(tmp_path / name / "chain.jsonl", {})
            assert Chain.open(tmp_path / name / "chain.jsonl").head().lines == 1

    def test_only_the_owner_may_read_it(self, path: Path) -> None:
        assert path.stat().st_mode & 0o077 == 0


class TestDisk:
    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see which file is synced")
    def test_file_and_folder_are_synced_before_the_head_and_before_it_returns(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, replace_file, write = os.fsync, os.replace, os.write

        def watch(descriptor: int) -> None:
            calls.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def watch_replace(source: str, target: str) -> None:
            calls.append("replace")
            replace_file(source, target)

        def watch_write(descriptor: int, data: bytes) -> int:
            calls.append("write")
            return write(descriptor, data)

        chain = Chain.open(path)
        monkeypatch.setattr(os, "fsync", watch)
        monkeypatch.setattr(os, "replace", watch_replace)
        monkeypatch.setattr(os, "write", watch_write)
        chain.append({"n": 3})
        folder = str(path.parent.resolve())
        assert calls[:3] == ["write", str(path.resolve()), folder]  # the entry, before the head
        assert calls[-2:] == ["replace", folder] and calls[3].startswith(folder + "/")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_disk_that_takes_nothing_appends_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chain = Chain.open(path)

        def refuse(descriptor: int, data: bytes) -> int:
            with open("/dev/full", "wb", buffering=0) as full:
                return full.write(data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with pytest.raises(FedrecallError, match=r"No space left on device.*free space"):
                chain.append({"n": 3})
        assert chain.head().lines == 4
        chain.append({"n": 3})
        assert Chain.open(path).entries[-1] == {"n": 3}

    def test_reading_writes_nothing_and_needs_no_right_to_write(self, path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole + b"torn")
        path.chmod(0o400)
        before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.iterdir()}
        assert Chain.read(path).entries == Chain.read(path).entries
        assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.iterdir()} == before

    def test_a_folder_in_its_place_is_no_crash(self, tmp_path: Path) -> None:
        for act in (Chain.read, Chain.open):
            with pytest.raises(FedrecallError, match="cannot be used"):
                act(tmp_path)


class TestStarting:
    @pytest.mark.parametrize("left", [None, b"", b'{"first":tr', b"\0\0\0"])
    def test_what_a_kill_left_of_a_new_chain_is_started_again(self, left: bytes | None, tmp_path: Path) -> None:
        path = tmp_path / "chain.jsonl"
        if left is not None:
            path.write_bytes(left)
        assert Chain.resume(path, {"first": 1}).entries == ({"first": 1},)
        assert Chain.open(path).entries == ({"first": 1},)

    def test_a_kill_between_the_two_files_of_a_new_chain_keeps_its_first_line(self, tmp_path: Path) -> None:
        for act in (Chain.open, lambda path: Chain.resume(path, {"first": 2})):
            path = tmp_path / "chain.jsonl"
            Chain.create(path, {"first": 1})
            head_path(path).unlink()
            act(path).append({})
            assert Chain.open(path).entries == ({"first": 1}, {})
            path.unlink(), head_path(path).unlink()

    def test_an_old_chain_is_gone_on_with(self, path: Path) -> None:
        assert Chain.resume(path, {"first": 2}).head().lines == 4

    def test_a_chain_of_which_the_head_alone_is_left_is_not_started_again(self, path: Path) -> None:
        path.unlink()
        with pytest.raises(CorruptArtefact, match="is missing"):
            Chain.resume(path, {"first": 1})
        assert not path.exists()
        path.write_bytes(b"")
        with pytest.raises(CorruptArtefact, match="its head counts 4"):
            Chain.resume(path, {"first": 1})

    def test_a_chain_whose_head_is_gone_is_not_started_again(self, path: Path) -> None:
        head_path(path).unlink()
        with pytest.raises(CorruptArtefact, match="head is missing"):
            Chain.resume(path, {"first": 1})

    def test_create_overwrites_nothing(self, path: Path) -> None:
        with pytest.raises(UsageError, match="a ledger exists"):
            Chain.create(path, {})


class TestTampering:
    def test_two_entries_beyond_the_head_are_no_crash(self, path: Path) -> None:
        old_head = head_path(path).read_bytes()
        chain = Chain.open(path)
        chain.append({}), chain.append({})
        head_path(path).write_bytes(old_head)
        with pytest.raises(CorruptArtefact, match="its head counts 4"):
            Chain.open(path)

    def test_a_torn_line_behind_an_entry_beyond_the_head_is_no_crash(self, path: Path) -> None:
        old_head = head_path(path).read_bytes()
        Chain.open(path).append({})
        head_path(path).write_bytes(old_head)
        path.write_bytes(path.read_bytes() + b"{")
        with pytest.raises(CorruptArtefact, match="5 whole lines, its head counts 4"):
            Chain.open(path)

    def test_an_edited_entry_beyond_the_head_is_detected(self, path: Path) -> None:
        old_head = head_path(path).read_bytes()
        Chain.open(path).append({"n": 3})
        head_path(path).write_bytes(old_head)
        path.write_bytes(path.read_bytes().replace(b'"n":3', b'"n":4'))
        with pytest.raises(CorruptArtefact, match="line 5 breaks the chain"):
            Chain.open(path)

    def test_a_line_edited_with_its_own_hash_made_anew_is_detected(self, path: Path, tmp_path: Path) -> None:
        """Also with the head made anew, unless every later line is forged as well; then by a head kept elsewhere."""
        kept = Chain.open(path).head()
        forged = Chain.create(tmp_path / "forged.jsonl", {"first": True})
        forged.append({"n": 0}), forged.append({"n": 7})
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], (tmp_path / "forged.jsonl").read_bytes().splitlines(True)[2], lines[3]]))
        with pytest.raises(CorruptArtefact, match="line 4 breaks the chain"):
            Chain.open(path)
        forged.append({"n": 2})
        assert Chain.open(forged.path).head().lines == kept.lines
        with pytest.raises(CorruptArtefact, match="rolled back"):
            Chain.open(forged.path, at_least=kept)

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "1", "[]", "null", '{"sha256":1}', "9" * 5000, '{"a":NaN}', "\xff"]
    )
    def test_a_line_that_is_no_entry_is_corrupt_and_nothing_worse(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "chain.jsonl"
        path.write_bytes(text.encode("latin-1") + b"\n")
        with pytest.raises(CorruptArtefact, match="breaks the chain"):
            Chain.open(path)
        Chain.create(tmp_path / "b.jsonl", {})
        head_path(tmp_path / "b.jsonl").write_bytes(text.encode("latin-1"))
        with pytest.raises(CorruptArtefact, match="no ledger head"):
            Chain.open(tmp_path / "b.jsonl")

    @pytest.mark.parametrize("lines", [0, -1])
    def test_a_head_that_counts_nothing_is_corrupt(self, lines: int, path: Path) -> None:
        head = {"lines": lines, "sha256": Chain.open(path).head().sha256}
        head_path(path).write_text(json.dumps(head, separators=(",", ":")) + "\n")
        with pytest.raises(CorruptArtefact, match="was edited"):
            Chain.open(path)

    def test_a_kept_head_beyond_the_chain_is_a_rollback(self, path: Path) -> None:
        head = Chain.open(path).head()
        with pytest.raises(CorruptArtefact, match="rolled back"):
            Chain.open(path, at_least=Head(lines=head.lines + 1, sha256=head.sha256))

    @pytest.mark.slow
    def test_every_value_of_every_byte_is_detected(self, path: Path) -> None:
        for file in (path, head_path(path)):
            good, tried = file.read_bytes(), 0
            for i, byte in enumerate(good):
                for other in set(range(256)) - {byte}:
                    file.write_bytes(good[:i] + bytes([other]) + good[i + 1 :])
                    with pytest.raises(CorruptArtefact):
                        Chain.read(path)
                    tried += 1
            file.write_bytes(good)
            print(f"{tried} one-byte edits of {file.name}: all detected")
        assert Chain.read(path).head().lines == 4
