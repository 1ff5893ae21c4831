"""Child processes that end with their parent, come back when they die, and wait longer each time that they do.

Run as ``python -m fedrecall.server.operation.children COMMAND...`` it is the tether between the two: its standard input
ends when the parent dies, even by kill -9, and then it ends the command.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FIRST_S, MOST_S, CALM_S = 1.0, 60.0, 120.0
"""The first and the longest pause before a restart, and after how long alive the pauses start anew."""
_STOP_S = 15.0


class BackOff:
    """How long to wait before the next try: twice as long each time, from one second to a minute."""

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self._pause, self._due = FIRST_S, 0.0

    def is_due(self) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self._due

    def failed(self, *, after_s: float) -> None:
        """Note a failure ``after_s`` seconds of success."""
        if after_s >= CALM_S:
            self._pause = FIRST_S
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, MOST_S)


class Child:
    """One child process, restarted as long as somebody calls ``keep``."""

    def __init__(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
        """Prepare the child; ``keep`` starts it. Its output is appended to ``log``."""
        self._command = [sys.executable, "-m", __name__, *command]
        self._log, self._cwd, self._environment = log, cwd, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._back_off, self._started = BackOff(), 0.0
        self.starts = 0

    def keep(self) -> bool:
        """Start the child if it is not running and its pause is over; return whether it runs."""
        if self._process is not None:
            if self._process.poll() is None:
                return True
            self._end_group()
            self._process = None
            self._back_off.failed(after_s=time.monotonic() - self._started)
        if not self._back_off.is_due():
            return False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started = time.monotonic()
        self.starts += 1
        return True

    def stop(self) -> None:
        """End the child, gently first."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S + 5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._end_group()
        self._process.wait()
        self._process = None

    def _end_group(self) -> None:
        """End what a killed tether left behind: the command has the tether's process group."""
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def tether(command: Sequence[str]) -> int:
    """Run ``command`` until it ends, a signal comes, or standard input ends; return its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def parent_dies() -> None:
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=parent_dies, daemon=True).start()
    while process.poll() is None and not stop.wait(0.2):
        pass
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


if __name__ == "__main__":
    # A command that a signal ended has a negative code.
    sys.exit(min(255, abs(tether(sys.argv[1:]))))
