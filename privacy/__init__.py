"""Plans and what they promise, noise and ledgers, and lower bounds from attacks.

What a program asks is named here and loaded when it is asked for: an accountant takes seconds to load.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrecall.privacy.accounting.accounting import account
    from fedrecall.privacy.accounting.questions import calibrate, fit, plan
    from fedrecall.protocol.plan import Mechanism, Plan

__all__ = ["Mechanism", "Plan", "account", "calibrate", "fit", "plan"]


def __getattr__(name: str) -> Any:
    """Load what is asked for, once."""
    if name in ("Mechanism", "Plan"):
        from fedrecall.protocol import plan as records

        return {"Mechanism": records.Mechanism, "Plan": records.Plan}[name]
    if name == "account":
        from fedrecall.privacy.accounting import accounting

        return accounting.account
    if name in ("calibrate", "fit", "plan"):
        from fedrecall.privacy.accounting import questions

        return {"calibrate": questions.calibrate, "fit": questions.fit, "plan": questions.plan}[name]
    raise AttributeError(f"fedrecall.privacy has no {name}: it has {', '.join(__all__)}")
