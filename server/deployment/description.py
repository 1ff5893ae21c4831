"""What a deployment hands to every device besides the task: where the server is, and the public catalogue."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fedrecall.protocol.errors import CorruptArtefact, PlanError
from fedrecall.protocol.files import read_bounded, write_json_atomic
from fedrecall.protocol.invitation import MAX_BYTES, Invitation
from fedrecall.protocol.task import Task

DEPLOYMENT = "deployment.json"
"""Its file in the job's folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """The public side of a job.

    Attributes:
        address: ``HOST:PORT`` that devices connect to.
        items: identifiers of the catalogue's items, in order.
        event_weights: event types that count, and what an event of each weighs.
        features: public item features [items, features], where the model has them.
        release: where people fetch releases, for their information; ``None`` to say nothing.
        keep_releases: how many of the newest releases stay on disk.
    """

    address: str
    items: tuple[str, ...]
    event_weights: Mapping[str, float]
    features: Float32[np.ndarray, "items features"] | None
    release: str | None
    keep_releases: int

    def invitation(self, number: int, task: Task, authority: str) -> Invitation:
        """Return the invitation of device ``number``, with the server's ``authority`` in PEM; PlanError as there."""
        return Invitation(
            number=number,
            task=task,
            address=self.address,
            root_certificates=authority,
            items=self.items,
            event_weights=self.event_weights,
            features=self.features,
            release=self.release,
        )

    def save(self, folder: Path) -> None:
        """Write it into the job's folder."""
        features = None if self.features is None else self.features.tolist()
        values = {"items": list(self.items), "event_weights": dict(self.event_weights), "features": features}
        values |= {"address": self.address, "release": self.release, "keep_releases": self.keep_releases}
        write_json_atomic(folder / DEPLOYMENT, values)

    @classmethod
    def load(cls, folder: Path) -> "Deployment":
        """Read what ``save`` wrote; raises CorruptArtefact for anything else."""
        path = folder / DEPLOYMENT
        try:
            found = cls(**json.loads(read_bounded(path, max_bytes=MAX_BYTES)))
            features = None if found.features is None else np.array(found.features, dtype=np.float32)
            return replace(found, items=tuple(found.items), features=features)
        except (ValueError, TypeError) as error:
            raise CorruptArtefact(f"{path} is no deployment ({error}): make the job again") from error

    @property
    def host(self) -> str:
        """The host of ``address``, without the brackets of an IPv6 one."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of ``address``."""
        return int(self.address.rpartition(":")[2])


def check_deployment(deployment: Deployment, task: Task) -> None:
    """Refuse a deployment that no device could be invited to; raises PlanError naming the field."""
    deployment.invitation(0, task, "-----BEGIN CERTIFICATE-----")
    if deployment.release is not None and not deployment.release.startswith("https://"):
        raise PlanError(f"release is {deployment.release!r}: give an https address, or leave it out")


def is_deployment(folder: Path) -> bool:
    """Whether the job in ``folder`` is one of a deployment, with enrolled keys."""
    return (folder / DEPLOYMENT).exists()
