import math

import numpy as np
import pytest
from scipy import stats

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.mechanisms.adaptive_clip import next_clip, noise_adaptively, within_clip
from fedrecall.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedrecall.protocol.plan import AdaptiveClip, Mechanism, Plan

SETTINGS = AdaptiveClip(quantile=0.5, learning_rate=0.2, share=0.1)


def mechanism(sigma: float = 2.0, settings: AdaptiveClip = SETTINGS, **more: object) -> Mechanism:
    fields = {"name": "rounds", "noise_multiplier": sigma, "clip_norm": 1.0, "adaptive_clip": settings}
    return Mechanism(**(fields | more))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_sum_and_count_are_one_gaussian_release_of_the_planned_multiplier(share: float) -> None:
    m = mechanism(settings=AdaptiveClip(share=share))
    together = 1 / m.sum_noise_multiplier**2 + 1 / m.count_noise_multiplier**2
    assert together == pytest.approx(1 / m.noise_multiplier**2, rel=1e-12)
    assert m.count_noise_multiplier == pytest.approx(m.noise_multiplier / math.sqrt(share))


def test_the_count_is_charged_with_the_sum() -> None:
    """A plan whose clip adapts costs what the same plan with a fixed clip costs, because its sum gets more noise."""
    fixed, adaptive = (
        Plan(unit="user", trust="central", delta=1e-5, devices=100, mechanisms=(m,))
        for m in (mechanism(adaptive_clip=None, steps=30), mechanism(steps=30))
    )
    found = [account_adversary(plan, "released-model").epsilon for plan in (fixed, adaptive)]
    assert found[0] == found[1] == pytest.approx(gaussian_epsilon(math.sqrt(30) / 2.0, 1e-5), abs=1e-3)


@pytest.mark.parametrize("source", [SecureNoise(), SeededNoise(3)])
def test_noise_follows_this_rounds_clip_and_the_counts_own_sensitivity(source) -> None:
    """100,000 values of the sum and 4,000 counts: 5 standard errors; x 2/3 and x 3/2 are 30 and more away."""
    m, clip_norm = mechanism(), 0.25
    total = noise_adaptively({"w": np.zeros(100_000), "within_clip": np.zeros(())}, m, clip_norm, source)["w"]
    assert total.std() == pytest.approx(m.sum_noise_multiplier * clip_norm, rel=0.0112)
    counts = [
        float(noise_adaptively({"w": np.zeros(1), "within_clip": np.zeros(())}, m, clip_norm, source)["within_clip"])
        for _ in range(4000)
    ]
    planned = m.count_noise_multiplier * 0.5
    assert np.std(counts) == pytest.approx(planned, rel=0.056)
    assert stats.kstest(np.array(counts) / planned, "norm").pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(np.array(counts) / planned / wrong, "norm").pvalue < 1e-10


def test_one_device_moves_sum_and_count_by_no_more_than_their_clips() -> None:
    assert {float(within_clip(norm, 1.0)) for norm in (0.0, 1.0)} == {0.5}
    assert {float(within_clip(norm, 1.0)) for norm in (1.0 + 1e-9, math.inf, math.nan)} == {-0.5}
    assert within_clip(0.3, 1.0).shape == () and within_clip(0.3, 1.0).dtype == np.float32


@pytest.mark.parametrize(("share", "factor"), [(0.5, 1.0), (1.0, math.exp(-0.1)), (0.0, math.exp(0.1))])
def test_the_clip_moves_against_the_share_within(share: float, factor: float) -> None:
    assert next_clip(2.0, 1.0, (share - 0.5) * 80, 80.0, SETTINGS) == pytest.approx(2.0 * factor)


def test_noise_cannot_drive_the_clip_to_zero_or_infinity() -> None:
    low = high = 1.0
    for _ in range(500):
        low, high = next_clip(low, 1.0, 1e12, 80.0, SETTINGS), next_clip(high, 1.0, -1e12, 80.0, SETTINGS)
    assert low == pytest.approx(1e-6) and high == pytest.approx(1e6)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_clip_finds_the_quantile_of_the_norms(quantile: float) -> None:
    """1,000 log-normal norms, count noise of 20: within 15 % of the true quantile after 100 rounds."""
    norms = np.exp(np.random.default_rng(1).standard_normal(1000))
    settings = AdaptiveClip(quantile=quantile, learning_rate=0.2, share=0.0025)
    m = mechanism(sigma=2.0, settings=settings)
    clip_norm, seen = 0.01, []
    for round in range(200):
        count = np.asarray(sum(float(within_clip(norm, clip_norm)) for norm in norms))
        noised = noise_adaptively({"within_clip": count}, m, clip_norm, SeededNoise(0, round))
        clip_norm = next_clip(clip_norm, 0.01, float(noised["within_clip"]), 1000.0, settings)
        seen.append(clip_norm)
    assert np.mean(seen[100:]) == pytest.approx(np.quantile(norms, quantile), rel=0.15)
