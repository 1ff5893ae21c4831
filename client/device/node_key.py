"""A device's key pair, by which a server knows it: EC P-384 in OpenSSH form, as Flower's authentication wants it."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.files import read_bounded, write_atomic

PRIVATE, PUBLIC = "node.key", "node.key.pub"
_MAX_BYTES = 1 << 16


def make_node_key(folder: Path) -> Path:
    """Return the file with the public key of ``folder``; makes the pair where there is none, and keeps it afterwards.

    Both files get mode 600. A kill in between leaves a private key, from which the public one is made again.

    Raises:
        CorruptArtefact: the private key there is none of this kind.
        FedrecallError: a file cannot be written.
    """
    private, public = folder / PRIVATE, folder / PUBLIC
    if not private.exists():
        fresh = ec.generate_private_key(ec.SECP384R1())
        write_atomic(private, fresh.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    try:
        key = load_ssh_private_key(read_bounded(private, max_bytes=_MAX_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CorruptArtefact(f"{private} is no private key in OpenSSH form: restore it, or forget this one") from error
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise CorruptArtefact(f"{private} is no key on P-384, which Flower's authentication wants: forget this one")
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    if not public.exists() or public.read_bytes() != line:
        write_atomic(public, line, mode=0o600)
    return public
