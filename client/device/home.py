"""A person's home: the folder that holds the devices of all jobs of one user, and the one ledger that counts them.

A budget is a person's (docs/privacy.md, rule 19). A device whose folder lies in a home has no ledger of its own: what
it takes part in is charged to the home's, against the home's budget, whatever job asks. A folder outside a home counts
itself alone, and two of them spend twice.
"""

from datetime import datetime
from pathlib import Path

from fedrecall.client.device.enrolment import ENROLMENT, LEDGER, LEDGER_LOCK, check_private
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.privacy.ledger.chain import head_path
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_json_atomic
from fedrecall.protocol.lock import only_one
from fedrecall.protocol.plan import Plan

HOME = "home.json"
"""Marks a home, and outlives its devices."""
_WAIT_S = 60.0


def make_home(folder: Path, budget: Budget | None = None) -> DeviceLedger:
    """Make ``folder`` a home with this budget, or change the budget of the home that it is; returns its ledger.

    Args:
        folder: exists, and is its user's alone.
        budget: of the person, over all jobs; ``None`` keeps that of the home.

    Raises:
        DataError: others may read the folder.
        UsageError: it holds a device, or is no home yet and there is no budget.
        PlanError: the budget's unit is not that of the ledger.
        CorruptArtefact: the ledger was altered, or is gone.
    """
    check_private(folder)
    if (folder / ENROLMENT).exists():
        raise UsageError(f"{folder} holds a device: a home is the folder above, make the devices of all jobs in it")
    path = folder / LEDGER
    if (folder / HOME).exists() or head_path(path).exists():
        ledger = DeviceLedger.open(path)
        if budget is not None and budget != ledger.budget:
            ledger.change_budget(budget)
    elif budget is None:
        raise UsageError(f"{folder} is no home yet: say which epsilon and delta its user may spend in all")
    else:
        ledger = DeviceLedger.resume(path, budget)
    write_json_atomic(folder / HOME, {"format": "home/1"}, mode=0o600)
    return ledger


def home_of(folder: Path) -> Path | None:
    """Return the home that a device's folder lies in, if any; raises DataError for a home that others may read."""
    parent = folder.absolute().parent
    if not (parent / HOME).exists():
        return None
    check_private(parent)
    return parent


def ledger_path(folder: Path) -> Path:
    """Return where the ledger of the device in ``folder`` lies: its home's, or its own where it is in none."""
    return (home_of(folder) or folder) / LEDGER


class PersonLedger:
    """The ledger that counts the device in a folder, opened anew for each charge: other jobs charge it too.

    Args:
        folder: of the device.
        task: digest of what it agreed to.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self._folder, self._task = folder, task

    def charge(self, plan: Plan, mechanism: str, round: int, key: str, now: datetime) -> bool:
        """See ``DeviceLedger.charge``; FedrecallError where another job holds the ledger for a minute."""
        path = ledger_path(self._folder)
        busy = f"the ledger in {path.parent} is in use by another job: try again"
        with only_one(path.parent / LEDGER_LOCK, busy, wait_s=_WAIT_S):
            return DeviceLedger.open(path).charge(plan, mechanism, round, key, now, task=self._task)


def neighbours(folder: Path) -> list[Path]:
    """Return other devices' folders beside ``folder``, where it is in no home: they may be the same person's."""
    if home_of(folder) is not None:
        return []
    own = folder.absolute()
    return sorted(p.parent for p in own.parent.glob(f"*/{ENROLMENT}") if p.parent != own)
