"""Agreement, masks and sharing: published vectors, independent arithmetic, and what is refused."""

import hashlib
import itertools

import numpy as np
import pytest
from scipy.stats import chisquare
from sympy import GF, Poly, symbols

from fedrecall.privacy.secure_aggregation.agreement import agreed_key, derived_key, public_key, sealed, unsealed
from fedrecall.privacy.secure_aggregation.masks import add_mask, centred, cut_to, dtype_of, stream_of
from fedrecall.privacy.secure_aggregation.sharing import SHARE_BYTES, P, randomness_for, secret_of, shares_of
from fedrecall.protocol.errors import PlanError, UpdateError

ONE, OTHER = hashlib.sha256(b"one").digest(), hashlib.sha256(b"other").digest()

SMALL_ORDER = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)
"""Points of X25519 whose multiples by any key are 0."""


def test_agreement_is_x25519_and_hkdf() -> None:
    """RFC 7748, section 5.2, first vector; RFC 5869, test case 3, its first 32 bytes."""
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = bytes.fromhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    assert agreed_key(scalar, point, b"info") == derived_key(shared, b"info")
    okm = bytes.fromhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
    assert derived_key(b"\x0b" * 22, b"") == okm


def test_both_agree_and_for_each_use_on_another_key() -> None:
    one, other = (agreed_key(a, public_key(b), b"use") for a, b in ((ONE, OTHER), (OTHER, ONE)))
    assert one == other and len(one) == 32
    assert len({agreed_key(ONE, public_key(OTHER), info) for info in (b"use", b"another", b"")}) == 3


@pytest.mark.parametrize("point", [*map(bytes.fromhex, SMALL_ORDER), b"", b"short", bytes(33)])
def test_points_of_small_order_and_what_is_no_key_are_refused(point: bytes) -> None:
    with pytest.raises(UpdateError, match="refused"):
        agreed_key(ONE, point, b"use")


def test_sealed_messages_are_chacha20_poly1305() -> None:
    """RFC 8439, A.1: with key and nonce 0, zeros encrypt to the stream from block 1 on."""
    stream = bytes.fromhex("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed")
    assert sealed(bytes(32), bytes(32), b"")[:32] == stream
    data = sealed(ONE, b"message", b"about")
    assert unsealed(ONE, data, b"about") == b"message"


def test_altered_messages_are_refused() -> None:
    data = sealed(ONE, b"message", b"about")
    flipped = bytes([data[0] ^ 1]) + data[1:]
    for key, sent, about in ((OTHER, data, b"about"), (ONE, flipped, b"about"), (ONE, data, b"else"), (ONE, b"", b"")):
        with pytest.raises(UpdateError):
            unsealed(key, sent, about)


def test_streams_are_aes_256_in_counter_mode() -> None:
    """Key 0: block 0 is the known answer of FIPS 197's cipher for zeros, block 1 that of GCM's test case 13."""
    blocks = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
    assert stream_of(bytes(32), 32) == bytes.fromhex(blocks)


@pytest.mark.parametrize("bits", [2, 7, 12, 16, 17, 32])
@pytest.mark.parametrize("size", [1, 3, 131_072, 300_001])
def test_masks_are_the_stream_and_cancel(bits: int, size: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, size).astype(dtype_of(bits))
    masked = values.copy()
    add_mask(masked, ONE, 1)
    drawn = np.frombuffer(stream_of(ONE, values.nbytes), dtype=values.dtype)
    np.testing.assert_array_equal(masked, values + drawn)
    add_mask(masked, OTHER, -1)
    add_mask(masked, ONE, -1)
    add_mask(masked, OTHER, 1)
    np.testing.assert_array_equal(cut_to(masked, bits), values)


@pytest.mark.parametrize("bits", [2, 11, 16, 24])
def test_masked_numbers_are_uniform(bits: int) -> None:
    values = np.zeros(1 << 18, dtype=dtype_of(bits))
    add_mask(values, ONE, 1)
    counts = np.bincount(cut_to(values, bits) >> max(0, bits - 8), minlength=1 << min(8, bits))
    assert chisquare(counts).pvalue > 1e-3


def test_residues_stand_for_signed_integers() -> None:
    for bits in (2, 5, 16, 32):
        half = 1 << (bits - 1)
        numbers = np.unique(np.clip([-half, -half + 1, -1, 0, 1, half - 1], -half, half - 1))
        residues = (numbers % (1 << bits)).astype(dtype_of(bits))
        np.testing.assert_array_equal(centred(residues, bits), numbers)


@pytest.mark.parametrize("bits", [1, 33, 0, True, 8.0])
def test_other_moduli_are_refused(bits: int) -> None:
    with pytest.raises(PlanError, match="bits"):
        dtype_of(bits)


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 2), (5, 5), (7, 4)])
@pytest.mark.parametrize("secret", [ONE, bytes(32), b"\xff" * 32])
def test_any_threshold_of_shares_gives_the_secret(count: int, threshold: int, secret: bytes) -> None:
    points = list(range(1, count + 1))
    shares = dict(zip(points, shares_of(secret, points, threshold, b"\x07" * randomness_for(threshold)), strict=True))
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    for chosen in itertools.combinations(points, threshold):
        assert secret_of({point: shares[point] for point in chosen}) == secret


def test_shares_are_those_of_independent_arithmetic() -> None:
    """A polynomial over the same field by sympy: its values, and its own interpolation of our shares."""
    x, threshold, points = symbols("x"), 4, [1, 2, 1000, 2**40 + 1, 77]
    randomness = stream_of(OTHER, randomness_for(threshold))
    shares = shares_of(ONE, points, threshold, randomness)
    parts = [randomness[at : at + 48] for at in range(0, len(randomness), 48)]
    field = GF(P, symmetric=False)
    polynomial = Poly(
        [*(int.from_bytes(p, "big") for p in reversed(parts)), int.from_bytes(ONE, "big")], x, domain=field
    )
    for point, share in zip(points, shares, strict=True):
        assert int(polynomial.eval(point)) % P == int.from_bytes(share, "big")
    total = Poly(0, x, domain=field)
    for i, point in enumerate(points[:threshold]):
        basis = Poly(1, x, domain=field)
        for other in points[:threshold]:
            if other != point:
                basis = basis * Poly([1, -other], x, domain=field) * pow(point - other, -1, P)
        total = total + basis * int.from_bytes(shares[i], "big")
    assert total == polynomial


def test_fewer_shares_fit_every_secret() -> None:
    """With one share too few there is, for any secret at all, a polynomial through it and them."""
    shares = dict(zip((1, 2, 3), shares_of(ONE, [1, 2, 3], 3, stream_of(OTHER, randomness_for(3))), strict=True))
    known = {1: shares[1], 2: shares[2]}
    for guess in (ONE, OTHER, bytes(32)):
        # The value at 3 of the polynomial of degree 2 through (0, guess) and both shares.
        points = {
            0: int.from_bytes(guess, "big"),
            1: int.from_bytes(known[1], "big"),
            2: int.from_bytes(known[2], "big"),
        }
        value = (points[0] - 3 * points[1] + 3 * points[2]) % P
        assert secret_of({**known, 3: value.to_bytes(SHARE_BYTES, "big")}) == guess


def test_bad_shares_are_refused() -> None:
    shares = dict(zip((1, 2), shares_of(ONE, [1, 2], 2, stream_of(OTHER, randomness_for(2))), strict=True))
    for bad in (b"", shares[1][:-1], P.to_bytes(SHARE_BYTES, "big"), b"\xff" * SHARE_BYTES):
        with pytest.raises(UpdateError):
            secret_of({1: bad, 2: shares[2]})
    with pytest.raises(UpdateError):
        secret_of({})
    other = (int.from_bytes(shares[1], "big") + 1) % P
    assert secret_of({1: other.to_bytes(SHARE_BYTES, "big"), 2: shares[2]}) != ONE


@pytest.mark.parametrize(
    ("points", "threshold"), [([1, 1], 1), ([0, 1], 1), ([1, 2], 3), ([1, 2], 0), ([P], 1), ([-1, 2], 1)]
)
def test_sharings_that_cannot_be_are_refused(points: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"points|length"):
        shares_of(ONE, points, threshold, bytes(randomness_for(threshold) if threshold else 0))
