"""The device's ledger: what one device spent, over every plan it ever served, against its user's budget.

Its first line holds the budget; every further one is a charge, or a change of the budget. A device charges before
anything leaves it, whoever asks, and refuses with one sentence for its user what the budget or the plan does not
allow. What makes it append-only, and which rollback it can show, is said in ``fedrecall.privacy.ledger.chain``.

The sum of mu^2 over all charges of a window stays within the mu^2 of the budget. That sum is exact for Gaussian
releases even though whoever asks chooses each plan after seeing every earlier release: a filter on the sum of mu^2
costs nothing over fixed composition (Smith and Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential
Privacy", arXiv 2210.17520). Sampling never counts: the device knows that it took part, and so may others.

A plan's own limit (its steps, or how often and how far apart under limited participation) holds for that plan: who
alters a plan starts anew against its limit, never against the budget.

What the ledger does not bound: plans that lie about the noise added elsewhere, other devices of the same person, and
a clock that somebody else winds forward from window to window.
"""

import math
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from fedrecall.privacy.accounting.accounting import participation_mu
from fedrecall.privacy.accounting.budget import Budget, after_windows, epsilon_of
from fedrecall.privacy.accounting.windows import next_window, utc_day, window_start
from fedrecall.privacy.ledger.chain import Chain, Head
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, PlanError
from fedrecall.protocol.plan import Mechanism, Plan, Renewal, Unit

__all__ = ["Budget", "Charge", "DeviceLedger", "Spent", "after_windows"]

_ROUNDING = 1e-9
"""How far, relatively, the sum of mu^2 may exceed the limit: a plan calibrated to the budget must fit into it."""
_MEANINGLESS_MU = 1e6
"""A mu whose epsilon is above 10^11: no bound at all."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where a device stands; each epsilon at the budget's delta and unit, ``None`` where nothing bounds it.

    Attributes:
        in_window: epsilon of the window's charges.
        ever: epsilon of all charges.
        left: epsilon of the most that the budget still allows in the window, looked at alone (epsilons do not
            subtract); ``None`` for a budget without a limit.
        since: first day of the window (UTC), ``None`` for a budget that never renews.
        renews_on: first day of the next window, ``None`` for a budget that never renews.
    """

    in_window: float | None
    ever: float | None
    left: float | None
    since: date | None
    renews_on: date | None


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One participation. ``mu_squared`` is ``None`` without a bound; ``day`` tells the window of any renewal.

    ``task`` names the job where several have one plan: the plan's own limits hold for each.
    """

    plan: str
    mechanism: str
    round: int
    key: str
    mu_squared: float | None
    day: str
    task: str = ""

    def __post_init__(self) -> None:
        date.fromisoformat(self.day)
        if self.mu_squared is not None and not 0.0 <= self.mu_squared < math.inf:
            raise ValueError(f"mu_squared is {self.mu_squared}")


class DeviceLedger:
    """What one device spent. Made by ``create``, ``open`` or ``resume``."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._charges: list[Charge] = []
        first, *entries = chain.entries
        try:
            self._simulated = bool(first["simulated"])
            self._budget = Budget(**first["budget"])
            for entry in entries:
                if "budget" in entry:
                    self._budget = Budget(**entry["budget"])
                else:
                    self._charges.append(Charge(**entry))
        except (KeyError, TypeError, ValueError, PlanError) as error:
            raise CorruptArtefact(f"{chain.path} is no ledger of a device ({error}): restore it") from error

    @classmethod
    def create(cls, path: str | Path, budget: Budget, *, simulated: bool = False) -> "DeviceLedger":
        """Start a ledger in a new file; UsageError when ``path`` or its head exists already.

        A ``simulated`` device may serve simulated plans, whose replays are free. A real one refuses them: else whoever
        calls a plan simulated would get the same round again and again for one charge.
        """
        return cls(Chain.create(path, _first(budget, simulated)))

    @classmethod
    def open(cls, path: str | Path, *, at_least: Head | None = None) -> "DeviceLedger":
        """Replay the ledger at ``path`` and repair what a crash left.

        Raises:
            CorruptArtefact: a file is missing, truncated or edited, the chain is broken, or the ledger does not
                continue ``at_least``, the head that a server kept. Take part in nothing.
        """
        return cls(Chain.open(path, at_least=at_least))

    @classmethod
    def read(cls, path: str | Path) -> "DeviceLedger":
        """Replay the ledger at ``path`` and write nothing, for whoever looks on; raises as ``open`` does."""
        return cls(Chain.read(path))

    @classmethod
    def resume(cls, path: str | Path, budget: Budget, *, simulated: bool = False) -> "DeviceLedger":
        """Open the ledger at ``path``, or start one as ``create`` does where none has begun.

        For enrolment alone: afterwards ``open`` it, so that a ledger that is gone is missed. ``budget`` counts for a
        new ledger only; ``change_budget`` changes that of an old one. Raises as ``open`` does.
        """
        return cls(Chain.resume(path, _first(budget, simulated)))

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every participation so far, in order."""
        return tuple(self._charges)

    @property
    def budget(self) -> Budget:
        """The budget as last changed."""
        return self._budget

    def change_budget(self, budget: Budget) -> None:
        """Record another budget, which holds for every later charge; what is spent stays spent.

        Raises:
            PlanError: the unit is another one, in which past charges were not counted.
            FedrecallError: as ``charge``.
        """
        if budget.unit != self._budget.unit:
            raise PlanError(f"unit is {budget.unit!r}, the ledger counts {self._budget.unit!r}: keep the unit")
        self._chain.append({"budget": asdict(budget)})
        self._budget = budget

    def charge(self, plan: Plan, mechanism: str, round: int, key: str, now: datetime, *, task: str = "") -> bool:
        """Record one participation durably, before anything of it leaves the device.

        An update that was charged and whose bytes the caller kept may be sent again without a charge, those very
        bytes alone. Anything computed anew is charged anew.

        Args:
            plan: the plan that the server asks under.
            mechanism: its name in the plan.
            round: which of its releases, from 0.
            key: names the noise: a nonce; in a simulation a digest of seed, plan and round.
            task: names the job that asks, among those of the same plan.
            now: the time, with its zone. Windows never run back: a time before the latest day charged counts as it.

        Returns:
            True when charged; False on a simulated device under a simulated plan that charged the same (plan,
            mechanism, round, key) before.

        Raises:
            BudgetExhausted: budget or plan do not allow it; the message is one sentence for the user.
            PlanError: the plan has no such mechanism, ``round`` is not a whole number from 0, or the plan is simulated
                and the device is not.
            CorruptArtefact, FedrecallError: disk failed, or another process charged meanwhile. Send nothing.
        """
        asked = plan.mechanism(mechanism)
        if isinstance(round, bool) or not isinstance(round, int) or round < 0:
            raise PlanError(f"round is {round}: choose a whole number from 0")
        if plan.simulated and not self._simulated:
            raise PlanError("the plan is simulated and this device is not: its known noise would protect nobody")
        digest = plan.digest()
        past = [c for c in self._charges if (c.plan, c.task, c.mechanism) == (digest, task, mechanism)]
        if plan.simulated and any((c.round, c.key) == (round, key) for c in past):
            return False
        day = self._day(now)
        cost = _cost(plan, asked, self._budget.unit)
        spent = self._in_window(day)
        why = _over_plan(plan, asked, round, past, day)
        if not why and spent + cost > self._budget.mu_squared * (1 + _ROUNDING):
            total = epsilon_of(spent + cost, self._budget.delta)
            why = (
                f"it would bring what is spent to {_shown(total)}" if cost < math.inf else _no_bound(plan, self._budget)
            )
        if why:
            price = _shown(epsilon_of(cost, self._budget.delta))
            asked_for = f"round {round} of {mechanism!r} of plan {digest[:8]} asks for {price}"
            raise BudgetExhausted(f"{asked_for} and is refused, because {why}; {self._standing(now)}")
        bounded = cost if cost < math.inf else None
        charge = Charge(
            plan=digest,
            mechanism=mechanism,
            round=round,
            key=key,
            mu_squared=bounded,
            day=day.isoformat(),
            task=task,
        )
        self._chain.append(asdict(charge))
        self._charges.append(charge)
        return True

    def spent(self, now: datetime) -> Spent:
        """Return what is spent in the window of ``now`` (or the latest one seen, if that is later) and ever."""
        day, budget = self._day(now), self._budget
        following = next_window(day, budget.renews)
        left = math.inf if budget.epsilon is None else max(0.0, budget.mu_squared - self._in_window(day))
        return Spent(
            in_window=epsilon_of(self._in_window(day), budget.delta),
            ever=epsilon_of(_sum(self._charges), budget.delta),
            left=epsilon_of(left, budget.delta),
            since=window_start(day, budget.renews) if following else None,
            renews_on=following,
        )

    def head(self) -> Head:
        """Return where the ledger stands, for the server to keep, so that a rollback of this device's files shows.

        Its number of lines tells how often the device took part: where amplification is claimed, keep it elsewhere.
        """
        return self._chain.head()

    def _day(self, now: datetime) -> date:
        return max([utc_day(now), *(date.fromisoformat(c.day) for c in self._charges[-1:])])

    def _in_window(self, day: date) -> float:
        return _sum(_same_window(self._charges, day, self._budget.renews))

    def _standing(self, now: datetime) -> str:
        spent, budget = self.spent(now), self._budget
        limit = "no limit" if budget.epsilon is None else f"a budget of epsilon {budget.epsilon:g}"
        said = f"spent is {_shown(spent.in_window)} of {limit} (delta {budget.delta:g}, unit {budget.unit})"
        if spent.since is None or spent.renews_on is None:
            return f"{said}, which does not renew"
        wound_back = utc_day(now) < self._day(now)
        clock = f", counting from {self._day(now)}, the latest day that this clock ever showed," if wound_back else ""
        return f"{said} since {spent.since}{clock} and it renews on {spent.renews_on} (UTC)"


def _first(budget: Budget, simulated: bool) -> dict[str, Any]:
    return {"budget": asdict(budget), "simulated": simulated}


def _cost(plan: Plan, mechanism: Mechanism, unit: Unit) -> float:
    """Return the mu^2 of one participation, infinite where nothing bounds it for ``unit``."""
    mu = participation_mu(plan, mechanism) if plan.unit == unit else math.inf
    return mu * mu if mu < _MEANINGLESS_MU else math.inf


def _over_plan(plan: Plan, mechanism: Mechanism, round: int, past: list[Charge], day: date) -> str:
    """Say why the plan allows this device no such round, or nothing (rule 14: whoever asks, however often)."""
    most = mechanism.steps
    if mechanism.sampling == "limited":
        most, gap = mechanism.participations or 0, mechanism.min_gap or 0
        near = [c.round for c in past if abs(c.round - round) < gap]
        if round >= mechanism.steps:
            return f"the plan ends after {mechanism.steps} rounds"
        if near:
            return f"this device took part in round {near[0]}, less than the plan's {gap} rounds apart"
    counted = _same_window(past, day, plan.renews)
    per = "" if plan.renews == "never" else f" in a {plan.renews}"
    return f"the plan allows one device {most} rounds{per}, all taken" if len(counted) >= most else ""


def _no_bound(plan: Plan, budget: Budget) -> str:
    if plan.unit != budget.unit:
        return f"the plan protects unit {plan.unit} alone, so that nothing bounds it for unit {budget.unit}"
    return "without noise nothing bounds it"


def _same_window(charges: list[Charge], day: date, renews: Renewal) -> list[Charge]:
    start = window_start(day, renews).isoformat()
    return [c for c in charges if c.day >= start]


def _sum(charges: list[Charge]) -> float:
    return math.fsum(math.inf if c.mu_squared is None else c.mu_squared for c in charges)


def _shown(epsilon: float | None) -> str:
    """Spell an epsilon, rounded up: never less than it is."""
    return "an unbounded epsilon" if epsilon is None else f"epsilon {math.ceil(epsilon * 1000) / 1000:g}"
