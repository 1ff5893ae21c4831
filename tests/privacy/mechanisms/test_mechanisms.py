import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from fedrecall.privacy.mechanisms.mechanisms import (
    clip_joint,
    gaussian_sum,
    joint_norm,
    noise_second_moment,
)
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.plan import Mechanism


def noisy(multiplier: float = 2.0, clip: float | None = 1.0) -> Mechanism:
    return Mechanism(name="m", noise_multiplier=multiplier, clip_norm=clip)


def exact_norm(arrays: dict[str, np.ndarray]) -> float:
    """The joint norm one number at a time, in exact sums of exact squares of Python floats."""
    return math.sqrt(math.fsum(float(x) ** 2 for a in arrays.values() for x in np.ravel(a)))


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
floats = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(lambda d: hnp.arrays(d, shapes))
integers = hnp.arrays(np.int64, shapes)
updates = st.dictionaries(st.text(max_size=3), floats | integers, max_size=4)
moderate = hnp.arrays(np.float64, shapes, elements=st.floats(-9, 9))
clips = st.floats(1e-30, 1e30)


class TestClip:
    @settings(max_examples=200, deadline=None)
    @given(arrays=updates, clip=clips)
    def test_the_bound_holds_whatever_comes(self, arrays: dict[str, np.ndarray], clip: float) -> None:
        clipped, norm = clip_joint(arrays, clip)
        assert clipped.keys() == arrays.keys()
        for name, array in clipped.items():
            assert array.shape == arrays[name].shape and np.all(np.isfinite(array))
        assert exact_norm({k: v.astype(np.float64) / clip for k, v in clipped.items()}) <= 1 + 1e-9
        if not all(np.all(np.isfinite(a)) for a in arrays.values()):
            assert norm == math.inf

    @settings(max_examples=100, deadline=None)
    @given(arrays=st.dictionaries(st.text(max_size=2), moderate, max_size=3), clip=st.floats(0.1, 20))
    def test_direction_is_kept_and_short_ones_untouched(self, arrays: dict[str, np.ndarray], clip: float) -> None:
        clipped, norm = clip_joint(arrays, clip)
        assert norm == pytest.approx(exact_norm(arrays), rel=1e-12, abs=1e-150)
        factor = min(1.0, clip / norm) if norm > 0 else 1.0
        for name, array in arrays.items():
            np.testing.assert_allclose(clipped[name], array * factor, rtol=1e-12, atol=1e-300)
            if norm <= clip:
                assert np.array_equal(clipped[name], array)

    def test_the_norm_is_joint(self) -> None:
        clipped, norm = clip_joint({"a": np.array([3.0]), "b": np.array(4.0)}, 1.0)
        assert norm == 5.0
        assert clipped["a"] == pytest.approx([0.6]) and clipped["b"] == pytest.approx(0.8)
        assert clipped["b"].shape == ()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.7e308])
    def test_an_invalid_update_becomes_zero(self, bad: float) -> None:
        arrays = {"a": np.array([1.0, 2.0]), "b": np.full(3, bad)}
        for order in (arrays, dict(reversed(arrays.items()))):
            clipped, norm = clip_joint(order, 1.0)
            assert norm == math.inf
            assert all(not a.any() for a in clipped.values())

    @pytest.mark.parametrize("zeros_first", [True, False])
    def test_one_nan_among_zeros_is_invalid(self, zeros_first: bool) -> None:
        arrays = [("z", np.zeros(2)), ("n", np.array([0.0, np.nan]))]
        clipped, norm = clip_joint(dict(arrays if zeros_first else arrays[::-1]), 1.0)
        assert norm == math.inf
        assert all(not a.any() for a in clipped.values())

    @pytest.mark.parametrize(("size", "clip"), [(1e300, 1e300), (1e-300, 1e-300), (1e300, 1e-20)])
    def test_huge_and_tiny_entries_keep_their_direction(self, size: float, clip: float) -> None:
        clipped, norm = clip_joint({"a": np.array([3.0, 4.0]) * size}, clip)
        assert norm == pytest.approx(5 * size)
        np.testing.assert_allclose(clipped["a"], np.array([0.6, 0.8]) * clip, rtol=1e-12)

    def test_half_precision_comes_back_as_single(self) -> None:
        clipped, _ = clip_joint({"h": np.full(1000, 300.0, np.float16), "s": np.ones(2, np.float32)}, 0.1)
        assert {a.dtype for a in clipped.values()} == {np.dtype(np.float32)}
        assert exact_norm(clipped) == pytest.approx(0.1, rel=1e-6)

    def test_nothing_and_zero_stay(self) -> None:
        assert clip_joint({}, 1.0) == ({}, 0.0)
        clipped, norm = clip_joint({"z": np.zeros(3), "e": np.zeros((0, 4))}, 1.0)
        assert norm == 0.0 and clipped["e"].shape == (0, 4)

    def test_the_input_is_not_changed(self) -> None:
        array = np.array([30.0, 40.0])
        clip_joint({"a": array}, 1.0)[0]["a"][:] = 7
        clip_joint({"a": array}, 100.0)[0]["a"][:] = 7
        assert np.array_equal(array, [30.0, 40.0])

    @pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
    def test_a_bad_clip_is_refused(self, clip: float) -> None:
        with pytest.raises(PlanError, match="clip_norm is"):
            clip_joint({"a": np.ones(2)}, clip)

    @pytest.mark.parametrize("array", [np.array(["x"]), np.array([1j]), np.array([None])])
    def test_no_numbers_are_refused(self, array: np.ndarray) -> None:
        with pytest.raises(UpdateError, match="array 'a' has dtype"):
            clip_joint({"a": array}, 1.0)


class TestGaussianSum:
    def test_noise_is_there_in_every_coordinate(self) -> None:
        sums = {"table": np.zeros((300, 300)), "bias": np.zeros(()), "none": np.zeros((0, 5))}
        sums["table"][0] = 5.0  # one touched row
        out = gaussian_sum(sums, noisy(2.0, 1.5), SeededNoise(3, "sum"))
        residual = (out["table"] - sums["table"]).ravel()
        assert 0.989 <= residual.std() / 3.0 <= 1.011
        assert stats.kstest(residual / 3.0, "norm").pvalue > 1e-4
        assert np.all(residual != 0) and out["bias"] != 0 and out["none"].shape == (0, 5)

    def test_accumulates_in_float64(self) -> None:
        out = gaussian_sum({"a": np.full(4, 1e8, np.float32)}, noisy(1.0), SeededNoise(3))
        assert out["a"].dtype == np.float64
        assert np.all(out["a"] % 1 != 0)  # float32 would have swallowed the noise

    def test_a_replay_draws_identical_noise_in_any_order(self) -> None:
        sums = {"b": np.zeros(5), "a": np.zeros(3)}
        one = gaussian_sum(sums, noisy(), SeededNoise(3, "digest", 0))
        two = gaussian_sum(dict(reversed(sums.items())), noisy(), SeededNoise(3, "digest", 0))
        other = gaussian_sum(sums, noisy(), SeededNoise(3, "digest", 1))
        for name in sums:
            assert np.array_equal(one[name], two[name])
            assert not np.any(one[name] == other[name])

    def test_releases_lie_on_a_grid_that_hides_the_bits_of_the_sum(self) -> None:
        out = gaussian_sum({"a": np.full(1000, math.pi)}, noisy(3.0, 0.1), SeededNoise(3))["a"]
        steps = out / 2.0 ** (math.floor(math.log2(0.3)) - 20)
        assert np.array_equal(steps, np.rint(steps))

    def test_without_noise_the_sum_is_itself(self) -> None:
        sums = {"a": np.array([1.1, 2.2])}
        out = gaussian_sum(sums, noisy(0.0, None), SeededNoise(3))
        assert np.array_equal(out["a"], sums["a"])
        out["a"][:] = 0
        assert sums["a"][0] == 1.1

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
    @pytest.mark.parametrize("multiplier", [0.0, 1.0])
    def test_a_sum_that_is_not_finite_or_drowns_its_noise_is_refused(self, bad: float, multiplier: float) -> None:
        if (bad, multiplier) == (1e30, 0.0):
            return
        with pytest.raises(UpdateError, match="the sum 'a'"):
            gaussian_sum({"a": np.array([1.0, bad])}, noisy(multiplier), SeededNoise(3))


class TestSecondMoment:
    def test_noise_is_an_isometry(self) -> None:
        size, mu = 320, 0.5
        sums = np.full((size, size), 3.0)
        out = noise_second_moment(sums, noisy(1 / mu), SeededNoise(6))
        assert np.array_equal(out, out.T)
        residual = out - sums
        upper = residual[np.triu_indices(size, 1)]
        assert 0.985 <= upper.std() * math.sqrt(2) * mu <= 1.015
        assert stats.kstest(upper * math.sqrt(2) * mu, "norm").pvalue > 1e-4
        noise = SeededNoise(8)
        diagonals = [np.diagonal(noise_second_moment(np.zeros((80, 80)), noisy(1 / mu), noise)) for _ in range(60)]
        diagonal = np.concatenate(diagonals) * mu
        assert 0.95 <= diagonal.std() <= 1.05  # 4,800 values: five standard errors
        assert stats.kstest(diagonal, "norm").pvalue > 1e-4

    def test_the_power_of_the_best_test_is_the_accounted_one(self) -> None:
        # Project on the direction that one device adds: N(0, 1) against N(mu, 1), for any unit y.
        mu, noise = 2.0, SeededNoise(7)
        y = np.array([0.6, 0.64, 0.48])
        direction = np.outer(y, y)
        zeros = [noise_second_moment(np.zeros((3, 3)), noisy(1 / mu), noise) for _ in range(4000)]
        scores = np.array([np.sum(z * direction) for z in zeros]) * mu
        assert stats.kstest(scores, "norm").pvalue > 1e-4
        assert stats.kstest(scores * 1.5, "norm").pvalue < 1e-4
        assert np.sum(direction * direction) * mu == pytest.approx(mu)

    @pytest.mark.parametrize(
        ("sums", "message"),
        [
            (np.zeros((2, 3)), "square"),
            (np.array([[0.0, 1.0], [0.0, 0.0]]), "symmetric"),
            (np.full((2, 2), np.nan), "finite"),
            (np.array([[1.0, np.inf], [np.inf, 1.0]]), "finite"),
        ],
    )
    def test_what_is_no_second_moment_is_refused(self, sums: np.ndarray, message: str) -> None:
        with pytest.raises(UpdateError, match=message):
            noise_second_moment(sums, noisy(), SeededNoise(6))

    def test_another_clip_is_refused(self) -> None:
        with pytest.raises(PlanError, match=r"clip_norm is 0\.5"):
            noise_second_moment(np.zeros((2, 2)), noisy(1.0, 0.5), SeededNoise(6))

    def test_no_items_and_no_noise(self) -> None:
        assert noise_second_moment(np.zeros((0, 0)), noisy(), SeededNoise(6)).shape == (0, 0)
        sums = np.eye(2)
        assert np.array_equal(noise_second_moment(sums, noisy(0.0, None), SeededNoise(6)), sums)


def test_the_joint_norm_is_over_all_arrays():
    assert joint_norm({"a": np.array([[3.0]]), "b": np.array(4, dtype=np.float16)}) == 5.0
    assert joint_norm({"a": np.zeros(0)}) == joint_norm({}) == 0.0
    assert joint_norm({"a": np.array([1e300, 1e300])}) == pytest.approx(math.sqrt(2) * 1e300)
    assert joint_norm({"a": np.array([1.7e308, 1.7e308])}) == math.inf
    assert joint_norm({"a": np.array([np.nan]), "b": np.ones(2)}) == math.inf
