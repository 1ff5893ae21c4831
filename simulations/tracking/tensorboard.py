"""A run as TensorBoard shows it. Needs the extra ``track``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.tracking.scalars import scalars


class TensorBoard:
    """Writes curves of every validation and the test's figures into a folder that TensorBoard reads.

    A ``Callback``: what such a log says is outside epsilon.
    """

    def __init__(self, folder: Path | str) -> None:
        """Write into ``folder``; raises UsageError where tensorboard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("tensorboard is not installed: pip install 'fedrecall[track]'") from error
        self._writer = SummaryWriter(str(folder))

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write the settings as text."""
        lines = [f"    {name} = {value}" for name, value in scalars(config, all=True).items()]
        self._writer.add_text("settings", "\n".join(lines))

    def measured(self, row: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        for name, value in scalars(row).items():
            self._writer.add_scalar(f"validation/{name}", value, row["round"])
        self._writer.flush()

    def end(self, result: Mapping[str, Any]) -> None:
        """Add the test's figures, at the last round."""
        last = max((row["round"] for row in result["history"]), default=0)
        for name, value in scalars(result["metrics"]).items():
            self._writer.add_scalar(f"test/{name}", value, last)
        self._writer.close()
