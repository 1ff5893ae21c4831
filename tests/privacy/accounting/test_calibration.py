import math
from dataclasses import replace

import pytest

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.accounting.calibration import calibrate, fit_noise, split_budget
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Plan

SHARES = {"popularity": 0.1, "second_moments": 0.6, "rounds": 0.3}


def plan_of(*mechanisms: Mechanism, trust: str = "central", delta: float = 1e-5) -> Plan:
    return Plan(unit="user", trust=trust, delta=delta, devices=943, mechanisms=mechanisms)  # type: ignore[arg-type]


def rounds(sigma: float, q: float = 1.0, steps: int = 50) -> Mechanism:
    sampling = "everyone" if q == 1 else "poisson"
    return Mechanism(
        name="rounds", sampling=sampling, sample_rate=q, noise_multiplier=sigma, clip_norm=0.5, steps=steps
    )


def start() -> tuple[Mechanism, Mechanism]:
    return Mechanism(name="popularity", clip_norm=1.0), Mechanism(name="second_moments", clip_norm=1.0)


def released(plan: Plan) -> float:
    epsilon = account_adversary(plan, "released-model").epsilon
    assert epsilon is not None
    return epsilon


@pytest.mark.parametrize("target", [8.0, 0.5])
@pytest.mark.parametrize("q", [1.0, 0.25])
def test_calibrated_plans_spend_the_target_and_never_more(target: float, q: float) -> None:
    scale = calibrate(lambda sigma: plan_of(rounds(sigma, q)), target)
    assert target - 1e-3 <= released(plan_of(rounds(scale, q))) <= target


def test_calibration_inverts_the_closed_form() -> None:
    scale = calibrate(lambda sigma: plan_of(rounds(sigma)), 8.0)
    assert scale == pytest.approx(math.sqrt(50) / gaussian_mu(8.0, 1e-5), rel=1e-3)


def test_a_small_target_is_met_closely() -> None:
    scale = calibrate(lambda sigma: plan_of(rounds(sigma)), 0.01)
    assert 0.0099 <= released(plan_of(rounds(scale))) <= 0.01


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_impossible_targets_are_refused(target: float) -> None:
    with pytest.raises(PlanError, match="epsilon is"):
        calibrate(lambda sigma: plan_of(rounds(sigma)), target)
    with pytest.raises(PlanError, match="epsilon is"):
        split_budget(target, 1e-5, {"rounds": 1.0}, {"rounds": 1})


def test_a_budget_that_is_spent_elsewhere_is_refused() -> None:
    other = Mechanism(name="popularity", noise_multiplier=0.5, clip_norm=1.0)
    with pytest.raises(PlanError, match="spend more already"):
        calibrate(lambda sigma: plan_of(other, rounds(sigma)), 8.0)


def test_a_scale_that_changes_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="stays below"):
        calibrate(lambda sigma: plan_of(rounds(100.0)), 8.0)


def test_a_mechanism_without_noise_is_refused() -> None:
    bare = Mechanism(name="popularity", clip_norm=1.0)
    with pytest.raises(PlanError, match="without noise: popularity"):
        calibrate(lambda sigma: plan_of(bare, rounds(sigma)), 8.0)


@pytest.mark.parametrize("epsilon", [8.0, 1.0, 0.05])
def test_a_split_budget_adds_up(epsilon: float) -> None:
    sigmas = split_budget(epsilon, 1e-5, SHARES, {"popularity": 1, "second_moments": 1, "rounds": 50})
    plan = plan_of(
        replace(start()[0], noise_multiplier=sigmas["popularity"]),
        replace(start()[1], noise_multiplier=sigmas["second_moments"]),
        rounds(sigmas["rounds"]),
    )
    assert epsilon - 1e-3 <= released(plan) <= epsilon
    spent = {"popularity": sigmas["popularity"] ** -2, "rounds": 50 * sigmas["rounds"] ** -2}
    assert spent["popularity"] / spent["rounds"] == pytest.approx(0.1 / 0.3)


@pytest.mark.parametrize(
    ("shares", "steps", "message"),
    [
        ({"rounds": 0.9}, {"rounds": 1}, "sum to 0.9"),
        ({"rounds": 1.0}, {"rounds": 0}, "steps.rounds is 0"),
        ({"rounds": 1.0, "popularity": 0.0}, {"rounds": 1, "popularity": 1}, "shares.popularity is 0"),
        ({"rounds": 1.0}, {"popularity": 1}, "give each one share"),
    ],
)
def test_bad_shares_are_refused(shares: dict[str, float], steps: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        split_budget(8.0, 1e-5, shares, steps)


def test_fit_noise_when_everyone_takes_part_is_the_split() -> None:
    plan = fit_noise(plan_of(*start(), rounds(0.0)), 8.0, SHARES)
    sigmas = split_budget(8.0, 1e-5, SHARES, {"popularity": 1, "second_moments": 1, "rounds": 50})
    assert {m.name: m.noise_multiplier for m in plan.mechanisms} == pytest.approx(sigmas)


def test_fit_noise_turns_amplification_into_less_noise() -> None:
    everyone = fit_noise(plan_of(*start(), rounds(0.0)), 4.0, SHARES)
    sampled = fit_noise(plan_of(*start(), rounds(0.0, q=0.25)), 4.0, SHARES)
    assert 4.0 - 1e-3 <= released(sampled) <= 4.0
    assert sampled.mechanisms[:2] == everyone.mechanisms[:2]
    assert sampled.mechanism("rounds").noise_multiplier < everyone.mechanism("rounds").noise_multiplier / 2


def test_fit_noise_allows_for_replacement() -> None:
    plan = fit_noise(plan_of(rounds(0.0), trust="local"), 8.0, {"rounds": 1.0})
    assert 8.0 - 1e-3 <= released(plan) <= 8.0
    assert plan.mechanism("rounds").noise_multiplier == pytest.approx(
        2 * math.sqrt(50) / gaussian_mu(8.0, 1e-5), rel=1e-3
    )


def test_fit_noise_leaves_unused_mechanisms_alone() -> None:
    unused = Mechanism(name="unused", steps=0)
    assert fit_noise(plan_of(unused, rounds(0.0)), 8.0, {"rounds": 1.0}).mechanism("unused") == unused


def test_fit_noise_needs_a_clip() -> None:
    with pytest.raises(PlanError, match="clip_norm of rounds"):
        fit_noise(plan_of(Mechanism(name="rounds")), 8.0, {"rounds": 1.0})
