"""The round loop where the clip adapts: noise follows the round's clip, and the clip follows the noised count alone."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.plan import AdaptiveClip, Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.rounds import Environment, ServerState, one_round, start_state
from fedrecall.server.training.sampling import Sampler

NAME, DEVICES, RATE, FIRST, NOW = "item.id.weight", 1000, 0.5, 1.0, 0.25
SETTINGS = AdaptiveClip(quantile=0.5, learning_rate=0.3, share=0.2)
PLAIN = ServerConfig(optimiser="sgd", learning_rate=1.0)
WITHIN = 40.0
"""The count of every round: so many halves more within the clip than not."""


def plan_of(**options: object) -> Plan:
    fields = {"clip_norm": FIRST, "noise_multiplier": 4.0, "steps": 400, "adaptive_clip": SETTINGS}
    sampling = {"sampling": "poisson", "sample_rate": RATE}
    mechanism = Mechanism(name="rounds", **(fields | sampling | options))
    return Plan(unit="user", trust="central", delta=1e-5, devices=DEVICES, mechanisms=(mechanism,))


def environment(plan: Plan, **sums: object) -> Environment:
    def collect(round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None) -> CohortSum:
        assert clip_norm == NOW, "devices clip to this round's"
        silent = {NAME: np.zeros(arrays[NAME].shape), "within_clip": np.asarray(WITHIN)}
        return CohortSum(round=round, devices=len(cohort), arrays={**silent, **sums})

    return Environment(
        collect=collect,
        sampler=Sampler.of(plan.mechanism("rounds"), DEVICES, lambda round: np.random.default_rng([2, round])),
        noise=lambda round: SeededNoise(3, round),
        key=str,
    )


def rounds(plan: Plan, folder: Path, count: int, size: int) -> list[ServerState]:
    """Return the states after single rounds that all start at the clip ``NOW``, which is not the plan's first."""
    start = start_state(PLAIN, {NAME: np.zeros(size)}, (NAME,), NOW)
    ledger = Ledger.create(folder / "ledger.jsonl", plan)
    mechanism, world = plan.mechanism("rounds"), environment(plan)
    states = (replace(start, round=round) for round in range(count))
    return [one_round(state, plan, mechanism, world, config=PLAIN, ledger=ledger) for state in states]


def counts(states: list[ServerState]) -> np.ndarray:
    """Return the counts that moved the clips, from the clips."""
    moves = np.log([state.clip_norm / NOW for state in states])
    return (SETTINGS.quantile - moves / SETTINGS.learning_rate - 0.5) * RATE * DEVICES


def test_the_clip_follows_the_noised_count(tmp_path: Path) -> None:
    """250 counts: sigma to 20 %, 4.5 standard errors; x 3/2 and x 2/3 are off by 33 and 50 %, no noise by all of it."""
    plan = plan_of()
    noise = counts(rounds(plan, tmp_path, 250, 1)) - WITHIN
    planned = plan.mechanism("rounds").count_noise_multiplier * 0.5
    assert noise.std() == pytest.approx(planned, rel=0.2)
    assert stats.kstest(noise / planned, "norm").pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert noise.std() != pytest.approx(planned * wrong, rel=0.2)


def test_noise_of_the_sum_is_that_of_this_rounds_clip(tmp_path: Path) -> None:
    """20,000 values: sigma to 2.2 standard errors; the plan's first clip would be four times as loud."""
    plan = plan_of()
    (state,) = rounds(plan, tmp_path, 1, 20_000)
    planned = plan.mechanism("rounds").sum_noise_multiplier * NOW / (RATE * DEVICES)
    assert state.arrays[NAME].std() == pytest.approx(planned, rel=0.011)


def test_without_noise_the_clip_moves_by_the_share_of_the_expected_cohort(tmp_path: Path) -> None:
    (state,) = rounds(plan_of(noise_multiplier=0.0), tmp_path, 1, 3)
    share = WITHIN / (RATE * DEVICES) + 0.5
    assert state.clip_norm == pytest.approx(NOW * math.exp(-0.3 * (share - 0.5)), rel=1e-12)


def test_a_void_round_leaves_the_clip_where_it_was(tmp_path: Path) -> None:
    """It releases nothing, and the next clip would be a function of what it did not release."""
    plan = plan_of(sampling="everyone", sample_rate=1.0, min_survivors=DEVICES)
    world = environment(plan)
    fewer = replace(world, collect=lambda *asked: replace(world.collect(*asked), devices=DEVICES - 1))
    for collected, moves in ((world, True), (fewer, False)):
        start = start_state(PLAIN, {NAME: np.zeros(3)}, (NAME,), NOW)
        ledger = Ledger.create(tmp_path / f"{moves}.jsonl", plan)
        state = one_round(start, plan, plan.mechanism("rounds"), collected, config=PLAIN, ledger=ledger)
        assert state.round == 1 and (state.clip_norm != NOW) == moves


@pytest.mark.parametrize("count", [-400, 400])
def test_a_count_that_so_many_devices_cannot_make_is_refused(count: int, tmp_path: Path) -> None:
    """About 500 devices take part: 250 is the most that they make."""
    plan = plan_of()
    start = start_state(PLAIN, {NAME: np.zeros(3)}, (NAME,), NOW)
    loud = environment(plan, within_clip=np.asarray(float(count)))
    with pytest.raises(UpdateError, match="make at most half as much"):
        ledger = Ledger.create(tmp_path / "ledger.jsonl", plan)
        one_round(start, plan, plan.mechanism("rounds"), loud, config=PLAIN, ledger=ledger)
