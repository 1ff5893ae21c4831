"""Disks without room, as an operating system has them: a limit on the size of files, and a file system that is full.

Both hold for one process alone, which is forked: the rest of the tests keep their disk.
"""

import ctypes
import json
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_NO_PRIVILEGE = "no privilege to mount a small file system"
_BALLAST = "ballast"


def apart(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked process, as JSON; its exception is a failure."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            answer = {"answer": work()}
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "failed" not in found, found["failed"]
    return found["answer"]


def limit_files(most: int) -> None:
    """Let this process write no file beyond ``most`` bytes: every further one is refused with EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def on_a_disk(folder: Path, size: int, work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a process that sees a file system of ``size`` bytes at ``folder``.

    The test is skipped where that is not allowed.
    """

    def mounted() -> Any:
        try:
            _mount(folder, size)
        except OSError:
            return _NO_PRIVILEGE
        return work()

    found = apart(mounted)
    if found == _NO_PRIVILEGE:
        pytest.skip(_NO_PRIVILEGE)
    return found


def leave(folder: Path, room: int) -> None:
    """Fill the file system at ``folder`` until ``room`` bytes are left: what needs more is refused with ENOSPC."""
    with (folder / _BALLAST).open("wb") as ballast:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(ballast.fileno(), 0, free - room) if free > room else None


def empty(folder: Path) -> None:
    """Make room again."""
    (folder / _BALLAST).unlink()


def _mount(folder: Path, size: int) -> None:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    _done(libc.unshare(_NEW_USER | _NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _done(libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))


def _done(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
