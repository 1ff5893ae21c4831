import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.ledger.chain import Chain
from fedrecall.privacy.ledger.ledger import Head, Ledger
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, FedrecallError, PlanError, UsageError
from fedrecall.protocol.plan import Mechanism, Plan

from .ledger_contract import LedgerContract

PLAN = Plan(
    unit="user",
    trust="central",
    delta=1e-5,
    devices=943,
    mechanisms=(
        Mechanism(name="popularity", noise_multiplier=3.0, clip_norm=1.0),
        Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=0.5, steps=4),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with one popularity and two rounds charged."""
    ledger = Ledger.create(tmp_path / "ledger.jsonl", PLAN)
    ledger.charge("popularity", 0, "k")
    ledger.charge("rounds", 0, "k0")
    ledger.charge("rounds", 1, "k1")
    return tmp_path / "ledger.jsonl"


class TestCharging:
    def test_what_was_charged_is_replayed(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        assert ledger.spent() == {"popularity": 1, "rounds": 2}
        assert [m.steps for m in ledger.spent_plan().mechanisms] == [1, 2]
        spent = account_adversary(ledger.spent_plan(), "released-model").epsilon
        whole = account_adversary(PLAN, "released-model").epsilon
        assert spent is not None and whole is not None and 0 < spent < whole

    def test_past_the_plan_it_refuses(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        ledger.charge("rounds", 2, "k2")
        ledger.charge("rounds", 3, "k3")
        with pytest.raises(BudgetExhausted, match="all of its 4 releases") as caught:
            ledger.charge("rounds", 4, "k4")
        assert caught.value.exit_code == 4
        with pytest.raises(BudgetExhausted):
            Ledger.open(path, PLAN).charge("rounds", 4, "k4")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 4

    def test_a_simulated_replay_is_charged_once_even_at_the_limit(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        assert not ledger.charge("rounds", 1, "k1")
        assert ledger.charge("rounds", 1, "other noise")
        assert ledger.charge("rounds", 3, "k3")
        assert not Ledger.open(path, PLAN).charge("rounds", 3, "k3")
        assert ledger.spent()["rounds"] == 4

    def test_a_charge_that_failed_is_no_charge_to_replay(self, path: Path) -> None:
        one, two = Ledger.open(path, PLAN), Ledger.open(path, PLAN)
        one.charge("rounds", 2, "k2")
        for _ in range(2):
            with pytest.raises(FedrecallError, match="reopen it"):
                two.charge("rounds", 3, "k3")
        assert two.spent()["rounds"] == 2

    def test_in_a_deployment_a_retry_is_charged_again(self, tmp_path: Path) -> None:
        plan = replace(PLAN, simulated=False)
        ledger = Ledger.create(tmp_path / "ledger.jsonl", plan)
        assert ledger.charge("rounds", 0, "nonce") and ledger.charge("rounds", 0, "nonce")
        assert Ledger.open(tmp_path / "ledger.jsonl", plan).spent()["rounds"] == 2

    def test_unknown_mechanisms_and_rounds_are_refused(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        with pytest.raises(PlanError, match="no mechanism 'metric'"):
            ledger.charge("metric", 0, "k")
        with pytest.raises(PlanError, match="round is -1"):
            ledger.charge("rounds", -1, "k")

    def test_another_plan_is_refused(self, path: Path) -> None:
        with pytest.raises(PlanError, match="another plan"):
            Ledger.open(path, replace(PLAN, delta=1e-6))

    def test_it_holds_no_data_but_the_events_of_the_plan(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert Plan.from_dict(lines[0]["plan"]) == PLAN
        for entry in lines[1:]:
            assert entry.keys() == {"previous", "sha256", "mechanism", "round", "key"}

    def test_the_bytes_of_an_entry_are_what_they_were(self, path: Path) -> None:
        """Worked out by hand from the format: sorted keys, no spaces, the hash over all but itself."""
        lines = path.read_text().splitlines(keepends=True)
        previous = hashlib.sha256(lines[1].encode()).hexdigest()
        body = f'{{"key":"k0","mechanism":"rounds","previous":"{previous}","round":0'
        digest = hashlib.sha256(f"{body}}}\n".encode()).hexdigest()
        assert lines[2] == f'{body},"sha256":"{digest}"}}\n'


class TestReading:
    def test_it_needs_no_plan_and_writes_nothing(self, path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole + b"torn")
        ledger = Ledger.read(path)
        assert ledger.plan == PLAN and ledger.spent() == {"popularity": 1, "rounds": 2}
        assert path.read_bytes() == whole + b"torn"
        assert ledger.holds(ledger.head().sha256) and not ledger.holds("0" * 64)

    @pytest.mark.parametrize(
        "first", [{}, {"plan": {}, "digest": ""}, {"plan": 3}, {"plan": PLAN.to_dict(), "digest": "0" * 64}]
    )
    def test_a_whole_chain_that_begins_with_no_plan_is_refused(self, first: dict[str, Any], tmp_path: Path) -> None:
        Chain.create(tmp_path / "x.jsonl", first)
        with pytest.raises(CorruptArtefact):
            Ledger.read(tmp_path / "x.jsonl")

    @pytest.mark.parametrize(
        "entry",
        [{}, {"mechanism": "metric", "round": 0, "key": "k"}, {"mechanism": "popularity", "round": 0, "key": "again"}],
    )
    def test_a_whole_chain_with_what_its_plan_does_not_allow_is_refused(
        self, entry: dict[str, Any], path: Path
    ) -> None:
        Chain.open(path).append(entry)
        for replay in (lambda: Ledger.read(path), lambda: Ledger.open(path, PLAN)):
            with pytest.raises(CorruptArtefact, match="line 5"):
                replay()


class TestRenewal:
    """Under a plan that renews, ``steps`` hold for one UTC window; windows never run back."""

    NOON = datetime(2031, 3, 31, 12, tzinfo=UTC)

    def spend(self, ledger: Ledger, now: datetime, first: int) -> int:
        """Charge rounds until refused; return how many."""
        for n in range(first, first + 9):
            try:
                ledger.charge("rounds", n, "k", now)
            except BudgetExhausted:
                return n - first
        raise AssertionError("no limit")

    @pytest.mark.parametrize(
        ("renews", "same", "following"),
        [
            ("day", timedelta(hours=11, minutes=59), timedelta(hours=12)),
            ("week", timedelta(days=6, hours=11), timedelta(days=6, hours=12)),  # 31 March 2031 is a Monday
            ("month", timedelta(hours=11, minutes=59), timedelta(hours=12)),
        ],
    )
    def test_steps_start_again_in_the_next_window(
        self, renews: Any, same: timedelta, following: timedelta, tmp_path: Path
    ) -> None:
        plan = replace(PLAN, renews=renews, simulated=False)
        ledger = Ledger.create(tmp_path / "ledger.jsonl", plan)
        assert self.spend(ledger, self.NOON, 0) == 4
        assert self.spend(ledger, self.NOON + same, 4) == 0
        west = (self.NOON + same).astimezone(timezone(timedelta(hours=14)))
        assert self.spend(ledger, west, 4) == 0  # another zone, the same moment
        assert self.spend(ledger, self.NOON + following, 4) == 4
        again = Ledger.open(tmp_path / "ledger.jsonl", plan)
        assert again.spent()["rounds"] == 8 and again.spent_in_window() == {"popularity": 0, "rounds": 4}
        # Back in the first window, and years before: still the latest one seen.
        for now in (self.NOON, datetime(1970, 1, 1, tzinfo=UTC)):
            assert self.spend(again, now, 8) == 0
        assert {m.steps for m in again.spent_plan().mechanisms} == {0, 8}
        assert again.spent_plan().renews == "never"

    def test_an_earlier_window_in_the_file_does_not_move_it_back(self, tmp_path: Path) -> None:
        plan = replace(PLAN, renews="week")
        self.spend(Ledger.create(tmp_path / "ledger.jsonl", plan), self.NOON, 0)
        entry = {"mechanism": "popularity", "round": 0, "key": "k", "window": "2030-01-07"}
        Chain.open(tmp_path / "ledger.jsonl").append(entry)
        assert self.spend(Ledger.open(tmp_path / "ledger.jsonl", plan), self.NOON - timedelta(days=400), 4) == 0

    def test_the_refusal_says_when_it_renews(self, tmp_path: Path) -> None:
        ledger = Ledger.create(tmp_path / "ledger.jsonl", replace(PLAN, renews="week"))
        ledger.charge("popularity", 0, "k", self.NOON)
        with pytest.raises(BudgetExhausted, match="of the week from 2031-03-31: wait until 2031-04-07 UTC"):
            ledger.charge("popularity", 1, "k", self.NOON)

    def test_it_needs_a_time_with_its_zone(self, tmp_path: Path) -> None:
        ledger = Ledger.create(tmp_path / "ledger.jsonl", replace(PLAN, renews="day"))
        with pytest.raises(PlanError, match="now is missing"):
            ledger.charge("rounds", 0, "k")
        with pytest.raises(UsageError, match="time zone"):
            ledger.charge("rounds", 0, "k", datetime(2031, 1, 1))
        with pytest.raises(UsageError, match="the clock says 9999"):
            ledger.charge("rounds", 0, "k", datetime(9999, 12, 31, tzinfo=UTC))
        assert ledger.spent()["rounds"] == 0 and ledger.window is None

    def test_a_plan_that_never_renews_ignores_the_clock(self, path: Path) -> None:
        Ledger.open(path, PLAN).charge("rounds", 2, "k2", self.NOON)
        assert "window" not in path.read_text().splitlines()[-1]


class TestServersLedger(LedgerContract):
    kind = "server"
    PLAN = replace(PLAN, simulated=False, mechanisms=(replace(PLAN.mechanism("rounds"), steps=9),))

    def start(self, path: Path) -> Ledger:
        return Ledger.create(path, self.PLAN)

    def open(self, path: Path, at_least: Head | None = None) -> Ledger:

        return Ledger.open(path, self.PLAN, at_least=at_least)

    def charge(self, ledger: Ledger, round: int) -> bool:
        return ledger.charge("rounds", round, "key")
