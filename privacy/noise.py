"""Where noise comes from: secure in earnest, seeded and stamped in a simulation. Never public randomness.

``SecureNoise`` expands a key from the operating system with ChaCha20 (RFC 8439) and inverts the normal
distribution function on 53 uniform bits and a sign, so that the tails reach 8.3 standard deviations. The
noise is a double, and the doubles around a signal are unevenly spaced (Mironov 2012, "On significance of
the least significant bits"): whoever adds it snaps the sum to a grid, as ``fedrecall.privacy.mechanisms``
does.

``SeededNoise`` can be drawn again, hence subtracted, by whoever knows its seed: it protects nobody.
"""

import hashlib
import math
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.special import ndtri

from fedrecall.protocol.errors import PlanError

_BLOCK = 1 << 20  # normals a time: bounds memory, and keeps one ChaCha20 key far below its 2^38 bytes a nonce


class NoiseSource(Protocol):
    """Draws independent normal noise; each call goes on where the last one stopped.

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


class SecureNoise:
    """Noise for deployments: a fresh 256-bit key from ``os.urandom`` for every million draws."""

    simulated = False

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """See ``NoiseSource``."""
        kind = _checked(std, dtype)
        out = np.empty(math.prod(shape), dtype=kind)
        for start in range(0, out.size, _BLOCK):
            block = out[start : start + _BLOCK]
            block[:] = _standard_normal(block.size) * std
        return out.reshape(shape)


class SeededNoise:
    """Noise of a simulation: the same seed and labels give the same draws, other ones independent draws.

    Args:
        seed: of the run; known.
        labels: what the noise is for; a ledger's key, say plan digest, mechanism and round.
    """

    simulated = True

    def __init__(self, seed: int, *labels: str | int) -> None:
        # Each part carries its length, so that no two lists of labels spell the same text.
        parts = [f"{type(x).__name__}:{x}" for x in ("fedrecall.noise", int(seed), *labels)]
        text = "".join(f"{len(p)}:{p}" for p in parts)
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        self._rng = np.random.Generator(np.random.Philox(key=key))

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """See ``NoiseSource``."""
        kind = _checked(std, dtype)
        return np.asarray(self._rng.standard_normal(shape) * std, dtype=kind)


def _standard_normal(count: int) -> npt.NDArray[np.float64]:
    keystream = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None).encryptor()
    bits = np.frombuffer(keystream.update(bytes(8 * count)), dtype=np.uint64)
    # A point of the lower half of the distribution, never 0, then a fair sign: both tails are equally fine.
    half = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-54
    normal: npt.NDArray[np.float64] = ndtri(half)
    np.negative(normal, out=normal, where=(bits & np.uint64(1)).astype(bool))
    return normal


def _checked(std: float, dtype: npt.DTypeLike) -> type[np.floating]:
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
