"""The auditors do not cry wolf: on scores that hold nothing, and on scores of a known mu."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import (
    AuditResult,
    clopper_pearson_bound,
    clopper_pearson_split_bound,
    gaussian_bound,
    gaussian_split_bound,
    one_run_bound,
    one_run_gaussian_bound,
    white_box_bound,
)

from .scores import Sides, one_run_scores

Audit = Callable[[Sides, np.random.Generator, float], AuditResult]
RELATION = "add_remove"
GRID = [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
RULES = [(50, 50), (100, 0), (200, 200)]
AUDITS: dict[str, Audit] = {
    "clopper-pearson": lambda s, rng, d: clopper_pearson_bound(*s, thresholds=GRID, delta=d, relation=RELATION),
    "clopper-pearson, one": lambda s, rng, d: clopper_pearson_bound(*s, thresholds=[1.0], delta=d, relation=RELATION),
    "clopper-pearson, split": lambda s, rng, d: clopper_pearson_split_bound(*s, rng=rng, delta=d, relation=RELATION),
    "gaussian": lambda s, rng, d: gaussian_bound(*s, thresholds=GRID, delta=d, relation=RELATION),
    "gaussian, one": lambda s, rng, d: gaussian_bound(*s, thresholds=[0.5], delta=d, relation=RELATION),
    "gaussian, split": lambda s, rng, d: gaussian_split_bound(*s, rng=rng, delta=d, relation=RELATION),
    "one run": lambda s, rng, d: one_run_bound(*one_run_scores(s), rules=RULES, delta=d, relation=RELATION),
    "f-DP": lambda s, rng, d: one_run_gaussian_bound(*one_run_scores(s), rules=RULES, delta=d, relation=RELATION),
    "white box": lambda s, rng, d: white_box_bound(*s, releases=1, delta=d, relation=RELATION),
}


def alarms(audit: Audit, shift: float, delta: float, runs: int) -> float:
    """Return the share of runs whose bound exceeds the truth: 500 canaries or so a side, each in by a fair coin."""
    rng = np.random.default_rng(7)
    truth = gaussian_epsilon(shift, delta) if shift else 0.0
    above = 0
    for _ in range(runs):
        inside = int(rng.binomial(1000, 0.5))
        sides = rng.standard_normal(inside) + shift, rng.standard_normal(1000 - inside)
        above += audit(sides, rng, delta).epsilon > truth + 1e-9
    return above / runs


@pytest.mark.parametrize("name", AUDITS)
@pytest.mark.parametrize(("shift", "delta"), [(0.0, 1e-5), (1.0, 0.1)])
def test_a_bound_is_too_high_at_most_as_often_as_it_says(name: str, shift: float, delta: float) -> None:
    """Of 200 runs at most 9 %: an auditor that is wrong 15 % of the time fails with probability 0.99."""
    assert alarms(AUDITS[name], shift, delta, 200) <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDITS)
@pytest.mark.parametrize(("shift", "delta"), [(0.0, 1e-5), (1.0, 1e-5), (1.0, 0.1)])
def test_over_a_thousand_runs_at_most_seven_percent_cry_wolf(name: str, shift: float, delta: float) -> None:
    """An auditor that is wrong 10 % of the time fails with probability 0.999."""
    assert alarms(AUDITS[name], shift, delta, 1000) <= 0.07


def test_the_check_catches_an_auditor_that_takes_the_best_rates_at_their_word() -> None:
    def believes(sides: Sides, rng: np.random.Generator, delta: float) -> AuditResult:
        cuts = np.quantile(np.concatenate(sides), np.linspace(0.05, 0.95, 19))
        ratios = [np.mean(sides[0] >= cut) / np.mean(sides[1] >= cut) for cut in cuts]
        return replace(AUDITS["white box"](sides, rng, delta), epsilon=max(0.0, float(np.log(max(ratios)))))

    assert alarms(believes, 0.0, 1e-5, 100) > 0.9


def test_the_check_catches_a_game_that_is_scored_at_alpha_for_every_number_of_guesses() -> None:
    def greedy(sides: Sides, rng: np.random.Generator, delta: float) -> AuditResult:
        scores, included = one_run_scores(sides)
        each = [
            one_run_bound(scores, included, rules=[(r, 0)], delta=0.0, relation=RELATION) for r in range(5, 505, 10)
        ]
        return max(each, key=lambda result: result.epsilon)

    assert alarms(greedy, 0.0, 1e-5, 100) > 0.15
