"""Where noise comes from: secure in earnest, seeded and stamped in a simulation. Never public randomness.

``SecureNoise`` expands keys from the operating system, or one secret key, with ChaCha20 (RFC 8439). What it adds is a
real-valued Gaussian, rounded to a public grid exactly (``fedrecall.privacy.mechanisms.rounded_gaussian``): every point
of the grid can come out, whatever the sum is, with the probability that the Gaussian gives it, so that nothing is left
over that delta would have to pay for. (A double of noise would tell: the doubles around a signal are unevenly spaced;
Mironov 2012, "On significance of the least significant bits".)

``SeededNoise`` can be drawn again, hence subtracted, by whoever knows its seed: it protects nobody.
"""

import hashlib
import hmac
import math
import os
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedrecall.privacy.mechanisms.rounded_gaussian import add_rounded
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan

_BLOCK = 1 << 20  # normals a time: bounds memory, and keeps one ChaCha20 key far below its 2^38 bytes a nonce
_KEY_BYTES = 32


class NoiseSource(Protocol):
    """Draws independent normal noise, on the grid of its std; each call goes on where the last one stopped.

    Attributes:
        simulated: somebody can draw the same noise again.
    """

    @property
    def simulated(self) -> bool:
        """Whether the noise comes from a known seed."""
        ...

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """Return N(0, std^2) of ``shape`` in float64 or float32; PlanError for another dtype or a bad std."""
        ...

    def added(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """Return ``values + N(0, std^2)``, rounded to the grid of ``std``; PlanError for a bad std."""
        ...


class WholeNoise(Protocol):
    """Draws independent normal noise and rounds to whole numbers, for sums that are taken of whole numbers."""

    def whole(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """Return ``values + N(0, std^2)``, rounded to whole numbers; PlanError for a std below 2^-10 or above 2^60."""
        ...


def grid_of(std: float) -> float:
    """Return the grid of noise of this scale: a power of two, std / 2^20 at most, and above std / 2^21."""
    return 2.0 ** max(math.floor(math.log2(std)) - 20, -1022)


class SecureNoise:
    """Noise for deployments: a fresh 256-bit key from ``os.urandom`` for every million draws.

    With ``key`` every such key is derived from it instead (HMAC-SHA-256), so that a server that kept it draws the
    same noise after a crash. Whoever holds the key can subtract the noise, and so can whoever sees two sums with
    the noise of the same labels: keep it where only the server reads it, one key to a plan, one list of labels to a
    sum, and destroy it with the last release.

    Args:
        key: 32 secret bytes from ``os.urandom``, or none for noise that nobody can draw again.
        labels: what the noise is for, with a key: other labels, independent draws.

    Raises:
        PlanError: the key has another length, or there are labels without a key.
    """

    simulated = False

    def __init__(self, key: bytes | None = None, *labels: str | int) -> None:
        if key is not None and len(key) != _KEY_BYTES:
            raise PlanError(f"the noise key has {len(key)} bytes: draw {_KEY_BYTES} from os.urandom")
        if key is None and labels:
            raise PlanError(
                f"the noise has labels {labels} and no key: fresh noise cannot be drawn again by its labels"
            )
        self._stream = None if key is None else hmac.digest(key, _spelled("fedrecall.noise", *labels), "sha256")
        self._blocks = 0

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """See ``NoiseSource``: on the grid of ``std``."""
        kind = noise_kind(std, dtype)
        return self.added(np.zeros(shape), std).astype(kind, copy=False)

    def added(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """See ``NoiseSource``: exact."""
        noise_kind(std, np.float64)
        return np.array(values, dtype=np.float64) if std == 0 else self._added_on(values, std, grid_of(std))

    def whole(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """See ``WholeNoise``: exact."""
        noise_kind(std, np.float64)
        return self._added_on(values, std, 1.0)

    def _added_on(self, values: npt.NDArray[np.float64], std: float, grid: float) -> npt.NDArray[np.float64]:
        flat = np.array(values, dtype=np.float64).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            key = self._block_key()
            block[:] = add_rounded(block / grid, std / grid, _words(key, 0, block.size), partial(_word, key)) * grid
        return flat.reshape(np.shape(values))

    def _block_key(self) -> bytes:
        if self._stream is None:
            return os.urandom(_KEY_BYTES)
        self._blocks += 1
        return hmac.digest(self._stream, self._blocks.to_bytes(8, "big"), "sha256")


class SeededNoise:
    """Noise of a simulation: the same seed and labels give the same draws, other ones independent draws.

    Args:
        seed: of the run; known.
        labels: what the noise is for; a ledger's key, say plan digest, mechanism and round.
    """

    simulated = True

    def __init__(self, seed: int, *labels: str | int) -> None:
        text = _spelled("fedrecall.noise", int(seed), *labels)
        key = int.from_bytes(hashlib.sha256(text).digest()[:16], "big")
        self._rng = np.random.Generator(np.random.Philox(key=key))

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """See ``NoiseSource``."""
        kind = noise_kind(std, dtype)
        return np.asarray(self._rng.standard_normal(shape) * std, dtype=kind)

    def added(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """See ``NoiseSource``."""
        if std == 0:
            return np.array(values, dtype=np.float64)
        return rounded(values + self.normal(np.shape(values), std), std)

    def whole(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """See ``WholeNoise``."""
        return np.asarray(np.rint(values + self.normal(np.shape(values), std)))


def _spelled(*parts: str | int) -> bytes:
    # Each part carries its length, so that no two lists of labels spell the same text.
    typed = [f"{type(part).__name__}:{part}" for part in parts]
    return "".join(f"{len(p)}:{p}" for p in typed).encode()


def check_noise(noise: NoiseSource, plan: Plan) -> None:
    """Refuse seeded noise outside a simulation, and secure noise inside one: a replay there is charged once only."""
    if noise.simulated and not plan.simulated:
        raise PlanError("the noise is seeded, so it can be subtracted, and the plan is in earnest: use SecureNoise")
    if plan.simulated and not noise.simulated:
        raise PlanError("the plan is simulated and its noise cannot be replayed: use SeededNoise")


def rounded(values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
    """Return noised ``values`` rounded to the grid of ``std``."""
    grid = grid_of(std)
    return np.asarray(np.rint(values / grid) * grid + 0.0)


def _words(key: bytes, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """Return words of one of the key's independent streams (ChaCha20's nonce); no key serves twice."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(4) + stream.to_bytes(12, "little")), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8")


def _word(key: bytes, draw: int, number: int) -> int:
    """Return a further word of a draw: its own stream, the first one being that of all draws' first words."""
    return int(_words(key, draw + 1, number + 1)[number])


def noise_kind(std: float, dtype: npt.DTypeLike) -> type[np.floating]:
    """Return float32 or float64 as asked; PlanError for another dtype, and for a std that is negative or not finite."""
    if not (math.isfinite(std) and std >= 0):
        raise PlanError(f"the noise's std is {std}: choose it finite and at least 0")
    kinds: dict[object, type[np.floating]] = {
        np.dtype(np.float32): np.float32,
        np.dtype(np.float64): np.float64,
    }
    kind = kinds.get(np.dtype(dtype))
    if kind is None:
        raise PlanError(f"the noise's dtype is {np.dtype(dtype)}: choose float32 or float64")
    return kind
