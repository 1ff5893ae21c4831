"""Trainings of some of a plan's rounds, noise at length, counts behind clips, and the histories that are probed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.privacy.mechanisms.correlated import CorrelatedNoise, coefficients
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Plan
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.at_length import at_length, counts_drawn
from fedrecall.simulations.audit.watching.draws import whitened
from fedrecall.simulations.audit.watching.histories import probes
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Round, Watched, watch
from fedrecall.simulations.training.world import World


def with_rounds(world: World, **fields: object) -> World:
    rounds = replace(world.plan.mechanism("rounds"), **fields)
    return replace(world, plan=replace(world.plan, mechanisms=(*world.plan.mechanisms[:-1], rounds)))


def test_rounds_are_drawn_from_the_whole_plan(tmp_path: Path) -> None:
    world = with_rounds(subject("adaptive", 0), steps=1000)
    drawn = [Trial(world, tmp_path, seed, most_rounds=10).visited for seed in range(20)]
    for rounds in drawn:
        assert len(rounds) == 10 and list(rounds) == sorted(set(rounds)) and {0, 1, 999} <= set(rounds)
    assert len({round for rounds in drawn for round in rounds}) > 100
    assert Trial(subject("adaptive", 0), tmp_path, most_rounds=10).visited == tuple(range(6))


def test_rounds_that_are_visited_are_those_of_the_plan(tmp_path: Path) -> None:
    """Round 0 and 1 as in a training of them all; the noise of each is that of its number."""
    world = subject("sampled", 0)
    some, every = (watch(world, tmp_path / str(i), visit=v) for i, v in enumerate(([0, 1, 4, 5], None)))
    assert [r.round for r in some.rounds] == [0, 1, 4, 5] and some.faults == every.faults == []
    for one, other in zip(some.rounds[:2], every.rounds[:2], strict=True):
        np.testing.assert_array_equal(one.released, other.released)
    for one, number in zip(some.rounds[2:], (4, 5), strict=True):
        std = world.plan.mechanism("rounds").noise_multiplier * 0.05
        other = every.rounds[number]
        np.testing.assert_allclose(one.released - one.collected, other.released - other.collected, atol=2e-6 * std)


@pytest.mark.parametrize("rounds", [[0, 1, 2, 3, 4, 5], [0, 1, 5, 6, 11], [2, 9, 10]])
def test_correlated_noise_is_undone_for_any_rounds(rounds: list[int], tmp_path: Path) -> None:
    """4,000 numbers a round: correlations of what is whitened are those of independent draws, below 0.08 (5 sigma)."""
    trial = Trial(with_rounds(subject("limited", 0), bands=5), tmp_path)
    noise = CorrelatedNoise(coefficients(5), 12, lambda round: SeededNoise(1, round))
    sums = np.array([noise.of(round).normal((4000,), 1.0) for round in rounds])
    seen = Watched(world=trial.world, rounds=[blank(round) for round in rounds])
    found = whitened(trial, seen, sums)
    bare, before = np.cov(found), np.corrcoef(sums)
    assert np.abs(bare - np.eye(len(rounds))).max() < 0.08 + 0.06
    assert len(rounds) < 6 or np.abs(before - np.eye(len(rounds))).max() > 0.2
    if rounds == list(range(6)):
        draws = np.array([SeededNoise(1, round).normal((4000,), 1.0) for round in rounds])
        np.testing.assert_allclose(found, draws, atol=1e-10)


def blank(round: int, **fields: object) -> Round:
    empty = np.zeros(0)
    known: dict[str, object] = {"clip_norm": None, "within": None, "next_clip": None} | fields
    return Round(
        round=round,
        cohort=empty,
        devices=0,
        names=frozenset(),
        collected=empty,
        updates=None,
        released=empty,
        **known,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("within", [0.0, 30.0, -48.0, 48.0])
def test_counts_are_read_back_from_clips_also_where_shares_are_cut(within: float, tmp_path: Path) -> None:
    """2,000 counts, some or half of them cut to a share of 0 or 1: their noise is standard normal all the same."""
    from scipy.stats import kstest

    from fedrecall.privacy.mechanisms.adaptive_clip import next_clip

    trial = Trial(with_rounds(subject("adaptive", 0), noise_multiplier=9.0), tmp_path)
    mechanism, rng = trial.rounds, np.random.default_rng(0)
    assert mechanism.adaptive_clip is not None and mechanism.clip_norm is not None
    std, rounds, drawn = mechanism.count_noise_multiplier / 2, [], rng.standard_normal(2000)
    for round, z in enumerate(drawn):
        after = next_clip(1.0, mechanism.clip_norm, within + std * z, 96.0, mechanism.adaptive_clip)
        rounds.append(blank(round, clip_norm=1.0, within=within, next_clip=after))
    found = counts_drawn(trial, Watched(world=trial.world, rounds=rounds))
    cut = np.abs(within + std * drawn) >= 48.0
    assert len(found) == 2000 and (cut.any() or abs(within) < 48)
    np.testing.assert_allclose(found[~cut], drawn[~cut], atol=1e-6)
    assert kstest(found, "norm").pvalue > 1e-3


def test_noise_at_length_is_as_much_as_its_tails_need(tmp_path: Path) -> None:
    noise, seen = at_length(Trial(subject("central", 0), tmp_path))
    assert set(noise) == {"popularity", "second_moments", "rounds"}
    assert all(draws.values.size >= 1 << 19 for draws in noise.values())
    assert seen is not None and seen.faults == [] and len(seen.rounds) == 128
    other = at_length(Trial(subject("limited", 0), tmp_path / "limited"))[0]
    assert abs(np.corrcoef(other["rounds"].values[3:5])[0, 1]) < 0.08


@pytest.mark.parametrize("kind", ["central", "local"])
def test_histories_of_every_length_are_probed(kind: str, tmp_path: Path) -> None:
    world = subject(kind, 0)
    found = probes(world.store, window=8, rng=np.random.default_rng(0))
    counts, own = found.store.counts()[found.devices], world.store.counts()
    assert counts[0] == own.max() and counts[1] == own[own > 0].min() and found.store.n_users > world.store.n_users
    for length in (0, 1, 2, 8, 9, 101, world.store.n_items, world.store.n_items + 1):
        assert length in counts
    assert counts.max() > 1000 > 3 * world.store.n_items
    distinct = [len(np.unique(found.store.history(int(d)))) for d in found.devices]
    assert any(n == 1 and length > 30 for n, length in zip(distinct, counts, strict=True))
    alone = found.alone()
    for row, device in enumerate(found.devices):
        np.testing.assert_array_equal(alone.history(row), found.store.history(int(device)))
    for device in range(world.store.n_users):
        np.testing.assert_array_equal(found.store.history(device), world.store.history(device))


def test_the_plan_of_longer_noise_is_one_that_can_be_accounted(tmp_path: Path) -> None:
    plan: Plan = subject("limited", 0).plan
    assert plan.mechanism("rounds").steps == 9
    seen = at_length(Trial(subject("limited", 0), tmp_path))[1]
    assert seen is not None and seen.world.plan.mechanism("rounds").steps == 128
