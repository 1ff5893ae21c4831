"""Shamir's sharing (1979) of 32 bytes: any ``threshold`` shares give the secret back, fewer say nothing of it.

A share is the value, at a point of its own, of a polynomial over the integers modulo P whose constant term is the
secret and whose other coefficients are random. All shares have one form, whatever the secret.
"""

from collections.abc import Mapping, Sequence

from fedrecall.protocol.errors import UpdateError

P = 2**256 + 297
"""The least prime above all secrets."""
SECRET_BYTES, SHARE_BYTES = 32, 33
_COEFFICIENT_BYTES = 48
"""Of randomness for a coefficient: taken modulo P, it is uniform to within 2^-127."""


def randomness_for(threshold: int) -> int:
    """Return how many random bytes a sharing takes."""
    return (threshold - 1) * _COEFFICIENT_BYTES


def shares_of(secret: bytes, points: Sequence[int], threshold: int, randomness: bytes) -> list[bytes]:
    """Return the share of ``secret`` for each of ``points``.

    Args:
        secret: 32 bytes.
        points: distinct, from 1.
        threshold: shares that give the secret back, 1 to the number of points.
        randomness: ``randomness_for(threshold)`` bytes, secret and used once.

    Raises:
        ValueError: an argument is not as described.
    """
    if len(secret) != SECRET_BYTES or len(randomness) != randomness_for(threshold):
        raise ValueError("a secret or its randomness has another length")
    if len(set(points)) != len(points) or not all(0 < x < P for x in points) or not 1 <= threshold <= len(points):
        raise ValueError(f"{len(points)} points do not allow a threshold of {threshold}, or repeat")
    drawn = (randomness[at : at + _COEFFICIENT_BYTES] for at in range(0, len(randomness), _COEFFICIENT_BYTES))
    coefficients = [int.from_bytes(secret, "big"), *(int.from_bytes(part, "big") % P for part in drawn)]
    found = []
    for x in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % P
        found.append(value.to_bytes(SHARE_BYTES, "big"))
    return found


def secret_of(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret that ``shares``, by their points, are of: exactly as many as the threshold (Lagrange at 0).

    Raises:
        UpdateError: they are of no secret.
    """
    total = 0
    for x, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_BYTES or value >= P:
            raise UpdateError("a share is none: refused")
        above, below = value, 1
        for other in shares:
            if other != x:
                above = above * other % P
                below = below * (other - x) % P
        total = (total + above * pow(below, -1, P)) % P
    if not shares or total >= 1 << (8 * SECRET_BYTES):
        raise UpdateError("the shares are of no secret: refused")
    return total.to_bytes(SECRET_BYTES, "big")
