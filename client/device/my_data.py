"""All that a device's folder holds about its user: handed out in one file, or forgotten."""

import io
import os
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedrecall.client.device.enrolment import ENROLMENT, EVENTS, LEDGER, LEDGER_LOCK, SENT, STATE, check_private
from fedrecall.client.device.home import ledger_path
from fedrecall.client.device.join import FLOWER, LOCK, PROGRAMS, ROOTS, STATUS
from fedrecall.client.device.node_key import PRIVATE, PUBLIC
from fedrecall.client.device.spool import SPOOLED
from fedrecall.client.events.database import EventDatabase
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import read_bounded, sync_folder, write_atomic
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.lock import only_one
from fedrecall.protocol.tensors import unpack

_MAX_BYTES = 1 << 30
_DATABASE = (EVENTS, f"{EVENTS}-wal", f"{EVENTS}-shm", f"{EVENTS}-journal")
_FORGOTTEN = (*_DATABASE, STATE, ENROLMENT, PRIVATE, PUBLIC, ROOTS, STATUS)
"""In this order, so that a kill leaves the least telling part."""
_WRITTEN = (*_FORGOTTEN, SPOOLED, f"{LEDGER}.head")
"""What a killed process may have left half-written."""
_EPOCH = (1980, 1, 1, 0, 0, 0)

CANNOT_BE_TAKEN_BACK = (
    "What left this device stays where it went: updates are in the releases that were made from them, as much as the "
    "ledger counts, and copies of releases cannot be called back.",
    "The ledger stays, in the folder or in the home above it. It holds no event: what was spent, on which days, for "
    "which plan. Without it the same budget could be spent twice about the same person.",
    "The server still has this device's public key and number: ask its operator to remove them.",
    "Copies elsewhere, such as backups and the files that were ingested, are yours to delete; flash storage may keep "
    "deleted blocks for a while.",
)

_README = """What this device knew about its user, exported {now} (UTC).

events.jsonl             one event a line, oldest first: item, time (seconds since 1970, UTC), type, strength
                         (log2(1 + weight as ingested), or 1)
device.json              the device's number, its server, and the privacy plan that it agreed to
ledger.jsonl             every participation: plan, round, what it cost (mu^2), day; each line carries the hash of the
                         one before. In a home it counts the devices of all jobs
tower.json               the private part of the model, as numbers by name, where rounds train it; it never left
last_update.safetensors  the arrays that left this device last; at most this much leaves in a round

Not in here: the device's private key, which says nothing about its user and lets whoever has it take its place; and
the public catalogue.
"""


def export_my_data(folder: Path, target: Path, now: datetime | None = None) -> dict[str, Any]:
    """Write all that ``folder`` holds about its user into one new zip file that only its user may read.

    Returns ``file``, ``bytes``, ``events``, ``members``.

    Raises:
        UsageError: ``target`` exists, or the folder holds no device.
        CorruptArtefact: a file of the folder cannot be read.
        FedrecallError: ``target`` cannot be written.
    """
    _check_is_device(folder)
    if target.exists():
        raise UsageError(f"{target} exists: name a new file")
    members: dict[str, bytes] = {"README.txt": _README.format(now=(now or datetime.now(UTC)).isoformat()).encode()}
    events = 0
    if (folder / EVENTS).exists():
        with EventDatabase(folder / EVENTS) as database:
            lines = [dumps(event._asdict()) for event in database.events()]
        events, members["events.jsonl"] = len(lines), "".join(line + "\n" for line in lines).encode()
    if (folder / ENROLMENT).exists():
        members["device.json"] = _about(Invitation.load(folder / ENROLMENT))
    if ledger_path(folder).exists():
        members["ledger.jsonl"] = read_bounded(ledger_path(folder), max_bytes=_MAX_BYTES)
    members |= dict(_model(folder / STATE))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    write_atomic(target, data.getvalue(), mode=0o600)
    return {"file": str(target), "bytes": len(data.getvalue()), "events": events, "members": list(members)}


def forget(folder: Path) -> dict[str, Any]:
    """Delete a device's events, tower, key, enrolment and Flower's files; its ledger stays. Repeating it is safe.

    Only files that a device makes are deleted, whatever else the folder holds.

    Returns ``deleted`` (names), ``kept`` (what is left in the folder), ``cannot_be_taken_back`` (sentences).

    Raises:
        UsageError: the folder holds no device.
        FedrecallError: the device is taking part: end that first.
    """
    _check_is_device(folder)
    deleted = []
    with only_one(folder / LOCK, f"the device in {folder} is taking part: end its `device join` first"):
        for path in [folder / name for name in _FORGOTTEN] + _leftovers(folder):
            if path.exists() or path.is_symlink():
                path.unlink()
                deleted.append(path.name)
        for tree in (folder / FLOWER, folder / PROGRAMS):
            if tree.is_dir() and not tree.is_symlink():
                _remove_tree(tree)
                deleted.append(tree.name)
        sync_folder(folder)
    return {
        "deleted": deleted,
        "kept": sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, LEDGER_LOCK)),
        "cannot_be_taken_back": list(CANNOT_BE_TAKEN_BACK),
    }


def _check_is_device(folder: Path) -> None:
    check_private(folder)
    made = (PRIVATE, ENROLMENT, EVENTS, LEDGER)
    if not any((folder / name).exists() for name in made):
        raise UsageError(f"{folder} holds no device: name the folder of one")


def _about(invitation: Invitation) -> bytes:
    said = invitation.to_dict()
    kept = {key: said[key] for key in ("number", "address", "release", "task", "event_weights")}
    return dumps(kept, indent=2).encode() + b"\n"


def _model(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the tower, readable, and the update that was sent last, as it was sent."""
    if path.exists():
        arrays, _ = unpack(read_bounded(path, max_bytes=_MAX_BYTES), what=str(path))
        sent = arrays.pop(SENT, None)
        yield "tower.json", dumps({name: array.tolist() for name, array in arrays.items()}).encode()
        if sent is not None:
            yield "last_update.safetensors", sent.tobytes()


def _leftovers(folder: Path) -> list[Path]:
    """Return what killed writers of the folder's files left."""
    return [path for name in _WRITTEN for path in folder.glob(f".{name}.*.tmp")]


def _remove_tree(folder: Path) -> None:
    """Delete a folder and all in it; links in it are deleted, not followed."""
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            (Path(place) / name).unlink()
        for name in folders:
            path = Path(place) / name
            path.unlink() if path.is_symlink() else path.rmdir()
    folder.rmdir()
