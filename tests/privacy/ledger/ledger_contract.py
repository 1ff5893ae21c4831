"""What both ledgers promise: nothing is edited, cut, moved or forgotten unseen, whatever kills or starves them."""

import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedrecall.privacy.ledger.chain import Head, head_path
from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError

from ...house import ROOT

SCRIPT = Path(__file__).with_name("ledger_processes.py")


class Processes:
    """The script ``ledger_processes.py`` on one ledger."""

    def __init__(self, kind: str, path: Path, steps: int = 10**9) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(path), str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, command: str, kill_after: float | None = None) -> tuple[list[int], list[str]]:
        """Return the rounds released and the refusals; ``kill_after`` so many seconds the child is killed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(command + "\n")
        stdin.flush()
        released, refused = [], []
        for line in iter(stdout.readline, ""):
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "pid" and kill_after is not None:
                time.sleep(kill_after)
                os.kill(int(rest), signal.SIGKILL)
            elif word == "released":
                released.append(int(rest))
            elif word == "refused":
                refused.append(rest)
            elif word == "ended":
                return released, refused
        raise AssertionError("the process that forks died")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0


class LedgerContract(ABC):
    """Inherited by the tests of each ledger; ``path`` holds one with three charges."""

    kind: str

    @abstractmethod
    def start(self, path: Path) -> Any:
        """Create a ledger at ``path``."""

    @abstractmethod
    def open(self, path: Path, at_least: Head | None = None) -> Any:
        """Open the one that ``start`` made."""

    @abstractmethod
    def charge(self, ledger: Any, round: int) -> bool:
        """Charge one round."""

    def count(self, path: Path) -> int:
        """Return the charges that a freshly opened ledger counts."""
        return self.open(path).head().lines - 1

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        ledger = self.start(tmp_path / "ledger.jsonl")
        for n in range(3):
            self.charge(ledger, n)
        return tmp_path / "ledger.jsonl"

    def missed(self, path: Path, file: Path, mutants: Iterator[bytes]) -> list[bytes]:
        """Return the mutants of ``file`` with which the ledger opens; the file is as before afterwards."""
        good, found = file.read_bytes(), []
        for mutant in mutants:
            if mutant == good:
                continue
            file.write_bytes(mutant)
            try:
                self.open(path)
                found.append(mutant)
            except CorruptArtefact:
                pass
        file.write_bytes(good)
        assert self.count(path) == 3
        return found

    @pytest.mark.parametrize("of", ["ledger", "head"])
    def test_every_one_byte_edit_is_detected(self, path: Path, of: str) -> None:
        """Three other values of every byte, among them a newline, and all 255 of every 97th."""
        file = path if of == "ledger" else head_path(path)
        good = file.read_bytes()

        def mutants() -> Iterator[bytes]:
            for i, byte in enumerate(good):
                others = range(256) if i % 97 == 0 else {(byte + 1) % 256, byte ^ 128, 10}
                yield from (good[:i] + bytes([other]) + good[i + 1 :] for other in others)

        assert self.missed(path, file, mutants()) == []

    @pytest.mark.parametrize("of", ["ledger", "head"])
    def test_every_cut_dropped_byte_and_added_byte_is_detected(self, path: Path, of: str) -> None:
        file = path if of == "ledger" else head_path(path)
        good, rng = file.read_bytes(), random.Random(0)

        def mutants() -> Iterator[bytes]:
            yield from (good[:i] for i in range(len(good)))
            yield from (good[:i] + good[i + 1 :] for i in range(len(good)))
            # Behind the last line an added byte is what a crash in an append leaves: dropped, with nothing counted.
            last = len(good) if of == "ledger" else len(good) + 1
            yield from (good[:i] + bytes([rng.randrange(256)]) + good[i:] for i in range(last))

        assert self.missed(path, file, mutants()) == []

    def test_every_deleted_repeated_or_moved_line_is_detected(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)

        def mutants() -> Iterator[bytes]:
            for i in range(len(lines)):
                yield b"".join(lines[:i] + lines[i + 1 :])
                yield b"".join([*lines[:i], lines[i], lines[i], *lines[i + 1 :]])
                for j in range(i):
                    moved = lines.copy()
                    moved[i], moved[j] = moved[j], moved[i]
                    yield b"".join(moved)

        assert self.missed(path, path, mutants()) == []

    def test_missing_files_fail_closed(self, path: Path) -> None:
        head = head_path(path).read_bytes()
        head_path(path).unlink()
        with pytest.raises(CorruptArtefact, match=r"\.head is missing") as caught:
            self.open(path)
        assert caught.value.exit_code == 6
        head_path(path).write_bytes(head)
        path.unlink()
        with pytest.raises(CorruptArtefact, match="is missing"):
            self.open(path)
        with pytest.raises(UsageError, match="a ledger exists"):
            self.start(path)

    def test_a_rollback_of_both_files_shows_only_against_a_head_kept_elsewhere(self, path: Path) -> None:
        old = path.read_bytes(), head_path(path).read_bytes()
        ledger = self.open(path)
        before = ledger.head()
        self.charge(ledger, 3)
        kept = ledger.head()
        for head in (before, kept):
            assert self.open(path, head).head() == kept
        for head in (Head(lines=0, sha256=kept.sha256), Head(lines=kept.lines, sha256=before.sha256)):
            with pytest.raises(CorruptArtefact, match="rolled back"):
                self.open(path, head)
        path.write_bytes(old[0]), head_path(path).write_bytes(old[1])
        assert self.count(path) == 3  # invisible from inside, as documented
        with pytest.raises(CorruptArtefact, match="rolled back"):
            self.open(path, kept)

    def test_a_rollback_under_an_open_ledger_shows_at_the_next_charge(self, path: Path) -> None:
        """Also one to another chain of the same length."""
        twin = path.with_name("twin.jsonl")
        other = self.start(twin)
        for n in (2, 1, 0):
            self.charge(other, n)
        ledger = self.open(path)
        assert twin.stat().st_size == path.stat().st_size and twin.read_bytes() != path.read_bytes()
        path.write_bytes(twin.read_bytes())
        with pytest.raises(FedrecallError, match="has changed"):
            self.charge(ledger, 3)

    def test_a_torn_append_is_dropped_and_a_whole_one_beyond_the_head_counts(self, path: Path) -> None:
        before, old_head = path.read_bytes(), head_path(path).read_bytes()
        self.charge(self.open(path), 3)
        after = path.read_bytes()
        for size in range(len(before) + 1, len(after) + 1):
            path.write_bytes(after[:size]), head_path(path).write_bytes(old_head)
            assert self.count(path) == (4 if size == len(after) else 3)
            assert path.read_bytes() == (after if size == len(after) else before)

    def test_an_open_ledger_does_not_charge_beside_another_one(self, path: Path) -> None:
        one, two = self.open(path), self.open(path)
        self.charge(one, 3)
        with pytest.raises(FedrecallError, match="another process"):
            self.charge(two, 4)
        assert self.count(path) == 4

    def test_two_processes_never_spend_the_same_release_twice(self, tmp_path: Path) -> None:
        processes = Processes(self.kind, tmp_path / "ledger.jsonl", steps=60)
        released, refused = processes.ask("race")
        processes.close()
        assert sorted(released) == list(range(60)) and len(refused) == 2
        assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 61

    def test_a_full_disk_releases_nothing_and_loses_nothing(self, tmp_path: Path) -> None:
        """The limit falls on every tenth byte of an entry, and behind it."""
        path = tmp_path / "ledger.jsonl"
        processes = Processes(self.kind, path, steps=40)
        total = 0
        for room in range(0, 350, 10):
            released, refused = processes.ask(f"fill {room}")
            assert len(refused) == 1 and "release nothing" in refused[0]
            total += len(released)
            assert max(0, path.read_bytes().count(b"\n") - 1) == total
        released, refused = processes.ask("charge")
        processes.close()
        assert "40" in refused[0] and total + len(released) == 40
        assert len(path.read_bytes().splitlines()) == 41

    def kill(self, folder: Path, kills: int, seed: int) -> tuple[int, int]:
        """Kill ``kills`` processes at random points, of a new ledger every hundred; return released and spent."""
        rng = random.Random(seed)
        all_released = all_spent = 0
        for first in range(0, kills, 100):
            path = folder / f"ledger-{first}.jsonl"
            processes, released = Processes(self.kind, path), set[int]()
            for _ in range(first, min(kills, first + 100)):
                seen, refused = processes.ask("charge", kill_after=rng.uniform(0, 0.04))
                assert not refused
                assert not set(seen) & released  # a spent release is never given away again
                released |= set(seen)
                on_disk = path.read_bytes().count(b"\n") if path.exists() else 0
                assert max(released, default=-1) < max(0, on_disk - 1)
                assert len(released) <= max(0, on_disk - 1)
            processes.close()
            all_released += len(released)
            all_spent += on_disk - 1
        return all_released, all_spent

    def test_kills_at_random_points_never_forget_a_release(self, tmp_path: Path) -> None:
        released, spent = self.kill(tmp_path, 30, seed=0)
        assert 0 < released <= spent <= released + 30

    @pytest.mark.slow
    def test_a_thousand_kills_never_forget_a_release(self, tmp_path: Path) -> None:
        released, spent = self.kill(tmp_path, 1000, seed=1)
        print(f"1000 kills of the {self.kind}'s ledger: released {released}, on disk {spent}")
        assert 0 < released <= spent <= released + 1000
