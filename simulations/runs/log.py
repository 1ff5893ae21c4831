"""``logs/run.log`` of a run folder: one line a finished stage, with the time it took. It holds no data."""

import time
from datetime import UTC, datetime
from pathlib import Path

from fedrecall.protocol.errors import FedrecallError
from fedrecall.simulations.training.world import Progress


class LoggedProgress:
    """Hands progress on, and appends a line to the log whenever a stage is done. Interrupted runs leave theirs."""

    def __init__(self, progress: Progress, path: Path) -> None:
        """Append to ``path``; missing folders are made with the first line."""
        self._progress = progress
        self._path = path
        self._began: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Hand on; raises FedrecallError when the log cannot be written."""
        began = self._began.setdefault(stage, time.monotonic())
        if done >= total > 0:
            del self._began[stage]
            took = time.monotonic() - began
            line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {stage}: {total:,} in {took:.1f} s\n"
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                raise FedrecallError(
                    f"{self._path} cannot be written ({error.strerror}); free some disk space"
                ) from error
        self._progress(stage, done, total)
