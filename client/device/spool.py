"""A stream of events as a file for as long as it is read: readers look at a file more than once."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedrecall.protocol.errors import DataError, FedrecallError

SPOOLED = "stdin"
MAX_BYTES = 1 << 30
_BLOCK = 1 << 20


@contextmanager
def spooled(stream: BinaryIO, folder: Path, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """Copy ``stream`` to its end into a file of ``folder`` that its user alone may read; yields and deletes it.

    What a killed process left behind is deleted first, and what one that lives is using is not.

    Raises:
        DataError: the stream has more than ``max_bytes``.
        FedrecallError: the disk failed.
    """
    for old in folder.glob(f".{SPOOLED}.*.tmp"):
        _delete_if_dead(old)
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{SPOOLED}.", suffix=".tmp")
    except OSError as error:
        raise FedrecallError(f"{folder} takes no file ({error.strerror}): free disk space, check rights") from error
    path = Path(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = 0
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > max_bytes:
                raise DataError(f"stdin has more than {max_bytes} bytes: give files, or less at once")
            try:
                while block:
                    block = block[os.write(descriptor, block) :]
            except OSError as error:
                raise FedrecallError(f"{path} cannot be written ({error.strerror}): free disk space") from error
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _delete_if_dead(path: Path) -> None:
    """Delete a spooled file that nobody holds locked any more."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (FileNotFoundError, BlockingIOError):
        return
