"""Keyed public randomness: draws that everybody may know and repeat (negatives, permutations, initial weights).

Never for noise: noise comes from ``fedrecall.privacy.mechanisms.noise``.
"""

import hashlib

import numpy as np


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive a 128-bit seed from ``seed`` and ``labels`` by SHA-256; distinct labels give independent streams."""
    text = "\x1f".join(["fedrecall", str(int(seed)), *(f"{type(x).__name__}:{x}" for x in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def public_rng(seed: int, *labels: str | int) -> np.random.Generator:
    """Return the generator of one public stream, the same on every machine for the same arguments."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *labels)))


def hashed_uniform(key: int, ids: np.ndarray) -> np.ndarray:
    """Return one uniform number in [0, 1) for each integer id, a function of ``key`` and that id alone.

    Vectorised SplitMix64 (Steele and others 2014): the number of device 7 does not depend on who else is asked.
    """
    with np.errstate(over="ignore"):
        x = np.asarray(ids).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(2**53)
