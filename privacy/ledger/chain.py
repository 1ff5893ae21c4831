"""An append-only file of JSON lines that cannot be edited, cut or reordered unseen: what both ledgers stand on.

The file holds one canonical JSON object a line. Each line carries the hash of the line before (``previous``) and
a hash of itself (``sha256``). Beside it lies the head (``<file>.head``: number of lines, hash of the last),
replaced atomically after every append.

An append writes and syncs the line, syncs the folder, replaces and syncs the head, and only then returns. So a
crash leaves at most one whole line beyond the head (it counts, to be safe) or a torn one (dropped: its append
never returned). Any other difference fails closed: an edited byte, a missing or moved line, a missing file.

What no file beside the chain can show is file *and* head put back together to an earlier state. That takes a
head kept elsewhere: ``head()`` returns it, and ``at_least=head`` refuses a chain that does not continue it.
Whoever may write both files can also forge a whole chain: it is evidence, not a signature.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError
from fedrecall.protocol.files import remove_leftovers, sha256_of, sync_folder, write_atomic

_START = "0" * 64
_LINKS = ("previous", "sha256")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain stood: its number of lines and the hash of the last one."""

    lines: int
    sha256: str


class Chain:
    """A chain on disk. Made by ``create``, ``open``, ``resume`` or ``read``; safe to share between processes."""

    def __init__(self, path: Path, lines: list[bytes]) -> None:
        self._path = path
        self._size = sum(map(len, lines))
        self._last = len(lines[-1])
        self._hashes = [sha256_of(line) for line in lines]
        self._entries = [{k: v for k, v in json.loads(line).items() if k not in _LINKS} for line in lines]

    @classmethod
    def create(cls, path: str | Path, first: Mapping[str, Any]) -> "Chain":
        """Start a chain with its first entry in a new file; UsageError when ``path`` or its head exists already."""
        path = Path(path)
        if path.exists() or head_path(path).exists():
            raise UsageError(f"a ledger exists at {path}: open it, or choose another folder")
        line = _line(first, _START)
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL) as descriptor:
                _refuse_unless(os.fstat(descriptor).st_size == 0, path)
                _write(path, descriptor, line, lines=1)
        return cls(path, [line])

    @classmethod
    def open(cls, path: str | Path, *, at_least: Head | None = None) -> "Chain":
        """Replay the chain at ``path`` and repair what a crash left.

        Raises:
            CorruptArtefact: a file is missing, truncated or edited, the chain is broken, or it does not continue
                ``at_least``, a head that was kept elsewhere.
            FedrecallError: the disk failed.
        """
        path = Path(path)
        with _disk(path), _locked(path, os.O_RDWR | os.O_APPEND) as descriptor:
            lines, torn = _verified(path, descriptor, at_least)
            if torn:
                os.ftruncate(descriptor, sum(map(len, lines)))
                os.fsync(descriptor)
            write_atomic(head_path(path), _head_bytes(Head(lines=len(lines), sha256=sha256_of(lines[-1]))), mode=0o600)
            remove_leftovers(path.parent, head_path(path).name)
        return cls(path, lines)

    @classmethod
    def resume(cls, path: str | Path, first: Mapping[str, Any]) -> "Chain":
        """Open the chain at ``path``, or start one with ``first`` where a kill came before a first line was whole.

        For who knows nothing of earlier appends: with a head kept elsewhere, ``open`` it, so that a chain that is
        gone is missed. Raises as ``open`` does.
        """
        path = Path(path)
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = head_path(path).exists()
            with _locked(path, os.O_RDWR | os.O_APPEND | (0 if begun else os.O_CREAT)) as descriptor:
                if not head_path(path).exists() and b"\n" not in _bytes(descriptor):
                    os.ftruncate(descriptor, 0)
                    _write(path, descriptor, _line(first, _START), lines=1)
        return cls.open(path)

    @classmethod
    def read(cls, path: str | Path) -> "Chain":
        """Replay the chain at ``path`` as ``open`` does, and write nothing: neither repair nor head."""
        path = Path(path)
        with _disk(path), _locked(path, os.O_RDONLY) as descriptor:
            lines, _ = _verified(path, descriptor, None)
        return cls(path, lines)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry; when this returns, it is on disk, and so is the head that counts it.

        Raises:
            CorruptArtefact: the file is gone.
            FedrecallError: the disk failed, or the file is not as this object last saw it: another process wrote,
                or an earlier append failed half-way. What was to be recorded must not happen; open the chain again.
        """
        line = _line(entry, self._hashes[-1])
        with _disk(self._path), _locked(self._path, os.O_RDWR | os.O_APPEND) as descriptor:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, self._last, max(0, size - self._last))
            _refuse_unless(size == self._size and sha256_of(tail) == self._hashes[-1], self._path)
            _write(self._path, descriptor, line, lines=len(self._hashes) + 1)
        self._size, self._last = self._size + len(line), len(line)
        self._hashes.append(sha256_of(line))
        self._entries.append(dict(entry))

    @property
    def path(self) -> Path:
        """The file of the chain."""
        return self._path

    @property
    def entries(self) -> tuple[dict[str, Any], ...]:
        """Every entry from the first on, without what links it."""
        return tuple(self._entries)

    def head(self) -> Head:
        """Return where the chain stands, for keeping elsewhere."""
        return Head(lines=len(self._hashes), sha256=self._hashes[-1])

    def holds(self, sha256: str) -> bool:
        """Whether a line has this hash: whether the chain continues a head of which only the hash was kept."""
        return sha256 in self._hashes


def head_path(path: Path) -> Path:
    """Return where the head of the chain at ``path`` lies."""
    return path.with_name(path.name + ".head")


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _line(entry: Mapping[str, Any], previous: str) -> bytes:
    linked = dict(entry) | {"previous": previous}
    return _canonical(linked | {"sha256": sha256_of(_canonical(linked))})


def _head_bytes(head: Head) -> bytes:
    return _canonical({"lines": head.lines, "sha256": head.sha256})


def _bytes(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _verified(path: Path, descriptor: int, at_least: Head | None) -> tuple[list[bytes], bool]:
    """Return the whole lines, each proven to follow the one before, and whether a torn one follows the head."""
    head = _read_head(path)
    *whole, rest = _bytes(descriptor).split(b"\n")
    lines, torn = [line + b"\n" for line in whole], bool(rest)
    if head is None and (len(lines) != 1 or torn):  # else a crash in ``create``: nothing was recorded yet
        raise CorruptArtefact(f"{head_path(path)} is missing: restore it together with the ledger")
    if head is not None:
        if not head.lines <= len(lines) <= head.lines + 1 or (torn and len(lines) != head.lines):
            raise CorruptArtefact(f"{path} has {len(lines)} whole lines, its head counts {head.lines}: restore both")
        if sha256_of(lines[head.lines - 1]) != head.sha256:
            raise CorruptArtefact(f"{path} line {head.lines} is not the one its head names: restore both")
    previous = _START
    for number, line in enumerate(lines, start=1):
        if not _follows(line, previous):
            raise CorruptArtefact(f"{path} line {number} breaks the chain: restore the ledger and its head")
        previous = sha256_of(line)
    if at_least and not (1 <= at_least.lines <= len(lines) and sha256_of(lines[at_least.lines - 1]) == at_least.sha256):
        raise CorruptArtefact(f"{path} was rolled back: it does not continue line {at_least.lines}; restore it")
    return lines, torn


def _follows(line: bytes, previous: str) -> bool:
    try:
        entry = json.loads(line)
        del entry["sha256"]
        return _line(entry, previous) == line
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _read_head(path: Path) -> Head | None:
    try:
        raw = head_path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        data = json.loads(raw)
        head = Head(lines=int(data["lines"]), sha256=str(data["sha256"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptArtefact(f"{head_path(path)} is no ledger head: restore it") from error
    if raw != _head_bytes(head) or head.lines < 1:
        raise CorruptArtefact(f"{head_path(path)} was edited: restore it")
    return head


def _write(path: Path, descriptor: int, line: bytes, *, lines: int) -> None:
    """Append a line, sync it, then replace the head; in this order, so that no head counts a line that is not there."""
    if os.write(descriptor, line) != len(line):
        raise OSError("it took a part of the line only")
    os.fsync(descriptor)
    sync_folder(path.parent)
    write_atomic(head_path(path), _head_bytes(Head(lines=lines, sha256=sha256_of(line))), mode=0o600)


def _refuse_unless(unchanged: bool, path: Path) -> None:
    if not unchanged:
        raise FedrecallError(f"{path} has changed: another process wrote, or a write failed; reopen it")


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if flags & os.O_ACCMODE == os.O_RDONLY else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the disk says into errors with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptArtefact(f"{error.filename} is missing: restore the ledger and its head together") from error
    except OSError as error:
        why = error.strerror or error
        raise FedrecallError(f"{path} cannot be used ({why}): free space, fix rights; release nothing") from error
