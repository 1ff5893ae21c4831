"""Keys that two devices agree on and nobody else knows: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), sealed messages.

A derived key is bound to a label and to what it is for: two uses never share a key, and devices that were shown
different things agree on different keys.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrecall.protocol.errors import UpdateError

KEY_BYTES = 32
_ANY = bytes(32)
_ONCE = bytes(12)
"""The nonce of a key that seals one message."""


def public_key(private: bytes) -> bytes:
    """Return the public key, 32 bytes, of a private one: 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, info: bytes) -> bytes:
    """Return the 32 bytes that the owner of ``private`` and that of ``public`` agree on for ``info``, alike for both.

    Raises:
        UpdateError: ``public`` is no key, or a point of small order, for which the agreement would be public.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise UpdateError("a public key is none, or a point of small order: refused") from error
    return derived_key(shared, info)


def check_point(public: bytes) -> None:
    """Raise UpdateError for what ``agreed_key`` refuses of anybody."""
    agreed_key(_ANY, public, b"")


def derived_key(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes that are a function of ``secret`` and of what they are for."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def sealed(key: bytes, message: bytes, about: bytes) -> bytes:
    """Return ``message`` encrypted and bound to ``about``; a key seals one message, ever."""
    return ChaCha20Poly1305(key).encrypt(_ONCE, message, about)


def unsealed(key: bytes, data: bytes, about: bytes) -> bytes:
    """Return what ``sealed`` was given; raises UpdateError for anything else."""
    try:
        return ChaCha20Poly1305(key).decrypt(_ONCE, data, about)
    except (InvalidTag, ValueError) as error:
        raise UpdateError("a sealed message is not from whom it says it is, or not about this: refused") from error
