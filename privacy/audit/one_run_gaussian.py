"""One run against a Gaussian trade-off curve (Mahloujifar, Melis and Chaudhuri 2024, arXiv 2410.22235).

Tighter than ``one_run``, because the whole curve is held against the guesses and not one point of it. Their
algorithm 3: let T of r guesses be right, of m canaries, and write ::

    R(c) = E[T; T >= c] / m,    H(c) = E[r - T; T >= c] / m

Flipping the coin of a canary that is guessed right makes it guessed wrong, and f-DP bounds one by the other:
H(c - 1) >= fbarInv(R(c)), where fbar = 1 - f, which for mu is fbarInv(x) = Phi(PhiInv(x) - mu). If
P[T >= v] were alpha, then R(v) >= alpha v / m; walking down to 0 with the least H that is allowed must not
end above R(0) + H(0) = r / m, or that probability is below alpha and mu is refuted.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num
from scipy.special import ndtr, ndtri

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit.guessing import Game, Rule, play
from fedrecall.privacy.audit.result import AuditResult, check_levels
from fedrecall.protocol.plan import Adjacency

_PRECISION = 1e-7


def one_run_gaussian_bound(
    scores: Num[np.ndarray, " canaries"],
    included: Bool[np.ndarray, " canaries"],
    *,
    rules: Sequence[Rule],
    delta: float,
    relation: Adjacency,
    alpha: float = 0.05,
) -> AuditResult:
    """Return a lower bound of mu from one run's canaries, and the epsilon of that Gaussian at ``delta`` above 0.

    The arguments and errors are those of ``one_run_bound``. It refutes a Gaussian claim; it is not a
    model-free epsilon.
    """
    check_levels(alpha, delta, zero_delta=False)
    level, best = alpha / len(rules) if rules else alpha, 0.0
    for game in play(scores, included, rules):
        best = max(best, _largest(game, level, best))
    return AuditResult(
        method=f"one run, f-DP (Mahloujifar and others 2024), {len(rules)} rule(s) fixed beforehand",
        kind="bound",
        epsilon=gaussian_epsilon(best, delta),
        delta=delta,
        mu=best,
        confidence=1 - alpha,
        relation=relation,
        trials=len(scores),
        assumes="each canary in by an independent fair coin, a Gaussian trade-off curve",
    )


def refutes_mu(game: Game, mu: float, alpha: float) -> bool:
    """Say whether a mu-Gaussian release lets so many guesses be right with a probability below ``alpha`` only."""
    right = alpha * game.correct / game.canaries
    wrong = alpha * (game.guesses - game.correct) / game.canaries
    whole = game.guesses / game.canaries
    for count in range(game.correct - 1, -1, -1):
        least = float(ndtr(ndtri(right) - mu))
        if least <= wrong:
            # Nothing changes from here on down.
            break
        right += count / (game.guesses - count) * (least - wrong)
        wrong = least
        if right + wrong > whole:
            return True
    return right + wrong > whole


def _largest(game: Game, level: float, start: float) -> float:
    """Return the largest mu above ``start`` that the game refutes at ``level``, or ``start``."""
    if not refutes_mu(game, start, level):
        return start
    low, high = start, start + 1.0
    while refutes_mu(game, high, level):
        low, high = high, 2 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refutes_mu(game, middle, level) else (low, middle)
    return low
