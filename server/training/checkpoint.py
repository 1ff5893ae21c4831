"""Checkpoints: all that the server needs to go on after a kill, one file each, whole or absent.

There is no generator state in them: coins and simulated noise are functions of the plan, the round and the
seed. A checkpoint holds released (noised) arrays, but also ``extra``, and the round loop decides what it puts
there.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded, remove_leftovers, sync_folder, write_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.training.optimiser import AverageState, OptState

_FORMAT = "checkpoint/1"
_MAX_BYTES = 64 << 30
_NAME = re.compile(r"round-(\d{6,})\.safetensors")


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The server after ``round`` rounds.

    Attributes:
        round: rounds done, and so the number of the next one; 0 is before the first.
        arrays: the model.
        optimiser: the global optimiser's state.
        average: the averaged iterates, ``None`` before the first round.
        ledger_head: hash of the ledger's last line when this was taken; ``None`` without a ledger.
        config_digest: of the run's resolved configuration; a resumed run compares it.
        plan_digest: ``Plan.digest`` of the privacy plan.
        extra: plain JSON data that the run needs again, such as its history.
    """

    round: int
    arrays: Arrays
    optimiser: OptState
    average: AverageState | None
    ledger_head: str | None
    config_digest: str
    plan_digest: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: Checkpoint, *, keep: int = 2) -> Path:
    """Write ``folder/round-NNNNNN.safetensors`` atomically, then delete all but the ``keep`` newest.

    When it returns the checkpoint is on disk; a kill at any moment before leaves the older ones as they were.
    One process may write to a folder. The file holds a SHA-256 over everything in it.

    Raises:
        UsageError: the folder holds a later round, which a resume would prefer.
        FedrecallError: the file cannot be written.
    """
    found = _existing(folder)
    if found and max(found) > state.round:
        raise UsageError(
            f"{folder} holds round {max(found)}, later than {state.round}: resume, or choose another folder"
        )
    groups = {"model": state.arrays, "first": state.optimiser.first, "second": state.optimiser.second}
    groups["average"] = state.average.arrays if state.average else {}
    arrays = {f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()}
    header = {
        "format": _FORMAT,
        "round": state.round,
        "step": state.optimiser.step,
        "average_count": state.average.count if state.average else None,
        "ledger_head": state.ledger_head,
        "config_digest": state.config_digest,
        "plan_digest": state.plan_digest,
        "extra": dict(state.extra),
    }
    path = Path(folder) / f"round-{state.round:06d}.safetensors"
    write_atomic(path, pack(arrays, header | {"sha256": _digest(arrays, header)}))
    _prune(folder, keep)
    return path


def load_latest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint of ``folder``, or ``None`` when it has none; every bit as it was saved.

    It never falls back to an older one by itself: rounds that the ledger was charged for would be lost in
    silence.

    Raises:
        CorruptArtefact: the newest file is damaged; the message names it and the way back.
    """
    found = _existing(folder)
    if not found:
        return None
    path = found[max(found)]
    try:
        state = _decode(read_bounded(path, max_bytes=_MAX_BYTES), path)
    except CorruptArtefact as error:
        raise CorruptArtefact(f"{error}. Delete {path} to resume from the checkpoint before it") from error
    return state


def rounds_done(folder: Path) -> int:
    """Return the round of the newest checkpoint of ``folder``, by its name; 0 where there is none."""
    return max(_existing(folder), default=0)


def _decode(data: bytes, path: Path) -> Checkpoint:
    arrays, header = unpack(data, what=str(path))
    stated = header.pop("sha256", None)
    if header.get("format") != _FORMAT or stated != _digest(arrays, header):
        raise CorruptArtefact(f"{path} is no whole checkpoint of format {_FORMAT!r}")
    groups: dict[str, dict[str, np.ndarray]] = {"model": {}, "first": {}, "second": {}, "average": {}}
    for key, array in arrays.items():
        group, name = key.split("/", 1)
        groups[group][name] = array
    count = header["average_count"]
    return Checkpoint(
        round=header["round"],
        arrays=groups["model"],
        optimiser=OptState(step=header["step"], first=groups["first"], second=groups["second"]),
        average=None if count is None else AverageState(count=count, arrays=groups["average"]),
        ledger_head=header["ledger_head"],
        config_digest=header["config_digest"],
        plan_digest=header["plan_digest"],
        extra=header["extra"],
    )


def _digest(arrays: Arrays, header: Mapping[str, Any]) -> str:
    """Hash names, types, shapes and bytes of all arrays, and the header."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(dumps([name, array.dtype.str, list(array.shape)]).encode() + b"\n")
        digest.update(array.reshape(-1).view(np.uint8).data)
    digest.update(dumps({key: header[key] for key in sorted(header)}).encode())
    return digest.hexdigest()


def _existing(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in ``folder`` by round."""
    matches = ((_NAME.fullmatch(path.name), path) for path in Path(folder).glob("round-*.safetensors"))
    return {int(match[1]): path for match, path in matches if match}


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints, and what killed saves left."""
    found = _existing(folder)
    for number in sorted(found)[: -max(1, keep)]:
        found[number].unlink(missing_ok=True)
    remove_leftovers(folder, "round-*.safetensors")
    sync_folder(folder)
