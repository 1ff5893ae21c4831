"""White-box attempts: released sums against canaries whose contribution the auditor knows exactly."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import norm

from fedrecall.client.training.start import popularity, popularity_sum, second_moments
from fedrecall.privacy.accounting.composition import total_sensitivity
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit import AuditResult, membership_scores, one_run_bound, white_box_bound
from fedrecall.protocol.plan import Adjacency, Mechanism
from fedrecall.protocol.records import Comparison
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.draws import round_stds, whitened
from fedrecall.simulations.audit.watching.trial import FAMILY, LEVEL, Trial, accounted

SHOWN = 0.05
"""1 - confidence of the bounds that are shown; a claim is broken only at ``LEVEL``."""

Pair = tuple[np.ndarray, np.ndarray]


def rounds(trial: Trial) -> list[Attempt]:
    """Project what rounds released on gradient canaries."""
    mechanism = trial.rounds
    if not mechanism.steps or not mechanism.noise_multiplier or trial.plan.trust != "central":
        return []
    began, canaries = time.perf_counter(), trial.enrolled[1]
    projections, took_part = _projections(trial)
    inside = np.broadcast_to(canaries.coins, projections.shape)
    if mechanism.bands > 1:
        # Whitened, a canary shows in all rounds after one of its own: one score for all of them, in clips.
        pattern = whitened(trial, trial.watched, took_part.astype(np.float64))
        norms = np.linalg.norm(pattern, axis=0)
        scores = np.sum(pattern * projections, axis=0) / np.maximum(norms, 1e-12) ** 2
        known = norms > 0
        present, absent = scores[known & canaries.coins], scores[known & ~canaries.coins]
        releases, claimed_mu = 1, total_sensitivity(mechanism) / mechanism.sum_noise_multiplier
    else:
        present, absent = projections[took_part & inside], projections[took_part & ~inside]
        releases, claimed_mu = mechanism.steps, math.sqrt(mechanism.steps) / mechanism.sum_noise_multiplier
    found = [_judged(trial, "white box: rounds", began, mechanism, (present, absent), releases, claimed_mu)]
    if mechanism.bands == 1:
        rate, began = mechanism.sample_rate, time.perf_counter()
        scores = membership_scores(projections, noise_multiplier=mechanism.sum_noise_multiplier, sample_rate=rate)
        found.append(_one_run(trial, began, scores, canaries.coins))
    return found


def start(trial: Trial) -> list[Attempt]:
    """Project the private start's releases on the histories of canary devices."""
    found: list[Attempt] = []
    if not trial.watched.start or not any(m.noise_multiplier for m in trial.plan.mechanisms[:-1]):
        return found
    seen, canaries = trial.watched.start, trial.enrolled[1]
    for mechanism in (m for m in trial.plan.mechanisms if m.name in ("popularity", "second_moments") and m.steps):
        began = time.perf_counter()
        others = trial.world.store
        if mechanism.name == "popularity":
            known = popularity_sum(others, trial.plan.unit).arrays["popularity"]
            rest = np.asarray(seen["popularity"]) - known
            projections = np.array([rest @ popularity(own, len(rest)) for own in canaries.items])
            usable = np.ones(len(projections), dtype=bool)
        else:
            if seen["moments"] is None:
                continue
            comparison: Comparison = seen["comparison"]
            rest = np.asarray(seen["moments"]) - trial.others_moments
            # What a canary would have sent is worked out for those that stayed out as well.
            would = (second_moments(own.astype(np.int32), comparison) for own in canaries.items)
            pairs = [(float(np.sum(rest * one)), float(np.sum(one * one))) for one in would]
            usable = np.array([square > 0.5 for _, square in pairs])
            projections = np.array([product for product, _ in pairs])
        present = projections[usable & canaries.coins]
        absent = projections[usable & ~canaries.coins]
        if min(len(present), len(absent)) < 2:
            continue
        claimed = 1 / mechanism.noise_multiplier if mechanism.noise_multiplier else math.inf
        name = f"white box: {mechanism.name}"
        found.append(_judged(trial, name, began, mechanism, (present, absent), 1, claimed))
    return found


def scored(shown: AuditResult, claimed: float | None) -> dict[str, Any]:
    """Return what an attempt says of a lower bound at level ``SHOWN``, beside the claim."""
    return {
        "score": shown.epsilon,
        "metric": "epsilon",
        "chance": 0.0,
        "confidence": 1 - SHOWN,
        "claimed_epsilon": claimed,
        "empirical_epsilon": shown.epsilon,
    }


def power(
    present: int, absent: int, releases: int, claimed_mu: float, delta: float, level: float, reach: float = 1.0
) -> str:
    """Say how large a leak would be seen with probability one half: where the statistic's mean meets the level.

    Canaries that make a share ``reach`` of the largest contribution see a leak that is as many times larger.
    """
    slack = float(norm.isf(level)) * math.sqrt(1 / present + 1 / absent) * math.sqrt(releases)
    seen = gaussian_epsilon((claimed_mu + slack) / reach, delta)
    return (
        f"an epsilon of {seen:.2f} or more, every second time; the claim is {gaussian_epsilon(claimed_mu, delta):.2f}"
    )


def _projections(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Return [rounds, canaries] projections in clips without the other devices' part, and who was asked when."""
    seen, canaries = trial.watched, trial.enrolled[1]
    directions = seen.directions or canaries.directions(sum(seen.sizes.values()))
    rest = whitened(trial, seen, np.array([r.released - r.collected for r in seen.rounds]))
    projections = np.array([directions.project(row) for row in rest])
    clips = round_stds(trial, seen) / trial.rounds.sum_noise_multiplier
    took_part = np.array([np.isin(canaries.devices, r.cohort) for r in seen.rounds])
    return projections / clips[:, None], took_part


def _judged(
    trial: Trial, name: str, began: float, mechanism: Mechanism, scores: Pair, releases: int, claimed_mu: float
) -> Attempt:
    present, absent = scores
    relation: Adjacency = mechanism.adjacency
    delta = trial.plan.delta
    shown, decided = (
        white_box_bound(present, absent, releases=releases, delta=delta, relation=relation, alpha=alpha)
        for alpha in (SHOWN, LEVEL)
    )
    claimed = gaussian_epsilon(claimed_mu, delta)
    broken = (decided.mu or 0.0) > claimed_mu
    return trial.attempt(
        name,
        began,
        adversary="network",
        what="Devices with a contribution of the largest size that is allowed were enrolled, each taking part by a "
        "fair coin, and what was released was compared with it, everything else known. Score: a lower bound of "
        f"the epsilon of {mechanism.name} alone, who takes part being known.",
        **scored(shown, claimed),
        power=power(len(present), len(absent), releases, claimed_mu, delta, LEVEL),
        verdict="broken" if broken else "held",
        trials=len(present) + len(absent),
        detail={"mu": shown.mu, "claimed_mu": claimed_mu, "mu_at_level": decided.mu, "level": LEVEL},
    )


def _one_run(trial: Trial, began: float, scores: np.ndarray, coins: np.ndarray) -> Attempt:
    """Bound the epsilon of the whole run from one run, whatever its noise is."""
    half = max(1, len(coins) // 4)
    rules = [(half, half), (max(1, half // 4), max(1, half // 4))]
    claimed, delta = _claimed_of_rounds_made(trial), trial.plan.delta
    results: list[AuditResult] = [
        one_run_bound(scores, coins, rules=rules, delta=delta, relation="add_remove", alpha=alpha)
        for alpha in (SHOWN, LEVEL)
    ]
    shown, decided = results
    broken = claimed is not None and decided.epsilon > claimed
    best, best_at_level = (
        one_run_bound(np.where(coins, 1.0, 0.0), coins, rules=rules, delta=delta, relation="add_remove", alpha=alpha)
        for alpha in (SHOWN, LEVEL)
    )
    # Where not even perfect guesses would refute the claim at the level, a failure to refute it is no evidence.
    decides = claimed is not None and best_at_level.epsilon > claimed
    return trial.attempt(
        "one run: rounds",
        began,
        adversary="released-model",
        what="The same canaries, judged without any assumption on the noise and without knowing the cohorts: of how "
        "many can one tell whether they took part? Score: a lower bound of the epsilon of the whole run.",
        **scored(shown, claimed),
        power=f"an epsilon of {best.epsilon:.2f} at most, were all guesses right: {len(coins)} canaries tell no larger "
        f"one{'' if decides else ', and none at the level of this audit, so that this decides nothing'}",
        verdict="broken" if broken else ("held" if decides else "shows"),
        trials=len(coins),
        detail={"at_level": decided.epsilon, "level": LEVEL, "family": FAMILY},
    )


def _claimed_of_rounds_made(trial: Trial) -> float | None:
    """Return the epsilon that the plan would claim, had it the rounds that were made and no others."""
    fewer = replace(trial.rounds, steps=len(trial.visited))
    mechanisms = tuple(fewer if m.name == fewer.name else m for m in trial.plan.mechanisms)
    rows = accounted(replace(trial.plan, mechanisms=mechanisms))
    return {row.name: row.epsilon for row in rows}["released-model"]
