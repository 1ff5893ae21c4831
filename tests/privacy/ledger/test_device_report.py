"""What a device's user is told of its ledger, against figures worked out another way."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger
from fedrecall.privacy.ledger.device_report import cost_of, device_report
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.plan import Mechanism, Plan

NOW, LATER = datetime(2031, 3, 30, 12, tzinfo=UTC), datetime(2031, 4, 2, 12, tzinfo=UTC)
ROUNDS = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=0.5, steps=100)
PLAN = Plan(unit="user", trust="central", delta=1e-5, devices=943, mechanisms=(ROUNDS,), simulated=False)
OTHER = replace(PLAN, mechanisms=(replace(ROUNDS, noise_multiplier=4.0),))
LOCAL = replace(PLAN, trust="local")
BUDGET = Budget(epsilon=2.0, delta=1e-6, renews="month")


def epsilon(mu: float, delta: float = 1e-6) -> float:
    """Balle and Wang 2018, theorem 8, inverted with scipy alone."""
    return float(brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0, 100))


def ledger(tmp_path: Path, *charges: tuple[Plan, int, datetime], budget: Budget = BUDGET) -> Path:
    path = tmp_path / "ledger.jsonl"
    made = DeviceLedger.create(path, budget)
    for plan, round, now in charges:
        made.charge(plan, "rounds", round, "key", now)
    return path


def test_each_plan_has_its_row_and_the_window_its_sum(tmp_path: Path) -> None:
    charges = [(PLAN, 0, NOW), (OTHER, 0, NOW), (PLAN, 1, LATER), (PLAN, 2, LATER)]
    path = ledger(tmp_path, *charges)
    found = device_report(path, PLAN, LATER)
    first, second = found["plans"]
    assert (first["plan"], first["times"], first["enrolled"]) == (PLAN.digest(), 3, True)
    assert (second["plan"], second["times"], second["enrolled"]) == (OTHER.digest(), 1, False)
    assert (first["first"], first["last"]) == ("2031-03-30", "2031-04-02")
    assert first["epsilon"] == pytest.approx(epsilon(math.sqrt(3) / 5), abs=1e-6)
    assert second["epsilon"] == pytest.approx(epsilon(1 / 4), abs=1e-6)
    spent = found["spent"]
    assert spent["ever"] == pytest.approx(epsilon(math.sqrt(3 / 25 + 1 / 16)), abs=1e-6)
    assert spent["in_window"] == pytest.approx(epsilon(math.sqrt(2 / 25)), abs=1e-6)
    assert (spent["since"], spent["renews_on"]) == ("2031-04-01", "2031-05-01")
    allowed = brentq(lambda mu: epsilon(mu) - 2.0, 0.01, 5)
    assert spent["left"] == pytest.approx(epsilon(math.sqrt(allowed**2 - 2 / 25)), abs=1e-6)
    assert found["budget"] == {"epsilon": 2.0, "delta": 1e-6, "renews": "month", "unit": "user"}


def test_who_is_bounded_by_it_and_who_is_not(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in device_report(ledger(tmp_path, (PLAN, 0, NOW)), PLAN, NOW)["adversaries"]}
    assert rows["released-model"]["epsilon"] == pytest.approx(epsilon(1 / 5), abs=1e-6)
    assert rows["server"]["epsilon"] is None and "'central'" in rows["server"]["reason"]
    assert rows["device-thief"]["epsilon"] is None
    for row in rows.values():
        assert (row["delta"], row["unit"], row["adjacency"], row["sampling"]) == (
            1e-6,
            "user",
            "zero_out",
            "unamplified",
        )
        assert (row["accountant"] == "none") == (row["epsilon"] is None)


@pytest.mark.parametrize(
    ("served", "enrolled", "bounded"),
    [([LOCAL], LOCAL, True), ([LOCAL], None, False), ([LOCAL, PLAN], LOCAL, False), ([], PLAN, True)],
)
def test_the_server_is_bounded_only_where_all_noise_came_from_the_device(
    served: list[Plan], enrolled: Plan | None, bounded: bool, tmp_path: Path
) -> None:
    path = ledger(tmp_path, *((plan, 0, NOW) for plan in served))
    rows = {row["name"]: row for row in device_report(path, enrolled, NOW)["adversaries"]}
    assert (rows["server"]["epsilon"] is not None) == bounded
    assert rows["released-model"]["epsilon"] is not None


def test_without_noise_nothing_is_said_to_be_bounded(tmp_path: Path) -> None:
    bare = replace(PLAN, mechanisms=(replace(ROUNDS, noise_multiplier=0.0),))
    path = ledger(tmp_path, (bare, 0, NOW), budget=Budget(epsilon=None, delta=1e-6))
    found = device_report(path, bare, NOW)
    assert found["plans"][0]["epsilon"] is None and found["spent"]["ever"] is None and found["spent"]["left"] is None
    assert all(row["epsilon"] is None for row in found["adversaries"])
    assert cost_of(bare, BUDGET) | {"rounds_of_the_plan": 0} == {
        "epsilon_of_one_round": None,
        "rounds_that_fit": 0,
        "rounds_of_the_plan": 0,
    }


def test_it_writes_nothing_and_sees_what_was_altered(tmp_path: Path) -> None:
    path = ledger(tmp_path, (PLAN, 0, NOW), (PLAN, 1, NOW))
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    device_report(path, PLAN, NOW)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before
    text = path.read_bytes()
    for damaged in (text.replace(b'"round":1', b'"round":2'), text[: text.index(b"\n") + 1], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtefact):
            device_report(path, PLAN, NOW)
    with pytest.raises(UsageError, match="no ledger"):
        device_report(tmp_path / "nowhere", PLAN, NOW)


@pytest.mark.parametrize("sigma", [3.0, 5.0, 11.0])
def test_the_rounds_that_fit_are_those_that_the_ledger_allows(sigma: float, tmp_path: Path) -> None:
    plan = replace(PLAN, mechanisms=(replace(ROUNDS, noise_multiplier=sigma, steps=1000),))
    found = cost_of(plan, BUDGET)
    assert found["epsilon_of_one_round"] == pytest.approx(epsilon(1 / sigma), abs=1e-6)
    made = DeviceLedger.create(tmp_path / "ledger.jsonl", BUDGET)
    for round in range(found["rounds_that_fit"]):
        made.charge(plan, "rounds", round, "key", NOW)
    assert "refused" in refusal(made, plan, found["rounds_that_fit"])
    assert cost_of(plan, replace(BUDGET, epsilon=None))["rounds_that_fit"] is None
    assert cost_of(plan, replace(BUDGET, unit="interaction"))["rounds_that_fit"] == 0


def refusal(made: DeviceLedger, plan: Plan, round: int) -> str:
    try:
        made.charge(plan, "rounds", round, "key", NOW)
    except Exception as error:
        return str(error)
    return "charged"
