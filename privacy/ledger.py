"""The ledger: an append-only record of what was spent against a plan, on disk before anything is released.

The file holds one canonical JSON object a line: the plan first, then one entry per charge. Each line
carries the hash of the line before and a hash of itself. Beside it lies the head (``<file>.head``: number
of lines, hash of the last), replaced atomically after every append. It holds events of the plan
(mechanism, round, noise key), never data.

A charge appends, syncs file and folder, replaces and syncs the head, and only then returns. So a crash
leaves at most one whole line beyond the head (counted, to be safe) or a torn one (dropped: its charge never
returned). Any other difference fails closed: an edited byte, a missing or moved line, a missing file.

What no file beside the ledger can show is file *and* head put back together to an earlier state. That takes a
head kept elsewhere: ``head()`` returns it for a release's manifest or for the other side of the wire, and
``open(..., at_least=head)`` refuses a ledger that does not continue it.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import (
    BudgetExhausted,
    CorruptArtefact,
    FedrecallError,
    PlanError,
    UsageError,
)
from fedrecall.protocol.files import remove_leftovers, sha256_of, sync_folder, write_atomic
from fedrecall.protocol.plan import Plan

_START = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a ledger stood: its number of lines and the hash of the last one."""

    lines: int
    sha256: str


class Ledger:
    """What was spent against one plan. Made by ``create`` or ``open``; safe to share between processes."""

    def __init__(self, path: Path, plan: Plan, lines: list[bytes]) -> None:
        self._path = path
        self._plan = plan
        self._size = sum(map(len, lines))
        self._head = Head(lines=len(lines), sha256=sha256_of(lines[-1]))
        entries = [json.loads(line) for line in lines[1:]]
        self._spent = Counter(entry["mechanism"] for entry in entries)
        self._keys = {(entry["mechanism"], entry["round"], entry["key"]) for entry in entries}

    @classmethod
    def create(cls, path: str | Path, plan: Plan) -> "Ledger":
        """Start an empty ledger in a new file; UsageError when ``path`` or its head exists already."""
        path = Path(path)
        if path.exists() or _head_path(path).exists():
            raise UsageError(f"a ledger exists at {path}: open it, or choose another folder")
        line = _line({"previous": _START, "plan": plan.to_dict(), "digest": plan.digest()})
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, line, Head(lines=1, sha256=sha256_of(line)), expected_size=0)
        return cls(path, plan, [line])

    @classmethod
    def open(cls, path: str | Path, plan: Plan, *, at_least: Head | None = None) -> "Ledger":
        """Replay the ledger at ``path`` and repair what a crash left.

        Raises:
            CorruptArtefact: a file is missing, truncated or edited, the chain is broken, or the ledger does
                not continue ``at_least``, a head that was kept elsewhere.
            PlanError: it is the ledger of another plan.
        """
        path = Path(path)
        with _disk(path), _locked(path) as descriptor:
            lines, torn = _read(path)
            if torn:
                os.ftruncate(descriptor, sum(map(len, lines)))
                os.fsync(descriptor)
            _verify(path, lines)
            if at_least and not (
                1 <= at_least.lines <= len(lines) and sha256_of(lines[at_least.lines - 1]) == at_least.sha256
            ):
                raise CorruptArtefact(f"{path} was rolled back: it does not continue line {at_least.lines}")
            if json.loads(lines[0])["digest"] != plan.digest():
                raise PlanError(f"{path} is the ledger of another plan: use that plan, or start a new ledger")
            write_atomic(_head_path(path), _head_bytes(Head(lines=len(lines), sha256=sha256_of(lines[-1]))))
            remove_leftovers(path.parent, _head_path(path).name)
        return cls(path, plan, lines)

    @classmethod
    def resume(cls, path: str | Path, plan: Plan) -> "Ledger":
        """Open the ledger at ``path``, or start one where a kill came before its first line was whole.

        For who knows nothing of earlier charges: with a head kept elsewhere, ``open`` it, so that a ledger that is
        gone is missed. Raises as ``create`` and ``open`` do.
        """
        path = Path(path)
        with _disk(path):
            begun = path.exists() and b"\n" in path.read_bytes()
        if begun or _head_path(path).exists():
            return cls.open(path, plan)
        path.unlink(missing_ok=True)
        return cls.create(path, plan)

    def charge(self, mechanism: str, round: int, key: str) -> bool:
        """Record one release of ``mechanism`` durably, before it is made.

        Args:
            mechanism: its name in the plan.
            round: which of its releases, from 0.
            key: names the noise: a digest of seed, plan and round in a simulation, else a nonce.

        Returns:
            True when charged; False in a simulation that charged the same (mechanism, round, key) before, so
            that a replay with identical noise is charged once. Outside a simulation a retry is charged again.

        Raises:
            PlanError: the plan has no such mechanism, or ``round`` is negative.
            BudgetExhausted: the plan's releases of it are spent.
            FedrecallError: disk failed, or another process charged meanwhile. Release nothing; open it again.
        """
        limit = self._plan.mechanism(mechanism).steps
        if round < 0:
            raise PlanError(f"round is {round}: choose it at least 0")
        if self._plan.simulated and (mechanism, round, key) in self._keys:
            return False
        if self._spent[mechanism] >= limit:
            raise BudgetExhausted(f"{mechanism} has spent all of its {limit} releases: a new plan must allow more")
        entry = {"previous": self._head.sha256, "mechanism": mechanism, "round": int(round), "key": key}
        line = _line(entry)
        head = Head(lines=self._head.lines + 1, sha256=sha256_of(line))
        with _disk(self._path):
            _append(self._path, line, head, expected_size=self._size)
        self._head, self._size = head, self._size + len(line)
        self._spent[mechanism] += 1
        self._keys.add((mechanism, round, key))
        return True

    def spent(self) -> dict[str, int]:
        """Return the number of charged releases of every mechanism of the plan."""
        return {m.name: self._spent[m.name] for m in self._plan.mechanisms}

    def spent_plan(self) -> Plan:
        """Return the plan with its steps replaced by those spent: account it for the epsilon spent so far."""
        mechanisms = tuple(replace(m, steps=self._spent[m.name]) for m in self._plan.mechanisms)
        return replace(self._plan, mechanisms=mechanisms)

    def head(self) -> Head:
        """Return where the ledger stands, for keeping elsewhere."""
        return self._head


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _line(entry: dict[str, Any]) -> bytes:
    return _canonical(entry | {"sha256": sha256_of(_canonical(entry))})


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read(path: Path) -> tuple[list[bytes], bool]:
    """Return the whole lines of the file, and whether a torn one follows them beyond the head."""
    head = _read_head(path)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    if torn:
        lines.pop()
    if head is None and len(lines) == 1 and not torn:
        return lines, torn  # a crash in ``create``: nothing was charged yet
    if head is None:
        raise CorruptArtefact(f"{_head_path(path)} is missing: restore it together with the ledger")
    if not head.lines <= len(lines) <= head.lines + 1 or (torn and len(lines) != head.lines):
        raise CorruptArtefact(f"{path} has {len(lines)} whole lines, its head counts {head.lines}: restore both")
    if sha256_of(lines[head.lines - 1]) != head.sha256:
        raise CorruptArtefact(f"{path} line {head.lines} is not the one its head names: restore both")
    return lines, torn


def _read_head(path: Path) -> Head | None:
    try:
        raw = _head_path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        data = json.loads(raw)
        head = Head(lines=int(data["lines"]), sha256=str(data["sha256"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptArtefact(f"{_head_path(path)} is no ledger head: restore it") from error
    if raw != _head_bytes(head) or head.lines < 1:
        raise CorruptArtefact(f"{_head_path(path)} was edited: restore it")
    return head


def _verify(path: Path, lines: list[bytes]) -> None:
    previous = _START
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            del entry["sha256"]
            intact = _line(entry) == line and entry["previous"] == previous
            intact = intact and ("plan" in entry) == (number == 1)
        except (ValueError, KeyError, AttributeError, TypeError):
            intact = False
        if not intact:
            raise CorruptArtefact(f"{path} line {number} breaks the chain: restore the ledger and its head")
        previous = sha256_of(line)


def _append(path: Path, line: bytes, head: Head, *, expected_size: int) -> None:
    """Append one line, sync it, then replace the head; refuses when the file is not as long as expected."""
    with _locked(path, create=expected_size == 0) as descriptor:
        size = os.fstat(descriptor).st_size
        if size != expected_size:
            raise FedrecallError(f"{path} has {size} bytes, not {expected_size}: another process wrote; reopen it")
        if os.write(descriptor, line) != len(line):
            raise OSError("it took a part of the line only")
        os.fsync(descriptor)
        sync_folder(path.parent)
        write_atomic(_head_path(path), _head_bytes(head))


def _head_bytes(head: Head) -> bytes:
    return _canonical({"lines": head.lines, "sha256": head.sha256})


@contextmanager
def _locked(path: Path, *, create: bool = False) -> Iterator[int]:
    flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
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
        raise FedrecallError(f"{path} cannot be written ({why}): free space, fix rights; release nothing") from error
