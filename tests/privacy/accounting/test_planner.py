import math
from typing import Any

import numpy as np
import pytest

from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.accounting.candidates import SURVIVORS, Need, candidates, device_rounds, sound_adjacency
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.accounting.planner import Fit, fit_plans
from fedrecall.privacy.mechanisms.correlated import coefficients
from fedrecall.protocol.errors import PlanError

BUDGET: dict[str, Any] = {"devices": 1000, "epsilon": 4.0, "delta": 1e-5}
SMALL: dict[str, Any] = BUDGET | {"min_rounds": 20, "max_rounds": 50, "max_cohort": 250, "dimension": 400}


def against(fit: Fit, adversary: str) -> float:
    found = next(row.epsilon for row in fit.adversaries if row.name == adversary)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def fits() -> list[Fit]:
    return fit_plans(Need(**SMALL, samplings=("poisson", "limited")), 4)


def test_every_fit_spends_the_budget_and_never_more(fits: list[Fit]) -> None:
    for fit in fits:
        assert 4.0 - 1e-3 <= against(fit, "released-model") <= 4.0
        assert fit.noise_multiplier == fit.plan.mechanism("rounds").noise_multiplier
    assert fits[0].adversaries == account(fits[0].plan)


def test_bounds_are_kept_and_every_sampling_is_there(fits: list[Fit]) -> None:
    assert len(fits) == 4 and {f.plan.mechanism("rounds").sampling for f in fits} == {"poisson", "limited"}
    for fit in fits:
        assert 20 <= fit.rounds <= 50 and fit.cohort <= 250
    bounded = list(candidates(Need(**SMALL, max_device_rounds=2)))
    assert {m.sampling for m in bounded} == {"poisson", "limited"}
    assert all(device_rounds(m) <= 2 and m.sample_rate <= 0.25 for m in bounded)


def test_coins_are_worth_nothing_against_the_network_and_turns_need_none(fits: list[Fit]) -> None:
    for fit in fits:
        if fit.plan.mechanism("rounds").sampling == "poisson":
            assert against(fit, "network") > 1.3 * against(fit, "released-model")
        else:
            assert against(fit, "network") == against(fit, "released-model")
    smallest = min((f for f in fits if f.plan.mechanism("rounds").sampling == "poisson"), key=lambda f: f.cohort)
    assert against(smallest, "network") > 12.0


def test_the_best_come_first_and_nothing_as_cheap_is_better(fits: list[Fit]) -> None:
    noises = [f.movement_noise for f in fits if f.best]
    assert noises == sorted(noises) and [f.best for f in fits] == sorted((f.best for f in fits), reverse=True)
    for fit in (f for f in fits if f.best):
        for other in fits:
            same = other.plan.mechanism("rounds").sampling == fit.plan.mechanism("rounds").sampling
            if same and other is not fit and other.device_rounds <= fit.device_rounds:
                assert other.movement_noise > 0.985 * fit.movement_noise


def test_more_rounds_of_everyone_cost_more_and_gain_nothing() -> None:
    cheap, *others = fit_plans(Need(**BUDGET, samplings=("everyone",)), 3)
    assert cheap.rounds == 10 and cheap.best and not any(fit.best for fit in others)


def test_noise_figures_are_those_of_an_explicit_noise_matrix(fits: list[Fit]) -> None:
    """Y = D Z / cohort, D the banded matrix itself; the movement is its column sums over the way of T clips."""
    for fit in fits:
        m = fit.plan.mechanism("rounds")
        d = np.zeros(m.steps)
        d[: m.bands] = coefficients(m.bands)[: m.steps]
        banded = np.array([[d[i - j] if i >= j else 0.0 for j in range(m.steps)] for i in range(m.steps)])
        noise = banded * m.noise_multiplier / (m.sample_rate * 1000)
        assert fit.noise_of_mean == pytest.approx(np.linalg.norm(noise[-1]))
        assert fit.noise_norm == pytest.approx(np.linalg.norm(noise[-1]) * 20)  # root of 400 numbers
        movement = np.linalg.norm(noise.sum(axis=0)) / m.steps
        assert fit.movement_noise == pytest.approx(movement)
        assert fit.signal_to_noise == pytest.approx(1 / (movement * 20))
        expected = m.participations if m.sampling == "limited" else m.steps * m.sample_rate
        assert fit.device_rounds == pytest.approx(expected)


def test_everyone_reaches_the_floor_and_nothing_is_below_it(fits: list[Fit]) -> None:
    floor = 1 / (1000 * gaussian_mu(4.0, 1e-5))
    (whole,) = fit_plans(Need(**BUDGET, samplings=("everyone",)), 1)
    assert whole.best and whole.movement_noise == pytest.approx(floor, rel=1e-3)
    assert all(fit.movement_noise > floor * 0.999 for fit in fits)


def test_the_clip_scales_the_noise_of_the_mean_alone() -> None:
    one, half = (fit_plans(Need(**BUDGET, samplings=("everyone",), clip_norm=c), 1)[0] for c in (1.0, 0.5))
    assert half.noise_of_mean == pytest.approx(0.5 * one.noise_of_mean)
    assert (half.movement_noise, half.noise_multiplier) == (one.movement_noise, one.noise_multiplier)
    assert one.noise_norm is None


def test_a_start_leaves_its_share_to_the_rounds() -> None:
    (fit,) = fit_plans(Need(**BUDGET, samplings=("everyone",), share=0.25), 1)
    start, rounds = fit.plan.mechanisms
    mu_squared = gaussian_mu(4.0, 1e-5) ** 2
    assert rounds.steps / rounds.noise_multiplier**2 == pytest.approx(0.25 * mu_squared, rel=1e-3)
    assert start.noise_multiplier**-2 == pytest.approx(0.75 * mu_squared, rel=1e-3)


def test_a_start_beside_coins_keeps_the_budget() -> None:
    (fit,) = fit_plans(Need(**SMALL, samplings=("poisson",), share=0.25), 1)
    assert 4.0 - 1e-3 <= against(fit, "released-model") <= 4.0
    assert [m.name for m in fit.plan.mechanisms] == ["start", "rounds"]


def test_local_noise_is_every_devices_own_and_shares_are_counted_on_whole() -> None:
    (local,) = fit_plans(Need(**BUDGET, unit="interaction", trust="local"), 1)
    m = local.plan.mechanism("rounds")
    assert m.adjacency == "replace_one" and m.sampling == "everyone"
    assert local.noise_of_mean == pytest.approx(m.noise_multiplier / math.sqrt(1000))
    assert against(local, "server") == against(local, "released-model") <= 4.0
    (shared,) = fit_plans(Need(**BUDGET, trust="distributed"), 1)
    m = shared.plan.mechanism("rounds")
    assert m.min_survivors == math.floor(1000 * SURVIVORS)
    assert shared.noise_of_mean == pytest.approx(m.noise_multiplier * math.sqrt(1000 / m.min_survivors) / 1000)
    assert against(shared, "server") <= 4.0


@pytest.mark.slow
def test_a_fixed_size_cohort_keeps_the_budget_and_needs_more_noise_than_coins() -> None:
    bounds = BUDGET | {"min_rounds": 20, "max_rounds": 20, "max_cohort": 100, "max_device_rounds": 2}
    coins, subset = (fit_plans(Need(**bounds, samplings=(kind,)), 1)[0] for kind in ("poisson", "fixed_size"))  # type: ignore[arg-type]
    assert 4.0 - 1e-3 <= against(subset, "released-model") <= 4.0
    assert subset.plan.mechanism("rounds").adjacency == "replace_one"
    assert subset.movement_noise > 1.5 * coins.movement_noise


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    fit_plans(Need(**BUDGET, samplings=("everyone",)), 2, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == list(range(1, len(told) + 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices": 0}, "devices is 0: choose at least 1"),
        ({"min_rounds": 0}, "min_rounds is 0: choose at least 1"),
        ({"max_cohort": 0}, "max_cohort is 0: choose at least 1"),
        ({"dimension": 0}, "dimension is 0: choose at least 1"),
        ({"max_rounds": 5}, "max_rounds is 5: choose at least min_rounds, 10"),
        ({"max_device_rounds": 0.0}, "max_device_rounds is 0.0: choose it above 0"),
        ({"share": 0.0}, "share is 0.0: choose it above 0"),
        ({"share": math.nan}, "share is nan: choose it above 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0: choose it"),
        ({"samplings": ("shuffle",)}, "'shuffle': choose among everyone"),
        ({"epsilon": 0.0}, "epsilon is 0.0: choose"),
        ({"delta": 1.0}, "delta is 1.0: choose"),
        ({"max_device_rounds": 1e-6}, "max_device_rounds 1e-06: raise a bound"),
    ],
)
def test_what_nothing_can_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        fit_plans(Need(**(BUDGET | change)), 1)


@pytest.mark.parametrize(
    ("unit", "trust", "sampling", "relation"),
    [
        ("user", "central", "everyone", "add_remove"),
        ("user", "central", "poisson", "add_remove"),
        ("user", "central", "fixed_size", "replace_one"),
        ("user", "central", "limited", "zero_out"),
        ("user", "distributed", "poisson", "add_remove"),
        ("user", "local", "everyone", "replace_one"),
        ("interaction", "local", "everyone", "replace_one"),
        ("interaction", "central", "everyone", "replace_one"),
    ],
)
def test_the_relation_is_sound_by_default(unit: Any, trust: Any, sampling: Any, relation: str) -> None:
    assert sound_adjacency(unit, trust, sampling) == relation
