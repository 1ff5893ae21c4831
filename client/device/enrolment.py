"""What lies in a device's folder, and what the device agreed to: light enough for what runs all day long."""

import stat
from pathlib import Path

from fedrecall.protocol.errors import DataError, UsageError
from fedrecall.protocol.files import read_bounded
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.tensors import unpack

ENROLMENT, EVENTS, STATE, LEDGER = "enrolment.json", "events.sqlite", "state.safetensors", "ledger.jsonl"
LEDGER_LOCK = ".ledger.lock"
"""Held while a ledger is charged: several jobs may charge one."""
MAX_STATE = 1 << 30
"""Most bytes of ``STATE``."""
SENT = "sent"
"""The array of ``STATE`` that holds the bytes of the update sent last; all others are the tower."""


def enrolled(folder: Path) -> Invitation:
    """Return the invitation that the device in ``folder`` accepted.

    Raises:
        DataError: others may read the folder.
        UsageError: no device is enrolled in it.
        CorruptArtefact: the enrolment was altered.
    """
    check_private(folder)
    if not (folder / ENROLMENT).exists():
        raise UsageError(f"no device is enrolled in {folder}: give `device init` its invitation")
    return Invitation.load(folder / ENROLMENT)


def last_failure(folder: Path) -> str:
    """Return the kind of what made the last answer zeros, "" for none: nothing of it left the device."""
    if not (folder / STATE).exists():
        return ""
    header = unpack(read_bounded(folder / STATE, max_bytes=MAX_STATE), what=str(folder / STATE))[1]
    return str(header.get("failed", ""))


def check_private(folder: Path) -> None:
    """Refuse a folder that is not there or that others may read; raises DataError."""
    try:
        mode = Path(folder).stat().st_mode
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): make it, for its user alone") from error
    if stat.S_IMODE(mode) & 0o077:
        raise DataError(f"{folder} is open to others (mode {stat.S_IMODE(mode):o}): chmod 700 it, it holds events")
