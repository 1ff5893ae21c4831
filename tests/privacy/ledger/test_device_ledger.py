"""What one device spends over every plan that it serves."""

import json
import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import norm

from fedrecall.privacy.ledger.chain import Chain, Head
from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger, after_windows
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, FedrecallError, PlanError, UsageError
from fedrecall.protocol.plan import Mechanism, Plan

from .ledger_contract import LedgerContract

NOW = datetime(2031, 3, 5, 12, tzinfo=UTC)
ROUNDS = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=0.5, steps=100)
PLAN = Plan(unit="user", trust="central", delta=1e-5, devices=943, mechanisms=(ROUNDS,), simulated=False)
BUDGET = Budget(epsilon=2.0, delta=1e-5)


def delta_of(mu: float, epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8, by the normal distribution's own functions."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def with_mechanism(**changes: Any) -> Plan:
    return replace(PLAN, mechanisms=(replace(ROUNDS, **changes),))


LIMITED = with_mechanism(
    sampling="limited", sample_rate=0.25, steps=20, participations=5, min_gap=3, adjacency="zero_out"
)


def spend(ledger: DeviceLedger, plan: Plan = PLAN, now: datetime = NOW, first: int = 0, most: int = 200) -> int:
    """Charge round after round until refused; return how many were not."""
    for n in range(first, first + most):
        try:
            assert ledger.charge(plan, "rounds", n, "key", now)
        except BudgetExhausted:
            return n - first
    return most


@pytest.fixture
def ledger(tmp_path: Path) -> DeviceLedger:
    return DeviceLedger.create(tmp_path / "device.jsonl", BUDGET)


def reopened(ledger: DeviceLedger) -> DeviceLedger:
    return DeviceLedger.open(ledger._chain.path)


class TestBudget:
    @pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
    @pytest.mark.parametrize("sigma", [15.0, 25.0])
    def test_it_takes_part_as_long_as_the_exact_delta_allows_and_no_longer(
        self, epsilon: float, sigma: float, tmp_path: Path
    ) -> None:
        """mu of n participations is sqrt(n) / sigma; x 2/3 and x 3/2 of the noise would give another count."""
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, epsilon=epsilon))
        taken = spend(ledger, with_mechanism(noise_multiplier=sigma, steps=1000), most=1000)
        assert delta_of(math.sqrt(taken) / sigma, epsilon) <= 1e-5 < delta_of(math.sqrt(taken + 1) / sigma, epsilon)
        for wrong in (2 / 3, 3 / 2):
            assert not (
                delta_of(math.sqrt(taken) / sigma / wrong, epsilon)
                <= 1e-5
                < delta_of(math.sqrt(taken + 1) / sigma / wrong, epsilon)
            )

    def test_the_anchor_of_the_closed_form(self, tmp_path: Path) -> None:
        """docs/privacy.md, anchors: epsilon 8, 4, 2, 1 at delta 1e-5 are mu 1.666, 0.925, 0.502, 0.268."""
        for epsilon, mu in ((8, 1.666), (4, 0.925), (2, 0.502), (1, 0.268)):
            assert math.sqrt(replace(BUDGET, epsilon=epsilon).mu_squared) == pytest.approx(mu, abs=6e-4)

    def test_a_plan_calibrated_to_the_budget_fits_and_not_a_round_more(self, tmp_path: Path) -> None:
        for steps in (1, 3, 7, 100):
            sigma = math.sqrt(steps / BUDGET.mu_squared)
            ledger = DeviceLedger.create(tmp_path / str(steps), BUDGET)
            assert spend(ledger, with_mechanism(noise_multiplier=sigma, steps=steps + 5)) == steps

    @pytest.mark.parametrize(
        ("changes", "factor"),
        [
            ({"trust": "local"}, 4.0),
            ({"mechanisms": (replace(ROUNDS, adjacency="replace_one"),)}, 4.0),
            ({}, 1.0),
            ({"mechanisms": (replace(ROUNDS, sampling="poisson", sample_rate=0.01),)}, 1.0),
        ],
    )
    def test_replacing_costs_four_times_and_sampling_saves_nothing(
        self, changes: dict[str, Any], factor: float, ledger: DeviceLedger
    ) -> None:
        ledger.charge(replace(PLAN, **changes), "rounds", 0, "key", NOW)
        entry = json.loads(ledger._chain.path.read_text().splitlines()[-1])
        assert entry["mu_squared"] == pytest.approx(factor / 25)

    def test_all_plans_share_it(self, ledger: DeviceLedger) -> None:
        alone = spend(ledger)
        assert alone == 6  # 25 x 0.502^2 = 6.3
        other = replace(PLAN, devices=944)
        assert spend(ledger, other) == 0 == spend(reopened(ledger), other)

    @pytest.mark.parametrize("plan", [with_mechanism(noise_multiplier=0.0), with_mechanism(noise_multiplier=1e-120)])
    def test_without_noise_no_finite_budget_is_enough(self, plan: Plan, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, epsilon=1e9))
        with pytest.raises(BudgetExhausted, match="unbounded epsilon and is refused, because without noise"):
            ledger.charge(plan, "rounds", 0, "key", NOW)
        assert ledger.spent(NOW).ever == 0.0

    def test_no_limit_allows_it_and_says_so_ever_after(self, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, epsilon=None, renews="day"))
        ledger.charge(with_mechanism(noise_multiplier=0.0), "rounds", 0, "key", NOW)
        assert ledger.spent(NOW).in_window is None and ledger.spent(NOW).ever is None
        tomorrow = NOW + timedelta(days=1)
        assert ledger.spent(tomorrow).in_window == 0.0 and ledger.spent(tomorrow).ever is None
        ledger.change_budget(replace(BUDGET, epsilon=100.0))
        with pytest.raises(BudgetExhausted, match="bring what is spent to an unbounded epsilon"):
            reopened(ledger).charge(PLAN, "rounds", 0, "key", tomorrow)

    @pytest.mark.parametrize(("of_budget", "of_plan"), [("user", "interaction"), ("interaction", "user")])
    def test_a_plan_of_another_unit_gives_it_no_bound(self, of_budget: Any, of_plan: Any, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, unit=of_budget))
        with pytest.raises(BudgetExhausted, match=f"protects unit {of_plan} alone.*for unit {of_budget}"):
            ledger.charge(replace(PLAN, unit=of_plan), "rounds", 0, "key", NOW)
        assert ledger.charge(replace(PLAN, unit=of_budget), "rounds", 0, "key", NOW)
        with pytest.raises(PlanError, match="keep the unit"):
            ledger.change_budget(replace(BUDGET, unit=of_plan))

    @pytest.mark.parametrize(
        "changes",
        [
            {"epsilon": 0.0},
            {"epsilon": math.inf},
            {"epsilon": math.nan},
            {"delta": 0.0},
            {"delta": 1.0},
            {"renews": "year"},
            {"unit": "item"},
        ],
    )
    def test_what_is_no_budget_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(PlanError, match=next(iter(changes))):
            replace(BUDGET, **changes)

    def test_it_is_raised_and_lowered_by_entries_for_later_charges(self, ledger: DeviceLedger) -> None:
        first = ledger._chain.path.read_bytes().splitlines()[0]
        assert spend(ledger) == 6
        ledger.change_budget(replace(BUDGET, epsilon=4.0))
        assert spend(ledger, first=6) == 15  # 25 x 0.925^2 = 21.4
        ledger.change_budget(replace(BUDGET, epsilon=1.0))
        again = reopened(ledger)
        assert again.budget.epsilon == 1.0 and spend(again, first=21) == 0
        lines = ledger._chain.path.read_bytes().splitlines()
        assert lines[0] == first and [b'"budget"' in line for line in lines].count(True) == 3
        assert again.spent(NOW).ever == pytest.approx(3.96, abs=0.01)


class TestRefusal:
    def test_it_is_one_sentence_with_request_spending_budget_and_renewal(self, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, renews="month"))
        spend(ledger)
        with pytest.raises(BudgetExhausted) as caught:
            ledger.charge(PLAN, "rounds", 6, "key", NOW)
        assert caught.value.exit_code == 4
        assert str(caught.value) == (
            f"round 6 of 'rounds' of plan {PLAN.digest()[:8]} asks for epsilon 0.726 and is refused, because it would "
            "bring what is spent to epsilon 2.124; spent is epsilon 1.949 of a budget of epsilon 2 (delta 1e-05, unit "
            "user) since 2031-03-01 and it renews on 2031-04-01 (UTC)"
        )
        for mu, epsilon in ((math.sqrt(7) / 5, 2.124), (math.sqrt(6) / 5, 1.949), (1 / 5, 0.726)):
            assert delta_of(mu, epsilon) <= 1e-5 < delta_of(mu, epsilon - 1e-3)  # rounded up, each

    def test_it_says_when_the_clock_was_wound_back(self, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, renews="week"))
        spend(ledger)
        with pytest.raises(BudgetExhausted, match=r"counting from 2031-03-05, the latest.* renews on 2031-03-10"):
            ledger.charge(PLAN, "rounds", 6, "key", NOW - timedelta(days=400))

    def test_it_says_that_it_does_not_renew(self, ledger: DeviceLedger) -> None:
        spend(ledger)
        with pytest.raises(BudgetExhausted, match=r"which does not renew$"):
            ledger.charge(PLAN, "rounds", 6, "key", NOW)

    def test_a_refusal_spends_nothing(self, ledger: DeviceLedger) -> None:
        spend(ledger)
        before = ledger._chain.path.read_bytes()
        for _ in range(3):
            with pytest.raises(BudgetExhausted):
                ledger.charge(PLAN, "rounds", 6, "key", NOW)
        assert ledger._chain.path.read_bytes() == before

    @pytest.mark.parametrize("round", [-1, True, 1.0, "0"])
    def test_a_round_is_a_whole_number(self, round: Any, ledger: DeviceLedger) -> None:
        with pytest.raises(PlanError, match="round is"):
            ledger.charge(PLAN, "rounds", round, "key", NOW)

    def test_what_the_plan_lacks_and_times_without_a_zone_are_refused(self, ledger: DeviceLedger) -> None:
        with pytest.raises(PlanError, match="no mechanism 'metric'"):
            ledger.charge(PLAN, "metric", 0, "key", NOW)
        with pytest.raises(UsageError, match="time zone"):
            ledger.charge(PLAN, "rounds", 0, "key", NOW.replace(tzinfo=None))


class TestThePlansOwnLimit:
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> DeviceLedger:
        return DeviceLedger.create(tmp_path / "device.jsonl", replace(BUDGET, epsilon=100.0))

    def test_steps_bound_one_device_under_each_plan_apart(self, ledger: DeviceLedger) -> None:
        plan = with_mechanism(steps=4)
        assert spend(ledger, plan) == 4 == spend(ledger, replace(plan, devices=7))
        with pytest.raises(BudgetExhausted, match="allows one device 4 rounds, all taken"):
            reopened(ledger).charge(plan, "rounds", 4, "key", NOW + timedelta(days=999))

    def test_they_start_again_where_the_plan_renews(self, ledger: DeviceLedger) -> None:
        plan = replace(with_mechanism(steps=4), renews="week")
        assert spend(ledger, plan) == 4
        assert spend(ledger, plan, NOW + timedelta(days=5)) == 4
        assert spend(ledger, plan, NOW) == 0

    def test_limited_participation_holds_across_a_server_that_was_rolled_back(self, ledger: DeviceLedger) -> None:
        assert ledger.charge(LIMITED, "rounds", 10, "key", NOW)
        for near in (8, 9, 10, 11, 12):
            with pytest.raises(BudgetExhausted, match="took part in round 10, less than the plan's 3 rounds apart"):
                reopened(ledger).charge(LIMITED, "rounds", near, "another key", NOW)
        for far in (7, 13, 3):
            assert reopened(ledger).charge(LIMITED, "rounds", far, "key", NOW)
        with pytest.raises(BudgetExhausted, match=r"took part in round 1[03]"):  # not the latest one
            reopened(ledger).charge(LIMITED, "rounds", 11, "key", NOW)
        assert reopened(ledger).charge(LIMITED, "rounds", 19, "key", NOW)
        with pytest.raises(BudgetExhausted, match="allows one device 5 rounds, all taken"):
            reopened(ledger).charge(LIMITED, "rounds", 0, "key", NOW)

    def test_limited_participation_has_a_fixed_horizon(self, ledger: DeviceLedger) -> None:
        with pytest.raises(BudgetExhausted, match="ends after 20 rounds"):
            ledger.charge(LIMITED, "rounds", 20, "key", NOW)

    def test_each_mechanism_has_its_own(self, ledger: DeviceLedger) -> None:
        popularity = replace(ROUNDS, name="popularity", steps=1)
        plan = replace(PLAN, mechanisms=(popularity, replace(ROUNDS, steps=2)))
        assert ledger.charge(plan, "popularity", 0, "key", NOW)
        assert spend(ledger, plan) == 2


class TestReplays:
    def test_a_retry_is_charged_again(self, ledger: DeviceLedger) -> None:
        assert ledger.charge(PLAN, "rounds", 0, "key", NOW) and ledger.charge(PLAN, "rounds", 0, "key", NOW)
        assert reopened(ledger).head().lines == 3

    def test_a_server_cannot_make_it_free_by_calling_the_plan_simulated(self, ledger: DeviceLedger) -> None:
        with pytest.raises(PlanError, match="simulated and this device is not"):
            ledger.charge(replace(PLAN, simulated=True), "rounds", 0, "key", NOW)
        with pytest.raises(PlanError):
            reopened(ledger).charge(replace(PLAN, simulated=True), "rounds", 0, "key", NOW)

    def test_a_simulated_device_charges_identical_noise_once_even_when_spent(self, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "device.jsonl", BUDGET, simulated=True)
        plan = replace(PLAN, simulated=True)
        assert spend(ledger, plan) == 6
        again = reopened(ledger)
        assert not again.charge(plan, "rounds", 5, "key", NOW)
        for other in ((plan, 5, "other"), (plan, 6, "key"), (replace(plan, devices=2), 5, "key"), (PLAN, 5, "key")):
            with pytest.raises(BudgetExhausted):
                again.charge(other[0], "rounds", other[1], other[2], NOW)

    def test_a_charge_that_failed_is_no_charge_to_replay(self, tmp_path: Path) -> None:
        one = DeviceLedger.create(tmp_path / "device.jsonl", BUDGET, simulated=True)
        two, plan = reopened(one), replace(PLAN, simulated=True)
        one.charge(plan, "rounds", 0, "key", NOW)
        for _ in range(2):
            with pytest.raises(FedrecallError, match="reopen it"):
                two.charge(plan, "rounds", 1, "key", NOW)
        assert two.spent(NOW).ever == 0.0


class TestWindows:
    @pytest.mark.parametrize(
        ("renews", "since", "renews_on"),
        [
            ("never", None, None),
            ("day", date(2031, 3, 5), date(2031, 3, 6)),
            ("week", date(2031, 3, 3), date(2031, 3, 10)),
            ("month", date(2031, 3, 1), date(2031, 4, 1)),
        ],
    )
    def test_where_it_stands(self, renews: Any, since: date | None, renews_on: date | None, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, renews=renews))
        assert spend(ledger) == 6
        spent = ledger.spent(NOW)
        assert (spent.since, spent.renews_on) == (since, renews_on)
        assert spent.in_window is not None and spent.in_window == spent.ever
        assert delta_of(math.sqrt(6) / 5, spent.in_window) == pytest.approx(1e-5, rel=1e-6)
        if renews_on is None:
            return
        eve = datetime.combine(renews_on, datetime.min.time(), UTC) - timedelta(microseconds=1)
        assert spend(ledger, now=eve, first=6) == 0
        morning = eve + timedelta(microseconds=1)
        assert ledger.spent(morning).in_window == 0.0 and spend(ledger, now=morning, first=6) == 6
        ever = reopened(ledger).spent(morning).ever
        assert ever is not None and delta_of(math.sqrt(12) / 5, ever) == pytest.approx(1e-5, rel=1e-6)
        assert ledger.spent(NOW) == ledger.spent(morning)  # never back
        assert spend(ledger, now=NOW, first=12) == 0

    def test_another_renewal_does_not_reopen_what_is_spent(self, tmp_path: Path) -> None:
        """Charged by the day, then counted by the month: all days of the month count."""
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, renews="day"))
        assert spend(ledger) == 6
        assert spend(ledger, now=NOW + timedelta(days=1), first=6) == 6
        ledger.change_budget(replace(BUDGET, renews="month"))
        assert spend(ledger, now=NOW + timedelta(days=2), first=12) == 0
        assert spend(ledger, now=NOW + timedelta(days=27), first=12) == 6  # 1 April

    def test_what_windows_add_up_to_is_said(self, tmp_path: Path) -> None:
        budget = replace(BUDGET, renews="day")
        for windows in (1, 4, 30):
            total = after_windows(budget, windows)
            assert total is not None
            mu = math.sqrt(windows * budget.mu_squared)
            assert delta_of(mu, total) == pytest.approx(1e-5, rel=1e-6)
        assert after_windows(budget, 1) == pytest.approx(2.0) == after_windows(BUDGET, 1)
        assert after_windows(replace(budget, epsilon=None), 3) is None
        for bad, n in ((budget, 0), (BUDGET, 2)):
            with pytest.raises(PlanError, match="windows is"):
                after_windows(bad, n)

    def test_no_sequence_of_days_exceeds_what_windows_add_up_to(self, tmp_path: Path) -> None:
        ledger = DeviceLedger.create(tmp_path / "l", replace(BUDGET, renews="day"))
        for n in range(5):
            spend(ledger, now=NOW + timedelta(days=n), first=10 * n)
        ever, bound = ledger.spent(NOW).ever, after_windows(ledger.budget, 5)
        assert ever is not None and bound is not None and 0.9 * bound < ever <= bound


class TestStarting:
    def test_enrolment_is_resumed_and_keeps_the_budget_that_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "l"
        path.write_bytes(b'{"bud')
        spend(DeviceLedger.resume(path, BUDGET))
        again = DeviceLedger.resume(path, replace(BUDGET, epsilon=50.0))
        assert again.budget == BUDGET and spend(again, first=6) == 0

    @pytest.mark.parametrize(
        "entries",
        [
            [{"plan": {}}],
            [{"budget": {"epsilon": -1.0, "delta": 1e-5}, "simulated": False}],
            [{"budget": {"epsilon": 1.0}, "simulated": False}],
            *(
                [
                    {"budget": {"epsilon": 1.0, "delta": 1e-5}, "simulated": False},
                    {"plan": "p", "mechanism": "m", "round": 0, "key": "k", "mu_squared": 0.1, "day": "2031-03-05"}
                    | bad,
                ]
                for bad in ({"mu_squared": -0.1}, {"day": "yesterday"}, {"day": 3}, {"x": 1}, {"mu_squared": "0"})
            ),
        ],
    )
    def test_a_whole_chain_that_is_no_ledger_of_a_device_is_refused(
        self, entries: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        chain = Chain.create(tmp_path / "l", entries[0])
        for entry in entries[1:]:
            chain.append(entry)
        with pytest.raises(CorruptArtefact, match="no ledger of a device"):
            DeviceLedger.open(tmp_path / "l")

    def test_it_holds_no_data_but_what_was_asked_and_when(self, ledger: DeviceLedger) -> None:
        ledger.charge(PLAN, "rounds", 0, "key", NOW)
        first, entry = map(json.loads, ledger._chain.path.read_text().splitlines())
        assert first.keys() == {"previous", "sha256", "budget", "simulated"}
        assert entry.keys() == {"previous", "sha256", "plan", "task", "mechanism", "round", "key", "mu_squared", "day"}


class TestDevicesLedger(LedgerContract):
    kind = "device"

    def start(self, path: Path) -> DeviceLedger:
        return DeviceLedger.create(path, replace(BUDGET, epsilon=8.0))

    def open(self, path: Path, at_least: Head | None = None) -> DeviceLedger:
        return DeviceLedger.open(path, at_least=at_least)

    def charge(self, ledger: DeviceLedger, round: int) -> bool:
        return ledger.charge(PLAN, "rounds", round, "key", NOW)
