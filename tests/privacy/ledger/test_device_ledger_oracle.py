"""The device's ledger against an oracle of the budget's rules: any sequence of requests, clocks and restarts."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger
from fedrecall.protocol.errors import BudgetExhausted
from fedrecall.protocol.plan import Renewal

from .test_device_ledger import LIMITED, NOW, PLAN, delta_of, with_mechanism

PLANS = (
    PLAN,
    with_mechanism(noise_multiplier=2.0, steps=3),
    replace(with_mechanism(noise_multiplier=9.0), trust="local"),
    with_mechanism(noise_multiplier=7.0, adjacency="replace_one"),
    with_mechanism(noise_multiplier=0.0),
    replace(PLAN, unit="interaction"),
    replace(with_mechanism(steps=2, noise_multiplier=8.0), renews="week"),
    LIMITED,
)
MU = (1 / 5, 1 / 2, 2 / 9, 2 / 7, math.inf, math.inf, 1 / 8, 1 / 5)
RENEWALS: tuple[Renewal, ...] = ("never", "day", "week", "month")
LABEL = {"never": "", "day": "%Y-%m-%d", "week": "%G-%V", "month": "%Y-%m"}


@dataclass
class Oracle:
    """The rules, from the issue's words: (plan, round, time) of what was allowed, in a list."""

    budget: Budget
    allowed: list[tuple[int, int, datetime]]

    def asks(self, which: int, round: int, now: datetime) -> bool:
        plan, mechanism = PLANS[which], PLANS[which].mechanisms[0]
        now = max([now, *(at for _, _, at in self.allowed)])
        own = [r for p, r, at in self.allowed if p == which and self.same(at, now, plan.renews)]
        ok = len(own) < (mechanism.participations or mechanism.steps)
        if mechanism.min_gap:
            ok = ok and round < mechanism.steps and all(abs(r - round) >= mechanism.min_gap for r in own)
        mus = [MU[p] for p, _, at in self.allowed if self.same(at, now, self.budget.renews)] + [MU[which]]
        if self.budget.epsilon is not None:
            ok = ok and math.inf not in mus and delta_of(math.hypot(*mus), self.budget.epsilon) <= self.budget.delta
        if ok:
            self.allowed.append((which, round, now))
        return ok

    @staticmethod
    def same(a: datetime, b: datetime, renews: str) -> bool:
        return a.strftime(LABEL[renews]) == b.strftime(LABEL[renews])


def random_budget(rng: random.Random) -> Budget:
    epsilon = rng.choice([None, None, 0.9, 2.3, 4.1, 9.7])
    return Budget(epsilon=epsilon, delta=rng.choice([1e-5, 1e-8]), renews=rng.choice(RENEWALS))


def test_any_sequence_of_requests_clocks_budgets_and_restarts_is_answered_as_the_rules_say(tmp_path: Path) -> None:
    rng, answers = random.Random(20310305), Counter[tuple[int, bool]]()
    for sequence in range(120):
        oracle = Oracle(budget=random_budget(rng), allowed=[])
        ledger = DeviceLedger.create(tmp_path / str(sequence), oracle.budget)
        plans = rng.sample(range(len(PLANS)), 3)  # a few plans, asked often, reach their limits
        for _ in range(30):
            dice = rng.random()
            if dice < 0.05:
                ledger = DeviceLedger.open(tmp_path / str(sequence), at_least=ledger.head())
            elif dice < 0.1:
                oracle.budget = random_budget(rng)
                ledger.change_budget(oracle.budget)
            else:
                which, round = rng.choice(plans), rng.randrange(22)
                now = NOW + timedelta(hours=rng.choice([rng.randrange(30), rng.randrange(-400, 900)]))
                try:
                    took_part = ledger.charge(PLANS[which], "rounds", round, "key", now)
                except BudgetExhausted:
                    took_part = False
                assert took_part == oracle.asks(which, round, now)
                answers[which, took_part] += 1
    assert len(answers) == 2 * len(PLANS) and min(answers.values()) >= 20, answers
