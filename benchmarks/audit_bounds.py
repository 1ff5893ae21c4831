"""Our lower bounds of epsilon beside an independent implementation, on random score sets and on null ones.

    python benchmarks/audit_bounds.py FOLDER [--sets 200] [--nulls 1000]

FOLDER is a checkout of github.com/google-deepmind/jax_privacy (Apache 2.0); of it only ``auditing.py`` is loaded, and
nothing of it is copied. First table: both are asked the same question, the threshold fixed beforehand. Second table:
how often each of its ways to choose a threshold, and ours, find a leak at alpha 0.05 in scores that hold none.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
from scipy.optimize import brentq

from fedrecall.privacy.audit import (
    clopper_pearson_bound,
    clopper_pearson_split_bound,
    gaussian_bound,
    gaussian_split_bound,
    one_run_bound,
    one_run_gaussian_bound,
)

Sides = tuple[np.ndarray, np.ndarray]
Bound = Callable[[Sides], float]
ALPHA, DELTA = 0.05, 1e-5
NULL = 100
"""Scores a side of a null set."""

CLAIM: Any = {"delta": DELTA, "relation": "add_remove", "alpha": ALPHA}
RULES = [(NULL // 4, NULL // 4), (NULL // 10, NULL // 10), (NULL // 10, 0)]
"""Fixed beforehand: how many are guessed to be in, and to be out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--nulls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    theirs = loaded(given.folder)
    rng = np.random.default_rng(given.seed)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.sets):
        for name, pair in asked_alike(theirs, rng).items():
            found.setdefault(name, []).append(pair)
    print("| bound | sets | both above 0 | largest difference |\n|---|---|---|---|")
    for name, pairs in found.items():
        mine, other = np.array(pairs).T
        above = int(np.sum((mine > 0) & (other > 0)))
        print(f"| {name} | {len(pairs)} | {above} | {np.abs(mine - other).max():.1e} |")
    print(f"\n| at alpha {ALPHA}, threshold | alarms in {given.nulls} null sets |\n|---|---|")
    nulls = [(rng.standard_normal(NULL), rng.standard_normal(NULL)) for _ in range(given.nulls)]
    for name, bound in choosers(theirs, rng).items():
        print(f"| {name} | {np.mean([bound(sides) > 0 for sides in nulls]):.1%} |", flush=True)


def loaded(folder: Path) -> ModuleType:
    """Return ``auditing.py`` of the checkout, without the rest of its package."""
    spec = importlib.util.spec_from_file_location("auditing", folder / "jax_privacy" / "auditing.py")
    if spec is None or spec.loader is None:
        sys.exit(f"{folder} is no checkout of jax_privacy: it has no jax_privacy/auditing.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up by the name of their module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # It finds its roots to 1e-6: finer, so that a difference is one of the bounds.
    fine = SimpleNamespace(brentq=lambda f, low, high, xtol: brentq(f, low, high, xtol=1e-12))
    vars(module)["scipy"] = SimpleNamespace(optimize=fine, special=scipy.special, stats=scipy.stats)
    return module


def drawn(rng: np.random.Generator) -> Sides:
    """Return scores of 20 to 2,000 trials a side, near or far apart, some rounded so that many are equal."""
    sizes = rng.integers(20, 2000, 2)
    present, absent = rng.normal(rng.uniform(0, 5), rng.uniform(0.5, 2), sizes[0]), rng.standard_normal(sizes[1])
    if rng.random() < 0.3:
        present, absent = present.round(1), absent.round(1)
    return present, absent


def asked_alike(theirs: ModuleType, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return (ours, theirs) of every bound, on one random set, delta, level and threshold."""
    present, absent = drawn(rng)
    delta, alpha = float(10 ** rng.uniform(-7, -2)), float(rng.choice([0.001, 0.01, 0.05, 0.2]))
    cut = float(rng.choice(np.concatenate([present, absent])))
    auditor = theirs.CanaryScoreAuditor(present, absent)
    fixed = theirs.Explicit(cut)
    scores, coins = game((present, absent))
    rules = [(int(np.sum(scores >= cut)), 0)]
    hull = [float(threshold) for threshold in auditor._thresholds]
    return {
        "Clopper-Pearson": (
            clopper_pearson_bound(
                present, absent, thresholds=[cut], delta=delta, relation="add_remove", alpha=alpha
            ).epsilon,
            auditor.epsilon_clopper_pearson(alpha, delta, one_sided=False, threshold_strategy=fixed),
        ),
        "one run": (
            one_run_bound(scores, coins, rules=rules, delta=delta, relation="add_remove", alpha=alpha).epsilon,
            auditor.epsilon_one_run(alpha, delta, threshold_strategy=fixed),
        ),
        "one run, f-DP": (
            one_run_gaussian_bound(scores, coins, rules=rules, delta=delta, relation="add_remove", alpha=alpha).epsilon,
            auditor.epsilon_one_run_fdp(alpha, delta, threshold_strategy=fixed),
        ),
        "Gaussian mu, as epsilon, their thresholds": (
            gaussian_bound(present, absent, thresholds=hull, delta=delta, relation="add_remove", alpha=alpha).epsilon,
            auditor.epsilon_from_gdp(alpha, delta),
        ),
    }


def choosers(theirs: ModuleType, rng: np.random.Generator) -> dict[str, Bound]:
    """Return every way to choose a threshold, theirs and ours, as a bound of scores."""
    strategies = {"Bonferroni": theirs.Bonferroni(), "split": theirs.Split(seed=0)}
    found: dict[str, Bound] = {
        f"theirs, {name}: {what}": partial(their_bound, theirs, f"epsilon_{what}", strategy)
        for what in ("clopper_pearson", "one_run", "one_run_fdp")
        for name, strategy in strategies.items()
    }
    found["theirs, corners of the curve: gdp"] = lambda sides: float(
        theirs.CanaryScoreAuditor(*sides).epsilon_from_gdp(ALPHA, DELTA)
    )
    found["ours, split: Clopper-Pearson"] = lambda sides: clopper_pearson_split_bound(*sides, rng=rng, **CLAIM).epsilon
    found["ours, split: Gaussian mu"] = lambda sides: gaussian_split_bound(*sides, rng=rng, **CLAIM).epsilon
    found["ours, three rules: one run"] = lambda sides: one_run_bound(*game(sides), rules=RULES, **CLAIM).epsilon
    found["ours, three rules: one run, f-DP"] = lambda sides: (
        one_run_gaussian_bound(*game(sides), rules=RULES, **CLAIM).epsilon
    )
    return found


def their_bound(theirs: ModuleType, method: str, strategy: Any, sides: Sides) -> float:
    more = {"one_sided": False} if method == "epsilon_clopper_pearson" else {}
    return float(getattr(theirs.CanaryScoreAuditor(*sides), method)(ALPHA, DELTA, threshold_strategy=strategy, **more))


def game(sides: Sides) -> Sides:
    """Return (scores, coins) of a one-run audit with the canaries of both sides."""
    return np.concatenate(sides), np.repeat([True, False], [len(side) for side in sides])


if __name__ == "__main__":
    main()
