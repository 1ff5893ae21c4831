"""TLS for one server: an authority of its own, and a server certificate that it signs.

Devices trust this authority alone, so its key is worth as much as the server itself. Certificates of another authority
serve as well: put ``ca.pem``, ``server.pem`` and ``server.key`` into the folder.
"""

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.files import write_atomic

_PEM = serialization.Encoding.PEM
_AUTHORITY_DAYS, _SERVER_DAYS, _RENEW_DAYS = 3650, 365, 30


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Where a server's certificates are: the authority's, its own, and its own key."""

    authority: Path
    server: Path
    key: Path


def certificates(folder: Path, names: Iterable[str], *, now: datetime.datetime | None = None) -> Certificates:
    """Return the certificates in ``folder``; make what is missing, and renew what ends within 30 days.

    What another authority signed is left as it is: without ``ca.key`` nothing can be renewed here.

    Args:
        folder: made, for its owner alone, where it is missing.
        names: host names and addresses under which clients reach the server.
        now: the time, with its zone.

    Raises:
        FedrecallError: some of the files are there and others are not, or a certificate has ended.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    found = Certificates(authority=folder / "ca.pem", server=folder / "server.pem", key=folder / "server.key")
    signer = folder / "ca.key"
    there = [path.exists() for path in (found.authority, found.server, found.key)]
    if not any(there):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_authority(found.authority, signer, now)
    elif not found.authority.exists() or (not all(there) and not signer.exists()):
        raise FedrecallError(f"{folder} holds some of ca.pem, server.pem, server.key: put all three there, or none")
    ends = _ends(found.server) if all(there) else now
    if ends - now > datetime.timedelta(days=_RENEW_DAYS):
        return found
    if signer.exists():
        _make_server(found, signer, list(names), now)
    elif ends <= now:
        raise FedrecallError(f"{found.server} ended on {ends:%Y-%m-%d}: put a new one there")
    return found


def _make_authority(path: Path, signer: Path, now: datetime.datetime) -> None:
    # A kill, or a full disk, between the two files leaves the key: its certificate is made again.
    key = _read_key(signer) if signer.exists() else ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedrecall server")])
    uses = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*uses, "encipher_only", "decipher_only"), False)
    certificate = (
        _builder(name, name, key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_secret(signer, key)
    write_atomic(path, certificate.public_bytes(_PEM))


def _make_server(out: Certificates, signer: Path, names: list[str], now: datetime.datetime) -> None:
    authority = x509.load_pem_x509_certificate(out.authority.read_bytes())
    signing = _read_key(signer)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, authority.subject, key, now, _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA384())
    )
    _write_secret(out.key, key)
    write_atomic(out.server, certificate.public_bytes(_PEM))


def _read_key(signer: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(signer.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedrecallError(f"{signer} is no elliptic-curve key: remove it, or restore the one of its ca.pem")
    return key


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _ends(path: Path) -> datetime.datetime:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (ValueError, OSError) as error:
        raise FedrecallError(f"{path} is no certificate ({error}): put one there") from error


def _write_secret(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Replace ``path`` by a key that only its owner may read, at every moment."""
    data = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(path, data, mode=0o600)
