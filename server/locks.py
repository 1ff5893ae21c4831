"""One process at a time: a lock on a file, which the system lifts when its holder dies in whatever way."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrecall.protocol.errors import UsageError

UP, ROUNDS = ".up.lock", ".rounds.lock"
"""Held by the one ``server up`` of a job, and by the one process that runs its rounds."""


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock ``path``; raises UsageError where another process holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{path.parent} is in use by another process, which holds {path.name}: end that one"
            ) from None
        yield


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now."""
    try:
        with only_one(path):
            return False
    except UsageError:
        return True
