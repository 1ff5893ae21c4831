"""What an operator hands to one device: its number, its task, the public catalogue, and where the server is.

An invitation holds nothing private and no secret: what lets a device in is its own key, which the operator registered
under the number that the invitation names.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fedrecall.protocol.errors import CorruptArtefact, PlanError
from fedrecall.protocol.files import read_bounded, write_json_atomic
from fedrecall.protocol.task import Task

MAX_BYTES = 1 << 30
MAX_TYPES = 127
_FORMAT = "invitation/1"
_KEYS = {
    *("format", "number", "task", "address", "root_certificates", "items", "event_weights", "features", "release"),
}
_ADDRESS = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", re.ASCII)
_LOCAL = re.compile(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]", re.ASCII)
_MAX_ID = 1024
_MAX_PEM = 1 << 20
_MAX_RELEASE = 2048
_WEIGHTS = (1e-6, 1e6)
_LARGEST_FEATURE = 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class Invitation:
    """One device's invitation; building one checks every field.

    Attributes:
        number: of the device, ``0 <= number < task.plan.devices``.
        task: what the device is asked to agree to.
        address: ``HOST:PORT`` of the SuperLink's fleet API.
        root_certificates: in PEM, of the authorities that may vouch for that server; ``None`` for no TLS, allowed on
            this very machine alone.
        items: identifiers of the catalogue, in item order.
        event_weights: the event types that count, in the order of their numbers, and what an event of each weighs.
        features: public item features [items, n_features], where the task's model has them.
        release: where releases are published, for people and scripts to fetch; fedrecall itself does not.

    Raises:
        PlanError: a field is not as described; names it.
    """

    number: int
    task: Task
    address: str
    root_certificates: str | None
    items: tuple[str, ...]
    event_weights: Mapping[str, float]
    features: Float32[np.ndarray, "items features"] | None = None
    release: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no invitation."""
        if type(self.number) is not int or not 0 <= self.number < self.task.plan.devices:
            raise PlanError(f"number is {self.number!r}: the plan has devices 0..{self.task.plan.devices - 1}")
        _check_address(self.address, self.root_certificates)
        _check_items(self.items, self.task.shape.get("n_items"))
        _check_types(self.event_weights, self.task.shape.get("n_types"))
        _check_features(self.features, len(self.items), self.task.shape.get("n_features"))
        if self.release is not None and not (isinstance(self.release, str) and 0 < len(self.release) <= _MAX_RELEASE):
            raise PlanError(f"release is no text of at most {_MAX_RELEASE} characters: leave it out, or name a place")

    def to_dict(self) -> dict[str, Any]:
        """Return the invitation as plain JSON data."""
        return {
            "format": _FORMAT,
            "number": self.number,
            "task": self.task.to_dict(),
            "address": self.address,
            "root_certificates": self.root_certificates,
            "items": list(self.items),
            "event_weights": dict(self.event_weights),
            "features": None if self.features is None else self.features.tolist(),
            "release": self.release,
        }

    @staticmethod
    def from_dict(data: Any) -> "Invitation":
        """Read back what ``to_dict`` wrote; raises PlanError for what is no invitation."""
        if not isinstance(data, dict) or set(data) != _KEYS or data["format"] != _FORMAT:
            raise PlanError(f"this is no invitation of format {_FORMAT!r}: ask the operator for one")
        if not isinstance(data["items"], list) or not isinstance(data["event_weights"], dict):
            raise PlanError("items is no list or event_weights no map: ask the operator for another invitation")
        if not isinstance(data["task"], dict):
            raise PlanError("task is no map: ask the operator for another invitation")
        try:
            # What is too large for float32 becomes infinite, and is refused with all that is no number.
            with np.errstate(over="ignore"):
                features = None if data["features"] is None else np.array(data["features"], dtype=np.float32)
            task = Task.from_dict(data["task"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise PlanError(f"task or features cannot be read ({error}): ask the operator for another") from error
        return Invitation(
            number=data["number"],
            task=task,
            address=data["address"],
            root_certificates=data["root_certificates"],
            items=tuple(data["items"]),
            event_weights=data["event_weights"],
            features=features,
            release=data["release"],
        )

    def save(self, path: Path) -> None:
        """Write the invitation atomically, for its owner's eyes; FedrecallError when it cannot be written."""
        write_json_atomic(path, self.to_dict(), mode=0o600)

    @staticmethod
    def load(path: Path) -> "Invitation":
        """Read an invitation; CorruptArtefact when it is missing, too long or malformed in any way."""
        try:
            return Invitation.from_dict(json.loads(read_bounded(path, max_bytes=MAX_BYTES)))
        except (ValueError, RecursionError, PlanError) as error:
            raise CorruptArtefact(f"{path} is no invitation ({error})") from error


def _check_address(address: Any, certificates: Any) -> None:
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise PlanError(f"address is {str(address)[:300]!r}: write HOST:PORT, such as recall.example.org:9092")
    if certificates is None:
        if not _LOCAL.fullmatch(found[1]):
            raise PlanError(
                f"root_certificates is missing and {found[1]} is another machine: without TLS whoever is on the way "
                "reads every update; invite with the server's authority"
            )
        return
    pem = isinstance(certificates, str) and len(certificates) <= _MAX_PEM and certificates.isascii()
    if not pem or "-----BEGIN CERTIFICATE-----" not in certificates:
        raise PlanError("root_certificates holds no certificate in PEM: invite with the server's authority")
    if "PRIVATE KEY" in certificates:
        raise PlanError("root_certificates holds a private key: take it out, and replace that key")


def _check_items(items: Any, n_items: Any) -> None:
    if not isinstance(items, tuple) or not all(_is_name(item) for item in items):
        raise PlanError(f"items holds what is no identifier of 1..{_MAX_ID} characters, trimmed: correct the catalogue")
    if len(items) != n_items or len(set(items)) != len(items):
        raise PlanError(f"items has {len(set(items))} identifiers, the task's model {n_items}: give each item one")


def _check_types(weights: Any, n_types: Any) -> None:
    if not isinstance(weights, Mapping) or not all(_is_name(name) for name in weights):
        raise PlanError("event_weights is no map of event types: name each type that counts")
    if not 1 <= len(weights) <= MAX_TYPES or len(weights) != n_types:
        raise PlanError(f"event_weights names {len(weights)} types, the task's model has {n_types}: name each")
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not _WEIGHTS[0] <= weight <= _WEIGHTS[1]:
            raise PlanError(f"event_weights[{name!r}] is {weight!r}: choose it from {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}")


def _check_features(features: Any, items: int, n_features: Any) -> None:
    if features is None:
        if n_features != 0:
            raise PlanError(f"features is missing, the task's model has {n_features} an item: add them")
        return
    plain = isinstance(features, np.ndarray) and features.dtype == np.float32
    if not plain or features.shape != (items, n_features) or not (np.abs(features) <= _LARGEST_FEATURE).all():
        raise PlanError(
            f"features must be float32 of shape ({items}, {n_features}), none above {_LARGEST_FEATURE:g}: correct them"
        )


def _is_name(text: Any) -> bool:
    """Whether ``text`` is one that a field of an event file can hold: files are trimmed and are UTF-8."""
    return isinstance(text, str) and 0 < len(text) <= _MAX_ID and text.strip() == text and _encodes(text)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
