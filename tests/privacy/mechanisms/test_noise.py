import hashlib
import hmac
import math
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.randomness import public_rng

N = 100_000


def is_gaussian(noise: np.ndarray, sigma: float) -> bool:
    """Test 100,000 values against N(0, sigma^2).

    A right one fails once in 10,000 tries by Kolmogorov-Smirnov, and less than once in 100,000 by the scale
    (0.011 is 4.9 of its standard errors) or the correlation; a scale off by a third is 150 of them away.
    """
    ratio = noise.std() / sigma
    lag = np.corrcoef(noise[:-1], noise[1:])[0, 1]
    return bool(0.989 <= ratio <= 1.011 and stats.kstest(noise / sigma, "norm").pvalue > 1e-4 and abs(lag) < 0.02)


KEY = bytes(range(32))


@pytest.fixture(params=["secure", "keyed", "seeded"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NoiseSource:
    if request.param == "seeded":
        return SeededNoise(1, "test")
    if request.param == "keyed":
        return SecureNoise(KEY, "test")
    # The real cipher, keyed by a fixed stream so that a statistical test cannot fail by chance.
    keys = np.random.Generator(np.random.Philox(5))
    monkeypatch.setattr("fedrecall.privacy.mechanisms.noise.os.urandom", keys.bytes)
    return SecureNoise()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_noise_has_the_planned_scale(source: NoiseSource, dtype: type) -> None:
    noise = source.normal((N,), 2.5, dtype)
    assert noise.dtype == dtype
    assert is_gaussian(noise.astype(np.float64), 2.5)


@pytest.mark.parametrize("wrong", [2 / 3, 3 / 2])
def test_the_test_rejects_a_wrong_scale(source: NoiseSource, wrong: float) -> None:
    assert not is_gaussian(source.normal((N,), 2.5 * wrong), 2.5)


def test_the_test_rejects_repeated_and_uniform_noise() -> None:
    drawn = SeededNoise(2).normal((N // 2,), 1.0)
    assert not is_gaussian(np.repeat(drawn, 2), 1.0)
    assert not is_gaussian(np.random.default_rng(0).uniform(-math.sqrt(3), math.sqrt(3), N), 1.0)


def test_more_than_one_block_is_all_noise_with_both_tails(source: NoiseSource) -> None:
    noise = source.normal((1_500_000,), 1.0)
    assert is_gaussian(noise[-N:], 1.0)
    assert len(np.unique(noise)) > 0.75 * len(noise)  # on a grid of 2^-20 some points come out twice
    for tail in (noise > 4.0, noise < -4.0):
        expected = 1_500_000 * stats.norm.sf(4.0)  # 47.5
        assert stats.binomtest(int(tail.sum()), 1_500_000, expected / 1_500_000).pvalue > 1e-4


def test_secure_noise_never_repeats() -> None:
    a, b = SecureNoise(), SecureNoise()
    draws = [s.normal((N // 4,), 1.0) for s in (a, b, a, b)]
    # Some points of the grid come out twice by chance: 1,400 of 100,000.
    assert len(np.unique(draws)) > 0.98 * N
    assert np.abs(np.corrcoef(draws)[np.triu_indices(4, 1)]).max() < 0.03
    assert not a.simulated


def test_secure_noise_asks_the_operating_system_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    monkeypatch.setattr("fedrecall.privacy.mechanisms.noise.os.urandom", urandom)
    first, second = SecureNoise().normal((8,), 1.0), SecureNoise().normal((8,), 1.0)
    assert sum(asked) >= 2 * 32
    assert np.array_equal(first, second)  # all of its randomness comes from there


@pytest.mark.parametrize(("kind", "first", "simulated"), [(SeededNoise, 7, True), (SecureNoise, KEY, False)])
def test_the_same_key_and_labels_draw_the_same_noise(kind: type, first: object, simulated: bool) -> None:
    a = kind(first, "digest", "rounds", 3)
    b = kind(first, "digest", "rounds", 3)
    assert a.simulated == simulated
    for shape in ((5,), (), (2, 3), (1_500_000,), (2,)):
        assert np.array_equal(a.normal(shape, 1.0), b.normal(shape, 1.0))


def test_a_key_draws_what_it_always_drew() -> None:
    """Work the definition out apart: a kept key must give the same noise under a later version of this code."""
    spelled = b"19:str:fedrecall.noise10:str:rounds5:int:3"
    stream = hmac.new(KEY, spelled, hashlib.sha256).digest()
    block = hmac.new(stream, (1).to_bytes(8, "big"), hashlib.sha256).digest()
    cipher = Cipher(algorithms.ChaCha20(block, bytes(16)), mode=None).encryptor()
    words = struct.unpack("<5Q", cipher.update(bytes(40)))
    exact = [((-1) ** (w & 1)) * stats.norm.isf(((w >> 1) + 0.5) / 2**64) for w in words]
    expected = [round(z * 2**20) / 2**20 for z in exact]
    assert SecureNoise(KEY, "rounds", 3).normal((5,), 1.0).tolist() == expected


def test_a_keyed_stream_asks_the_operating_system_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecall.privacy.mechanisms.noise.os.urandom", lambda count: pytest.fail("asked"))
    assert SecureNoise(KEY, "rounds").normal((3,), 1.0).shape == (3,)


def test_a_weak_key_is_refused() -> None:
    with pytest.raises(PlanError, match="16 bytes: draw 32"):
        SecureNoise(bytes(16))
    with pytest.raises(PlanError, match="no key"):
        SecureNoise(None, "rounds", 3)


OTHERS = [
    (8, "d", "r", 3),
    (7, "d", "r", 4),
    (7, "d", "s", 3),
    (7, "dr", 3),
    (7, "d", "r", "3"),
    (7, "d", "r"),
]


@pytest.mark.parametrize("key", OTHERS)
def test_other_seeds_labels_and_rounds_are_independent(key: tuple[int, ...]) -> None:
    a = SeededNoise(7, "d", "r", 3).normal((N,), 1.0)
    b = SeededNoise(*key).normal((N,), 1.0)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    secret, other = (bytes([seed]) * 32 for seed in (7, key[0]))
    a = SecureNoise(secret, "d", "r", 3).normal((N,), 1.0)
    b = SecureNoise(other, *key[1:]).normal((N,), 1.0)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_rounds_are_uncorrelated_with_each_other_and_with_themselves() -> None:
    rounds = np.stack([SeededNoise(7, "d", r).normal((N,), 1.0) for r in range(6)])
    off = np.corrcoef(rounds)[~np.eye(6, dtype=bool)]
    assert np.abs(off).max() < 0.02
    assert is_gaussian(rounds.sum(axis=0), math.sqrt(6))


def test_noise_is_not_public_randomness() -> None:
    noise = SeededNoise(7, "negatives").normal((N,), 1.0)
    public = public_rng(7, "negatives").standard_normal(N)
    assert abs(np.corrcoef(noise, public)[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_every_shape(source: NoiseSource, shape: tuple[int, ...]) -> None:
    drawn = source.normal(shape, 1.0)
    assert isinstance(drawn, np.ndarray) and drawn.shape == shape


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_bad_scale_is_refused(source: NoiseSource, std: float) -> None:
    with pytest.raises(PlanError, match="std is"):
        source.normal((2,), std)


def test_a_coarse_dtype_is_refused(source: NoiseSource) -> None:
    with pytest.raises(PlanError, match="dtype is float16"):
        source.normal((2,), 1.0, np.float16)
