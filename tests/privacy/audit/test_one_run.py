import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom, norm

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import one_run_bound, one_run_gaussian_bound, one_run_p_value
from fedrecall.privacy.audit.guessing import Game, play
from fedrecall.privacy.audit.one_run_gaussian import refutes_mu
from fedrecall.protocol.errors import ScoreError, UsageError

from .scores import hull_rules, one_run_scores, quantiles

BOUNDS = {"one run": one_run_bound, "f-DP": one_run_gaussian_bound}


@pytest.mark.parametrize(("guesses", "expected"), [(100, 3.465), (1000, 5.782)])
def test_the_published_figures_of_perfect_guesses(guesses: int, expected: float) -> None:
    scores = np.arange(1000.0)
    rule = (guesses // 2, guesses // 2)
    result = one_run_bound(scores, scores >= 500, rules=[rule], delta=1e-5, relation="add_remove")
    assert result.epsilon == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("shift", "corners", "one_run", "f_dp"),
    [(1, 386, 1.1335, 2.1647), (2, 374, 2.3119, 4.7218), (4, 140, 4.3956, 9.1338)],
)
def test_golden_values_of_normal_scores(shift: float, corners: int, one_run: float, f_dp: float) -> None:
    sides = quantiles(shift, 10_000)
    rules = hull_rules(sides)
    assert len(rules) == corners
    for bound, expected in ((one_run_bound, one_run), (one_run_gaussian_bound, f_dp)):
        result = bound(*one_run_scores(sides), rules=rules, delta=1e-6, relation="add_remove")
        assert result.epsilon == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(("correct", "guesses", "canaries"), [(0, 4, 9), (3, 4, 4), (60, 80, 300), (90, 90, 90)])
def test_the_p_value_is_the_sum_of_the_paper(
    epsilon: float, delta: float, correct: int, guesses: int, canaries: int
) -> None:
    chances = binom.pmf(np.arange(guesses + 1), guesses, 1 / (1 + np.exp(-epsilon)))
    nearest = max((sum(chances[correct - i : correct]) / i for i in range(1, correct + 1)), default=0.0)
    expected = min(1.0, sum(chances[correct:]) + 2 * canaries * delta * nearest)
    found = one_run_p_value(correct=correct, guesses=guesses, canaries=canaries, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("wrong", [(5, 4, 9), (3, 10, 9), (-1, 4, 9)])
def test_impossible_counts_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="guesses right"):
        one_run_p_value(correct=wrong[0], guesses=wrong[1], canaries=wrong[2], epsilon=1.0, delta=0.0)


def largest_chance(mu: float, correct: int, guesses: int, canaries: int) -> float:
    """Return the largest P[T >= correct] that f-DP allows, by a linear programme over the distribution of T.

    Its constraints are tangents of fbarInv, which lies above each of them: 300 of them come close to the curve.
    """
    counts = np.arange(guesses + 1)
    at = ndtr(np.linspace(-6, 6, 300))
    slope = norm.pdf(ndtri(at) - mu) / norm.pdf(ndtri(at))
    offset = ndtr(ndtri(at) - mu) - slope * at
    rows, limits = [], []
    for c in range(1, guesses + 1):
        right = np.where(counts >= c, counts, 0) / canaries
        wrong = np.where(counts >= c - 1, guesses - counts, 0) / canaries
        rows.append(slope[:, None] * right - wrong)
        limits.append(-offset)
    solved = linprog(
        -(counts >= correct).astype(float),
        A_ub=np.vstack(rows),
        b_ub=np.concatenate(limits),
        A_eq=np.ones((1, guesses + 1)),
        b_eq=[1.0],
    )
    assert solved.status == 0
    return -float(solved.fun)


@pytest.mark.parametrize(
    ("mu", "correct", "guesses", "canaries"), [(0.5, 8, 10, 10), (1.0, 18, 20, 60), (0.3, 9, 9, 30)]
)
def test_a_mu_is_refuted_exactly_when_no_allowed_distribution_reaches_alpha(
    mu: float, correct: int, guesses: int, canaries: int
) -> None:
    chance = largest_chance(mu, correct, guesses, canaries)
    game = Game(canaries=canaries, guesses=guesses, correct=correct)
    assert 0.001 < chance < 0.9
    assert refutes_mu(game, mu, chance * 1.02)
    assert not refutes_mu(game, mu, chance * 0.98)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_what_the_true_epsilon_gives_is_near_and_below(bound: object) -> None:
    """Power at mu 1, delta 1e-5 (epsilon 4.377), 5,000 and 5,000, one rule: PRIVACY asks for 1.1 and 2.2."""
    scores, included = one_run_scores(quantiles(1.0, 5000))
    least = {one_run_bound: 1.85, one_run_gaussian_bound: 2.6}[bound]
    result = bound(scores, included, rules=[(300, 300)], delta=1e-5, relation="add_remove")
    assert least < result.epsilon < gaussian_epsilon(1.0, 1e-5)


def test_every_rule_more_costs_confidence() -> None:
    scores, included = one_run_scores(quantiles(1.0, 1000))
    for bound in BOUNDS.values():
        one, ten = (
            bound(scores, included, rules=[(100, 0)] * n, delta=1e-5, relation="add_remove").epsilon for n in (1, 10)
        )
        assert 0 < ten < one


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("members_first", [True, False])
def test_equal_scores_are_no_evidence_however_the_canaries_are_listed(bound: object, members_first: bool) -> None:
    included = np.repeat([members_first, not members_first], 500)
    for rule in ((100, 0), (0, 100), (50, 50)):
        result = bound(np.zeros(1000), included, rules=[rule], delta=1e-5, relation="add_remove")
        assert result.epsilon == 0.0


def test_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([3.0, 2.0, 2.0, 1.0, 0.0])
    included = np.array([True, True, False, False, True])
    found = {(g.guesses, g.correct) for g in play(scores, included, [(1, 0), (2, 0), (3, 1), (0, 3)])}
    assert found == {(1, 1), (2, 1), (4, 2), (3, 1)}
    assert play(scores, included, [(2, 0), (1, 0)])[0].guesses == 1


@pytest.mark.parametrize("rules", [[], [(0, 0)], [(3, 3)], [(-1, 2)]])
def test_rules_that_cannot_be_played_are_refused(rules: list[tuple[int, int]]) -> None:
    for bound in BOUNDS.values():
        with pytest.raises(UsageError, match="rule"):
            bound(np.arange(5.0), np.arange(5) > 2, rules=rules, delta=1e-5, relation="add_remove")


@pytest.mark.parametrize("included", [np.ones(5), np.ones(4, dtype=bool)])
def test_coins_that_do_not_fit_are_refused(included: np.ndarray) -> None:
    with pytest.raises(ScoreError, match="included is"):
        one_run_bound(np.arange(5.0), included, rules=[(1, 0)], delta=1e-5, relation="add_remove")


def test_a_randomised_response_is_bounded_near_its_epsilon() -> None:
    """Each coin is told with probability e^2 / (1 + e^2), so epsilon is 2 exactly; over 200 runs 95 % stay below."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(200):
        included = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < expit(2.0), included, ~included)
        scores = told + 1e-6 * rng.random(1000)
        found.append(one_run_bound(scores, included, rules=[(300, 300)], delta=0.0, relation="add_remove").epsilon)
    assert np.mean(np.array(found) > 2.0) <= 0.085
    assert 1.6 < np.median(found) < 2.0
