"""What a deployment is for: a public catalogue, what each device's user did, and how good the lists are in the end."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from deployment import Deployment, fedrecall

from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.synthetic import synthetic_dataset

K, HELD_OUT, LEAST = 10, 0.2, 10
"""Length of a list; the share of a device's newest events that stay out of its store; events that a device has."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A data set, and the users that become devices: the first that have enough events."""

    data: Dataset
    users: tuple[int, ...]

    @classmethod
    def of(cls, devices: int, dataset: str | None, path: Path | None) -> "World":
        """Return a made-up world, or that of ``dataset``; raises ValueError where it has too few users."""
        made_up = dataset is None
        data = (
            synthetic_dataset(users=4 * devices, items=240) if made_up else load_dataset(str(dataset), data_path=path)
        )
        users = np.flatnonzero(data.events.counts() >= LEAST)[:devices]
        if len(users) < devices:
            raise ValueError(f"{data.name} has {len(users)} users with {LEAST} events or more, {devices} are wanted")
        return cls(data=data, users=tuple(users.tolist()))

    def write_catalogue(self, path: Path) -> Path:
        """Write the public items: identifier, title, categories."""
        items = self.data.catalogue
        rows = zip(items.ids, items.titles, map("|".join, items.categories), strict=True)
        return _write(path, ("item", "title", "categories"), rows)

    def write_events(self, path: Path, device: int) -> Path:
        """Write what the device's user did, but for the newest events."""
        kept, _ = self._split(device)
        return _write(path, ("item",), ([item] for item in kept))

    def recommended(self, deployment: Deployment, device: int) -> dict[str, Any]:
        """Return the list that a device makes of the last release, with titles, and the recall of what it held out."""
        release = deployment.job / "releases" / "latest"
        found = fedrecall("device", "recommend", deployment.device(device), "--release", release, "--k", str(K))
        items, titles = (
            [row["item"] for row in found["items"]],
            dict(zip(self.data.catalogue.ids, self.data.catalogue.titles, strict=True)),
        )
        _, held_out = self._split(device)
        hits = len(set(items) & set(held_out))
        recall = hits / min(K, len(held_out))
        return {"items": items, "titles": [titles[item] for item in items], f"recall@{K}": round(recall, 3)}

    def _split(self, device: int) -> tuple[list[str], list[str]]:
        """Return the identifiers of the device's events, oldest first: those in its store, and those held out."""
        history = [self.data.catalogue.ids[item] for item in self.data.events.history(self.users[device])]
        kept = len(history) - max(1, round(HELD_OUT * len(history)))
        return history[:kept], history[kept:]


def _write(path: Path, head: tuple[str, ...], rows: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path
