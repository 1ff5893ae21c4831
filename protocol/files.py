"""Files that are either whole or absent: written beside their place, synced to disk, then moved onto it."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.jsontext import dumps

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by a file of ``mode`` that holds ``data``; missing parent folders are made.

    When this returns, the bytes and the name are on disk. Whenever it does not (an error, a kill, a power
    cut), ``path`` still is what it was before: the old file, or none. A killed process may leave a hidden
    ``.<name>.*.tmp`` behind, which ``remove_leftovers`` clears.

    Raises:
        FedrecallError: the disk is full, the folder is read-only, or the like; names the path and the remedy.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise FedrecallError(_why(path, len(data), error)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Replace ``path`` by a file of ``mode`` that holds ``value`` as indented strict JSON with a final newline.

    Raises:
        FedrecallError: the value is not strict JSON, or ``write_atomic`` fails.
    """
    write_atomic(path, dumps(value, indent=2).encode() + b"\n", mode=mode)


def check_room(folder: Path, size: int) -> None:
    """Raise FedrecallError, naming ``folder`` and the remedy, unless a file of ``size`` bytes fits there now.

    The room is taken and given back: a number of free bytes says nothing of quotas, limits and what is reserved.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except AttributeError:  # not on every system
                file.write(bytes(size))
                file.flush()
    except OSError as error:
        raise FedrecallError(_why(Path(folder), size, error)) from error


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete what killed writers of ``folder/name`` (a glob pattern) left; for its one writer only."""
    for path in Path(folder).glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of ``path``; the size is checked before anything is allocated.

    Raises:
        CorruptArtefact: missing, unreadable, or longer than ``max_bytes``.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise CorruptArtefact(f"{path} has {size} bytes, at most {max_bytes} are read: fetch it again")
            return file.read(size)
    except OSError as error:
        raise CorruptArtefact(f"{path} cannot be read ({error.strerror}): fetch or write it again") from error


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex, without reading it into memory at once; raises CorruptArtefact."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptArtefact(f"{path} cannot be read ({error.strerror}): fetch or write it again") from error


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk, so that a rename or a deletion survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(path: Path, size: int, error: OSError) -> str:
    """Say what failed and what helps."""
    if error.errno in _FULL:
        return f"{path}: no room for {size} bytes ({error.strerror}); nothing was changed: free some disk space"
    return f"{path} cannot be written ({error.strerror}); nothing was changed: check the folder's permissions"
