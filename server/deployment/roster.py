"""Which key is which device: the roster of a deployment, in the job's folder.

A device is its key. The SuperLink knows each registered key by a node number of its own, which the roster keeps beside
the device's number: who answers for a device is read here, and never from what a node says of itself.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded, write_json_atomic

_NAME = "devices.json"
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """One enrolled device.

    Attributes:
        number: of the device in the plan, from 0.
        key: its public key in OpenSSH form, without a comment.
        node: the SuperLink's number for that key; ``None`` until it is registered there.
    """

    number: int
    key: str
    node: int | None = None


class Roster:
    """The enrolled devices of a job; several processes may use one at a time."""

    def __init__(self, folder: Path, *, devices: int) -> None:
        """Open the roster in a job's ``folder``, for at most ``devices``."""
        self._path, self._lock, self._devices = folder / _NAME, folder / f".{_NAME}.lock", devices

    def enrolled(self) -> tuple[Enrolled, ...]:
        """Return the devices in the order of their numbers; raises CorruptArtefact for a file that is no roster."""
        if not self._path.exists():
            return ()
        try:
            found = json.loads(read_bounded(self._path, max_bytes=_MAX_BYTES))
            rows = tuple(Enrolled(**row) for row in found["devices"])
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptArtefact(f"{self._path} is no roster ({error}): restore it from a backup") from error
        sound = all(row.number == place for place, row in enumerate(rows)) and len(rows) <= self._devices
        keys, nodes = {row.key for row in rows}, [row.node for row in rows if row.node is not None]
        if not sound or len(keys) != len(rows) or len(set(nodes)) != len(nodes):
            raise CorruptArtefact(f"{self._path} repeats or skips a device: restore it from a backup")
        return rows

    def enrol(self, public_key: bytes) -> Enrolled:
        """Give the key a device number, or return the one it has.

        Raises:
            UsageError: no P-384 key in OpenSSH form, or all of the plan's devices are enrolled.
        """
        key = normalised(public_key)
        with self._changing() as rows:
            for row in rows:
                if row.key == key:
                    return row
            if len(rows) >= self._devices:
                raise UsageError(
                    f"all {self._devices} devices of the plan are enrolled: a plan's noise and epsilon are for that "
                    "many; make a job for more"
                )
            rows.append(Enrolled(number=len(rows), key=key))
            return rows[-1]

    def registered(self, number: int, node: int) -> None:
        """Note the node under which the SuperLink knows the device's key."""
        with self._changing() as rows:
            rows[number] = replace(rows[number], node=node)

    def nodes(self) -> dict[int, int]:
        """Return the node of each registered device, by its number."""
        return {row.number: row.node for row in self.enrolled() if row.node is not None}

    @contextmanager
    def _changing(self) -> Iterator[list[Enrolled]]:
        """Yield the rows for changing; nobody else changes them meanwhile."""
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = list(self.enrolled())
            rows = list(before)
            yield rows
            if rows != before:
                write_json_atomic(self._path, {"devices": [asdict(row) for row in rows]})


def normalised(public_key: bytes) -> str:
    """Return a device's key as one line without its comment, which may name its owner.

    Raises:
        UsageError: it is no P-384 key in OpenSSH form, which is what Flower's node authentication takes.
    """
    try:
        key = serialization.load_ssh_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UsageError(
            "this is no P-384 public key in OpenSSH form: give the file that `fedrecall device init` wrote"
        )
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(encoding, form).decode()
