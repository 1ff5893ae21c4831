"""A real device in Python: what ``fedrecall device`` does with a folder that is enrolled."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Device:
    """One user's enrolled device, by its folder. Its files are read anew at every call: it may take part meanwhile.

    ``fedrecall device init`` makes the folder and enrols it, ``fedrecall device join`` takes part.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the folder of an enrolled device.

        Raises:
            UsageError: no device is enrolled in it.
            DataError: others may read it.
        """
        from fedrecall.client.device.enrolment import enrolled

        self.folder = Path(folder)
        self.number = enrolled(self.folder).number

    def ingest(
        self,
        *files: Path | str,
        item: str = "item",
        time: str | None = None,
        time_format: str | None = None,
        event: str | None = None,
        weight: str | None = None,
    ) -> dict[str, Any]:
        """Add the events of files of any layout, all or none; return what was added and what dropped.

        Columns are by name, or by number from 1. What is there already is not added again. Raises DataError for a file
        that cannot be read.
        """
        from fedrecall.client.device.ingest import ingest
        from fedrecall.client.events.events import EventColumns
        from fedrecall.client.events.tables import Layout

        columns = EventColumns(item=item, time=time, event=event, weight=weight)
        paths = [Path(file) for file in files]
        return ingest(self.folder, paths, columns=columns, layout=Layout(), time_format=time_format)

    def recommend(self, release: Path | str, k: int = 10) -> list[dict[str, Any]]:
        """Return the ``k`` best items that the user has no event with, ``item`` and ``score``, best first.

        The search runs here, in the release (its folder, or a file of it), and leaves no trace.

        Raises:
            CorruptArtefact: a file of the release is not what its manifest says.
            UsageError: the release is of another plan, catalogue or model than the device agreed to.
        """
        from fedrecall.client.device.folder import DeviceFolder
        from fedrecall.client.recall.recommend import recommend, release_folder
        from fedrecall.server.recall.release import load_release

        files = load_release(release_folder(Path(release)))
        found = recommend(DeviceFolder(self.folder), files.manifest, files.model, files.items, k=k)
        return [asdict(one) for one in found]

    def ledger(self) -> Mapping[str, Any]:
        """Return what was spent, for which plans, and what is left; raises CorruptArtefact for a broken chain."""
        from fedrecall.client.device.enrolment import enrolled
        from fedrecall.client.device.home import ledger_path
        from fedrecall.privacy.ledger.device_report import device_report

        return device_report(ledger_path(self.folder), enrolled(self.folder).task.plan, datetime.now(UTC))
