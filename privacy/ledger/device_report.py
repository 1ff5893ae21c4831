"""A device's ledger, verified and accounted, for its user."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from fedrecall.privacy.accounting.accounting import participation_mu
from fedrecall.privacy.accounting.budget import Budget, epsilon_of
from fedrecall.privacy.ledger.chain import head_path
from fedrecall.privacy.ledger.device_ledger import Charge, DeviceLedger
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.plan import Plan

_ROLLBACK = (
    "An edit, a deletion, a cut, or a rollback of the ledger without its head would show. A rollback of both together "
    "would not: no head of this ledger is kept elsewhere"
)
_ACCOUNTANT = "Gaussian composition (the sum of mu^2), exact"


def device_report(path: Path, plan: Plan | None, now: datetime) -> dict[str, Any]:
    """Verify the ledger at ``path`` and account what the device spent, over all plans; nothing is written.

    Args:
        path: of the ledger.
        plan: the one that the device is enrolled for, if it is.
        now: the time, with its zone.

    Returns:
        ``ledger``; ``budget`` (``epsilon``, ``null`` for no limit, ``delta``, ``renews``, ``unit``); ``spent``
        (``in_window``, ``ever``, ``left``, ``since``, ``renews_on``: see ``Spent``); ``plans``, one for each plan and
        mechanism (``plan``, ``mechanism``, ``enrolled``, ``times``, ``epsilon``, ``first`` and ``last`` day);
        ``adversaries``, of what was spent ever; ``head``; ``rollback``: which rollback would show. Every epsilon is
        at the budget's delta and unit, unamplified, and ``null`` where nothing bounds it.

    Raises:
        UsageError: there is no ledger.
        CorruptArtefact: it is broken, cut, or a part of it is missing.
    """
    if not path.exists() and not head_path(path).exists():
        raise UsageError(f"there is no ledger at {path}: no device was ever enrolled there")
    ledger = DeviceLedger.read(path)
    spent = ledger.spent(now)
    known = plan is not None and all(charge.plan == plan.digest() for charge in ledger.charges)
    return {
        "ledger": str(path),
        "budget": asdict(ledger.budget),
        "spent": asdict(spent)
        | {name: day.isoformat() if (day := getattr(spent, name)) else None for name in ("since", "renews_on")},
        "plans": [_row(charges, plan, ledger.budget.delta) for charges in _grouped(ledger.charges)],
        "adversaries": _adversaries(ledger, spent.ever, plan if known else None),
        "head": asdict(ledger.head()),
        "rollback": _ROLLBACK,
    }


def cost_of(plan: Plan, budget: Budget) -> dict[str, Any]:
    """Return what rounds of ``plan`` cost a device that starts from nothing spent.

    Returns ``epsilon_of_one_round`` (at the budget's delta; ``null`` where nothing bounds it), ``rounds_that_fit`` the
    budget of one window (``null`` for no limit), and ``rounds_of_the_plan``. Unamplified.
    """
    rounds = plan.mechanism("rounds")
    cost = participation_mu(plan, rounds) ** 2 if plan.unit == budget.unit else math.inf
    fits = None if math.isinf(budget.mu_squared) else int(budget.mu_squared * (1 + 1e-9) / cost)
    return {
        "epsilon_of_one_round": epsilon_of(cost, budget.delta),
        "rounds_that_fit": fits,
        "rounds_of_the_plan": rounds.steps,
    }


def _grouped(charges: Sequence[Charge]) -> list[list[Charge]]:
    groups: dict[tuple[str, str], list[Charge]] = {}
    for charge in charges:
        groups.setdefault((charge.plan, charge.mechanism), []).append(charge)
    return list(groups.values())


def _row(charges: Sequence[Charge], plan: Plan | None, delta: float) -> dict[str, Any]:
    total = math.fsum(math.inf if charge.mu_squared is None else charge.mu_squared for charge in charges)
    return {
        "plan": charges[0].plan,
        "mechanism": charges[0].mechanism,
        "enrolled": plan is not None and charges[0].plan == plan.digest(),
        "times": len(charges),
        "epsilon": epsilon_of(total, delta),
        "first": charges[0].day,
        "last": charges[-1].day,
    }


def _adversaries(ledger: DeviceLedger, ever: float | None, plan: Plan | None) -> list[dict[str, Any]]:
    """Return a row an adversary; ``plan`` is that of all charges, or ``None`` where they are of several."""
    budget = ledger.budget
    basis = "its noise is in what was released; that this device took part is taken as known"
    if not ledger.charges:
        bounds: dict[str, tuple[float | None, str]] = dict.fromkeys(
            ("released-model", "server"), (0.0, "nothing has left this device")
        )
    else:
        released = (ever, basis if ever is not None else "something was released without noise")
        if plan is None:
            server: tuple[float | None, str] = (
                None,
                "several plans were served: who added their noise is not recorded",
            )
        elif plan.trust == "local":
            server = (ever, "the noise was added on this device")
        else:
            server = (None, f"under trust {plan.trust!r} the noise of one device alone does not hide its update")
        bounds = {"released-model": released, "server": server}
    thief = "the device's files hold the events themselves: encryption at rest and permissions protect them"
    bounds["device-thief"] = (None, thief)
    return [
        {
            "name": name,
            "epsilon": epsilon,
            "delta": budget.delta,
            "unit": budget.unit,
            "adjacency": "zero_out" if budget.unit == "user" else "add_remove",
            "sampling": "unamplified",
            "accountant": "none" if epsilon is None else _ACCOUNTANT,
            "reason": reason,
        }
        for name, (epsilon, reason) in bounds.items()
    ]
