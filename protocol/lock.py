"""One process at a time: a lock on a file, which the system lifts when its holder dies in whatever way."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrecall.protocol.errors import DataError, FedrecallError

_POLL_S = 0.02


@contextmanager
def only_one(path: Path, busy: str, *, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock at ``path``, made if missing; yields its descriptor, for a child process to keep holding it.

    The file stays: who deleted it would let a second process lock a new one.

    Raises:
        FedrecallError: another process holds it, and still does after ``wait_s`` seconds; the message is ``busy``.
        DataError: the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{path} cannot be made ({error.strerror}): is its folder the right one?") from error
    try:
        ends = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= ends:
                    raise FedrecallError(busy) from error
                time.sleep(_POLL_S)
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
