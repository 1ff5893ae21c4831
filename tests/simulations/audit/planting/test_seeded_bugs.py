"""The seeded-bug suite, reduced: a bug of each check and world against that check, and clean audits of two kinds.

``make audit`` runs it in full: every check on every bug, and 100 clean runs.
"""

from pathlib import Path
from typing import Any

import pytest

from fedrecall.simulations.audit.checks.all import CHECKS, check_world
from fedrecall.simulations.audit.planting.seeded_bugs import BUGS, SeededBug, world_of
from fedrecall.simulations.audit.planting.subjects import CANARIES, subject
from fedrecall.simulations.audit.planting.suite import Caught, Clean, as_text, audit_bug, passed
from fedrecall.simulations.audit.watching.trial import DECISIONS, FAMILY, LEVEL, Trial

MADE_BY = {
    "noise: popularity": "noise on zero signal",
    "noise: updates": "noise on zero signal",
    "noise: rounds": "noise on zero signal",
    "noise: in the run": "noise in the run",
    "noise: all together": "noise all together",
    "noise: at length": "noise at length",
    "noise: of deployments": "noise of deployments",
    "sensitivity": "sensitivity",
    "sensitivity: released": "sensitivity of releases",
    "sensitivity: count": "sensitivity of the count",
    "adaptive clip": "adaptive clip",
    "released: rounds": "released: rounds",
    "released: files": "released: files",
    "sensitivity: popularity": "sensitivity of the start",
    "sensitivity: second_moments": "sensitivity of the start",
    "stateless": "stateless",
    "sampler": "sampler",
    "wire: names": "wire: names",
    "void rounds": "void rounds",
    "ledger: before release": "ledger",
    "start: from releases": "start: from releases",
    "claims: epsilon": "claims",
}
"""Which check makes which attempt."""

LISTED = (
    "no noise",
    "noise divided by n twice",
    "clip after the sum",
    "the same noise every round",
    "noise on touched rows only",
    "a noised share clipped again",
    "an un-noised metric beside the update",
    "shuffling",
    "fixed cohort",
    "the user tower in the payload",
    "2C accounted as C",
    "noise not sized for dropout",
    "a noiseless tower under unit interaction",
    "ledger charged after release",
    "a private popularity used as public",
    "noise copies the other half",
    "one noise for two mechanisms",
    "uses an earlier mechanism's noise again",
    "signal without noise added after the optimiser",
    "signal without noise added to the average",
    "files that hold other weights",
    "the most active device counted twice from round 1 on",
    "a clip that follows the exact count",
    "second moments beyond their bound, of more than 101 events",
    "popularity counted twice, of more events than the catalogue",
    "noise cut at 3.5 deviations",
    "noise beyond four deviations drawn again",
    "in a later round",
    "from a later round on",
)


def one_of_each_check() -> list[Any]:
    """All bugs; those whose check has seen one already are planted by `make audit` and `make test-all` alone."""
    seen: set[tuple[str, str]] = set()
    found = []
    for bug in BUGS:
        key = bug.caught_by[0], bug.subject
        found.append(pytest.param(bug, marks=[pytest.mark.slow] if key in seen else []))
        seen.add(key)
    return found


@pytest.mark.parametrize("bug", one_of_each_check(), ids=lambda bug: bug.name)
def test_the_check_that_is_named_first_sees_the_bug(bug: SeededBug, tmp_path: Path) -> None:
    first = bug.caught_by[0]
    with bug.plant():
        trial = Trial(world_of(bug, 0), tmp_path, 0, CANARIES[bug.subject])
        found = {a.name: a for a in CHECKS[MADE_BY[first]](trial)}
    assert found[first].verdict == "broken"


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("central", 0),
        pytest.param("sampled", 2, marks=pytest.mark.slow),
        pytest.param("limited", 3, marks=pytest.mark.slow),
        ("local", 4),
        pytest.param("adaptive", 5, marks=pytest.mark.slow),
    ],
)
def test_clean_runs_raise_no_alarm(kind: str, seed: int, tmp_path: Path) -> None:
    found = check_world(Trial(subject(kind, seed), tmp_path, seed, CANARIES[kind]))
    assert [a.name for a in found if a.verdict not in ("held", "shows")] == []
    assert len({a.name for a in found}) == len(found)
    decisions = sum(max(1, len(a.detail.get("p", {}))) for a in found)
    assert decisions <= DECISIONS and LEVEL * decisions <= FAMILY


def test_every_bug_of_the_list_is_planted() -> None:
    planted = " | ".join(bug.name for bug in BUGS)
    assert [name for name in LISTED if name not in planted] == []
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_leaves_nothing_behind() -> None:
    from fedrecall.server.training import rounds

    before = rounds.gaussian_sum
    with BUGS[0].plant():
        assert rounds.gaussian_sum is not before
    assert rounds.gaussian_sum is before


def test_the_suite_counts_what_got_through() -> None:
    seen = Caught(bug="a", subject="central", by=("x",), confidence=None, canaries=1, seconds=0.0)
    missed = Caught(bug="b", subject="central", by=(), confidence=None, canaries=1, seconds=0.0)
    quiet = Clean(subject="central", seed=0, alarms=(), seconds=0.0)
    false = Clean(subject="central", seed=1, alarms=("x",), seconds=0.0)
    text = as_text([seen, missed], [quiet, false])
    assert text.splitlines()[-1] == "seeded bugs caught 1 of 2, false alarms 1 of 2"
    assert "MISSED" in text and "FALSE ALARM in central, seed 1: x" in text
    assert passed([seen], [quiet]) and not passed([seen, missed], [quiet]) and not passed([seen], [false])


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_see_it_too(bug: SeededBug, seed: int) -> None:
    assert audit_bug(bug, seed).by
