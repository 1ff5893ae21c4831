"""One process at a time: a lock on a file, which the system lifts when its holder dies in whatever way."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrecall.protocol.errors import DataError, FedrecallError


@contextmanager
def only_one(path: Path, busy: str) -> Iterator[int]:
    """Hold the lock at ``path``, made if missing; yields its descriptor, for a child process to keep holding it.

    The file stays: who deleted it would let a second process lock a new one.

    Raises:
        FedrecallError: another process holds it; the message is ``busy``.
        DataError: the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{path} cannot be made ({error.strerror}): is its folder the right one?") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FedrecallError(busy) from error
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at ``path`` now; a lock that nobody made is not held, nor made."""
    if not path.exists():
        return False
    try:
        with only_one(path, ""):
            return False
    except DataError:
        raise
    except FedrecallError:
        return True
