"""Masks: integers that look random to whoever lacks a key, as a stream of AES-256 in counter mode (NIST SP 800-38A).

Sums are taken modulo a power of two. Numbers of up to 16 bits are kept in 16, of up to 32 in 32: what lies above the
modulus is cut off at the end, since the modulus divides that of the machine's own arithmetic.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedrecall.protocol.errors import PlanError

Residues = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""Integers modulo 2^bits, in the smallest dtype that holds them."""

LEAST_BITS, MOST_BITS = 2, 32
_BLOCK = 1 << 18
"""Bytes of a stream at a time: what fits into a core's cache."""


def dtype_of(bits: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return the dtype of integers modulo 2^bits; PlanError for bits out of 2..32."""
    if type(bits) is not int or not LEAST_BITS <= bits <= MOST_BITS:
        raise PlanError(f"bits is {bits}: choose it between {LEAST_BITS} and {MOST_BITS}")
    return np.dtype("<u2") if bits <= 16 else np.dtype("<u4")


def stream_of(key: bytes, size: int) -> bytes:
    """Return so many bytes that look random to whoever lacks the key; one stream a key."""
    return Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(size))


def add_mask(values: Residues, key: bytes, sign: Literal[1, -1]) -> None:
    """Add the mask of ``key`` to ``values``, in place, or take it away; 32 bytes, one mask a key."""
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    flat = values.reshape(-1)
    at_once = _BLOCK // values.itemsize
    zeros, drawn = bytes(_BLOCK), bytearray(_BLOCK + 15)
    apply = np.add if sign == 1 else np.subtract
    for begin in range(0, flat.size, at_once):
        part = flat[begin : begin + at_once]
        stream.update_into(memoryview(zeros)[: part.nbytes], drawn)
        apply(part, np.frombuffer(drawn, dtype=values.dtype, count=part.size), out=part)


def cut_to(values: Residues, bits: int) -> Residues:
    """Cut ``values`` to their residues modulo 2^bits, in place, and return them."""
    values &= values.dtype.type((1 << bits) - 1)
    return values


def centred(values: Residues, bits: int) -> npt.NDArray[np.int64]:
    """Return residues as the integers from -2^(bits - 1) to 2^(bits - 1) - 1 that they stand for."""
    half = 1 << (bits - 1)
    return ((values.astype(np.int64) + half) & ((1 << bits) - 1)) - half
