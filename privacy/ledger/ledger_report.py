"""A server's ledger, verified and accounted, for whoever audits it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.ledger.chain import head_path
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.manifest import NAME as MANIFEST
from fedrecall.protocol.manifest import read_manifest

_FILE = "ledger.jsonl"


def ledger_report(run: Path) -> dict[str, Any]:
    """Verify the ledger of a run folder, or a ledger file, and account what it spent; nothing is written.

    The head that the manifest of the run keeps is compared where there is one.

    Returns:
        ``ledger``, ``digest``, ``unit``, ``trust``, ``simulated``, ``renews``, ``window``, ``mechanisms`` (``name``,
        ``spent`` and ``allowed`` in the window, ``spent_ever``), ``adversaries`` (rows of ``account``, of what was
        spent ever), ``head``, ``manifest_head`` and ``rollback``: which rollback would show, and which would not.

    Raises:
        UsageError: there is no such folder or file, or it never held a ledger.
        CorruptArtefact: the ledger or the manifest is broken, or they contradict each other.
    """
    path = run / _FILE if run.is_dir() else run
    manifest = path.with_name(MANIFEST)
    in_a_run = path.name == _FILE and manifest.exists()
    if not (path.exists() or head_path(path).exists() or in_a_run):
        raise UsageError(f"{run} holds no ledger: name the folder of a run, such as runs/latest, or a ledger file")
    ledger = Ledger.read(path)
    kept = _kept_head(ledger, manifest) if in_a_run else None
    plan, now, ever = ledger.plan, ledger.spent_in_window(), ledger.spent()
    return {
        "ledger": str(path),
        "digest": plan.digest(),
        "unit": plan.unit,
        "trust": plan.trust,
        "simulated": plan.simulated,
        "renews": plan.renews,
        "window": ledger.window,
        "mechanisms": [
            {"name": m.name, "spent": now[m.name], "allowed": m.steps, "spent_ever": ever[m.name]}
            for m in plan.mechanisms
        ],
        "adversaries": [asdict(row) for row in account(ledger.spent_plan())],
        "head": asdict(ledger.head()),
        "manifest_head": kept,
        "rollback": _rollback(kept),
    }


def _kept_head(ledger: Ledger, manifest: Path) -> str | None:
    said = read_manifest(manifest.parent)
    if said.plan_digest != ledger.plan.digest():
        raise CorruptArtefact(f"{manifest} names another plan than the ledger beside it: restore both")
    if said.ledger_head is not None and not ledger.holds(said.ledger_head):
        raise CorruptArtefact(f"the ledger beside {manifest} was rolled back: it does not hold the head named there")
    return said.ledger_head


def _rollback(kept: str | None) -> str:
    if kept is None:
        return (
            "An edit, a deletion, a cut, or a rollback of the ledger without its head would show. A rollback of both "
            "together would not: no head of this ledger is kept elsewhere"
        )
    return (
        "The ledger continues the head that the run's manifest keeps, so a rollback to before that release would "
        "show. One of the charges since, or of ledger, head and manifest together, would not"
    )
