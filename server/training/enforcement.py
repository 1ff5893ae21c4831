"""What refuses to start or to go on: the run must do what the accountant was told (docs/privacy.md, rule 7)."""

import numpy as np

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.server.training.sampling import Sampler


def check_trust(plan: Plan) -> None:
    """Refuse a plan whose trust model cannot be carried out."""
    if plan.trust == "distributed":
        raise PlanError("trust is 'distributed': it is accounted, but secure aggregation has not landed; use 'central'")


def check_sampler(sampler: Sampler, plan: Plan, mechanism: Mechanism) -> None:
    """Refuse a sampler that does not do what ``mechanism`` states, naming the first difference.

    Also coins that fall alike in the first two rounds: the accountant composes rounds whose coins are independent.
    """
    for field in ("sampling", "sample_rate", "devices"):
        stated = plan.devices if field == "devices" else getattr(mechanism, field)
        does = getattr(sampler, field)
        if does != stated:
            raise PlanError(
                f"the sampler's {field} is {does!r}, the plan accounts {mechanism.name} with {stated!r}: a cohort that "
                "is drawn in another way than it is accounted has no epsilon; use Sampler.of"
            )
    if mechanism.sampling in ("poisson", "fixed_size"):
        first, second = (sampler.coins(round).random(4) for round in (0, 1))
        if np.array_equal(first, second):
            raise PlanError(f"rounds 0 and 1 of {mechanism.name} draw the same coins: make the round a label of them")
