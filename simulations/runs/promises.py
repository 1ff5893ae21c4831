"""The part of ``run.json`` that says what is released, and against whom it is bounded."""

from dataclasses import asdict
from typing import Any

from fedrecall.privacy.accounting.accounting import account, after_windows
from fedrecall.privacy.accounting.delta import delta_warning
from fedrecall.protocol.plan import Mechanism, Plan

_WINDOWS = (1, 12)


def privacy_section(plan: Plan, start: dict[str, Any]) -> dict[str, Any]:
    """Return what was released, and against whom it is bounded: in one window, and in more where the plan renews."""
    renewed = () if plan.renews == "never" else _WINDOWS
    windows = {str(count): [asdict(row) for row in after_windows(plan, count)] for count in renewed}
    return {
        "unit": plan.unit,
        "trust": plan.trust,
        "simulated": plan.simulated,
        "delta": plan.delta,
        "plan_sha256": plan.digest(),
        "mechanisms": [mechanism_section(m) for m in plan.mechanisms],
        "renews": plan.renews,
        "adversaries": [asdict(row) for row in account(plan)],
        "warnings": warnings_of(plan),
        **({"windows": windows} if windows else {}),
        "start": start,
    }


def warnings_of(plan: Plan) -> list[str]:
    """Return what makes a plan's figures mean less than they seem to."""
    warning = delta_warning(plan.delta, plan.devices) if any(m.noise_multiplier for m in plan.mechanisms) else ""
    return [warning] if warning else []


def mechanism_section(mechanism: Mechanism) -> dict[str, Any]:
    """Return a mechanism; where its clip adapts, also what noise the sum and the count have of it."""
    if mechanism.adaptive_clip is None:
        return asdict(mechanism)
    return asdict(mechanism) | {
        "sum_noise_multiplier": mechanism.sum_noise_multiplier,
        "count_noise_multiplier": mechanism.count_noise_multiplier,
    }
