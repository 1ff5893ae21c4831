"""Keeping one child process alive: restart with back-off, and a clean stop of it and of all that it started.

Nothing here knows what the child does. It runs in a process group of its own, so that a stop reaches its children too.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Literal

_STDERR = 2
_NOBODY = 127
"""What shells say of a program that cannot be started."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait before a restart, in seconds.

    Attributes:
        first_s: after the first end.
        most_s: never longer.
        steady_s: a child that lived so long starts the count anew.
    """

    first_s: float = 1.0
    most_s: float = 300.0
    steady_s: float = 60.0

    def delay_s(self, ends: int, chance: float) -> float:
        """Return the wait after ``ends`` ends in a row (from 1), doubled each time.

        ``chance`` in [0, 1) spreads it over the upper half, so that devices that a server lost together do not all
        come back together.
        """
        whole = min(self.most_s, self.first_s * 2.0 ** min(ends - 1, 60))
        return whole * (0.5 + 0.5 * chance)


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a supervised child is.

    Attributes:
        state: it runs, waits for its restart, or was stopped.
        pid: of the child, and of its process group; ``None`` while there is none.
        restarts: how often it was started again.
        last_exit: how it last ended: its exit code, or minus the signal that ended it; ``None`` before that.
        wait_s: until its restart; 0 otherwise.
    """

    state: Literal["running", "waiting", "stopped"]
    pid: int | None = None
    restarts: int = 0
    last_exit: int | None = None
    wait_s: float = 0.0


class _Stop:
    """Hears SIGTERM and SIGINT; hands them on to the child, and ends it after ``grace_s`` if it does not listen."""

    def __init__(self, grace_s: float) -> None:
        self.asked = threading.Event()
        self._grace_s = grace_s
        self._group: int | None = None
        self._timer: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()
        if self._group is not None:
            self._end(self._group)

    def watch(self, group: int) -> None:
        """Hand a stop on to the process group from now on, one that came before included."""
        self._group = group
        if self.asked.is_set():
            self._end(group)

    def over(self, group: int) -> None:
        """Take note that the child has ended; end what it left behind."""
        self._group = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _signal(group, signal.SIGKILL)

    def _end(self, group: int) -> None:
        _signal(group, signal.SIGTERM)
        if self._timer is None:
            self._timer = threading.Timer(self._grace_s, _signal, (group, signal.SIGKILL))
            self._timer.daemon = True
            self._timer.start()


def supervise(
    command: Callable[[], Sequence[str]],
    *,
    environment: Mapping[str, str],
    on_change: Callable[[Status], None],
    chance: Callable[[], float],
    backoff: Backoff | None = None,
    grace_s: float = 20.0,
    inherited: Sequence[int] = (),
) -> None:
    """Run a command until SIGTERM or SIGINT, starting it again whenever it ends; call from the main thread.

    The child's output goes to stderr, it cannot read stdin, and what it makes is its user's alone (umask 077). When
    this returns or raises, no process of it is left, but for one that put itself into another group.

    Args:
        command: returns the command line, anew for every start.
        environment: of the child, all of it; its PATH finds the program.
        on_change: told of every change of status.
        chance: returns a number in [0, 1) for the spread of restarts.
        backoff: how long to wait before them.
        grace_s: seconds that a stopped child has for a clean end.
        inherited: descriptors that the child keeps open, such as that of a lock.
    """
    backoff, stop = backoff or Backoff(), _Stop(grace_s)
    restarts, ends, last = 0, 0, None
    with _heard(stop):
        while not stop.asked.is_set():
            began = monotonic()
            last = _run(list(command()), environment, inherited, stop, restarts, last, on_change)
            if stop.asked.is_set():
                break
            ends = 1 if monotonic() - began >= backoff.steady_s else ends + 1
            wait_s = backoff.delay_s(ends, chance())
            on_change(Status(state="waiting", restarts=restarts, last_exit=last, wait_s=round(wait_s, 3)))
            stop.asked.wait(wait_s)
            restarts += 1
        on_change(Status(state="stopped", restarts=restarts, last_exit=last))


def _run(
    command: list[str],
    environment: Mapping[str, str],
    inherited: Sequence[int],
    stop: _Stop,
    restarts: int,
    last: int | None,
    on_change: Callable[[Status], None],
) -> int:
    """Run the child once; return how it ended."""
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            pass_fds=inherited,
            start_new_session=True,
            umask=0o077,
        )
    except OSError:
        return _NOBODY
    try:
        stop.watch(child.pid)
        on_change(Status(state="running", pid=child.pid, restarts=restarts, last_exit=last))
        return child.wait()
    except BaseException:
        _signal(child.pid, signal.SIGKILL)
        child.wait()
        raise
    finally:
        stop.over(child.pid)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextmanager
def _heard(stop: _Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
