"""Certificates are good for the names that they are made for, and for their time."""

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from fedrecall.protocol.errors import FedrecallError
from fedrecall.server.operation.certificates import Certificates, certificates

NAMES = ["recall.example.org", "127.0.0.1", "::1"]


def handshake(found: Certificates, authority: Path, name: str) -> str:
    """Return which TLS two ends agree on over a real socket, or why not."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(found.server, found.key)
    client = ssl.create_default_context(cafile=str(authority))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as end:
                end.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as end:
            return str(end.version())
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        thread.join()


def test_a_server_is_believed_under_its_names_by_those_who_trust_its_authority(tmp_path: Path) -> None:
    found = certificates(tmp_path / "tls", NAMES)
    other = certificates(tmp_path / "other", NAMES)
    for name in NAMES:
        assert handshake(found, found.authority, name) == "TLSv1.3"
    assert "mismatch" in handshake(found, found.authority, "elsewhere.example.org")
    assert "self-signed" in handshake(found, other.authority, NAMES[0]) or "issuer" in handshake(
        found, other.authority, NAMES[0]
    )


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    certificates(tmp_path / "tls", NAMES)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0


def test_a_server_certificate_is_renewed_before_it_ends_and_devices_need_no_new_authority(tmp_path: Path) -> None:
    found = certificates(tmp_path, NAMES)
    before, authority = found.server.read_bytes(), found.authority.read_bytes()
    now = datetime.datetime.now(datetime.UTC)
    assert certificates(tmp_path, NAMES, now=now + datetime.timedelta(days=334)).server.read_bytes() == before
    certificates(tmp_path, NAMES, now=now + datetime.timedelta(days=336))
    after = x509.load_pem_x509_certificate(found.server.read_bytes())
    assert found.server.read_bytes() != before and found.authority.read_bytes() == authority
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert after.not_valid_after_utc > now + datetime.timedelta(days=600)


def test_what_another_authority_signed_is_left_alone_until_it_has_ended(tmp_path: Path) -> None:
    found = certificates(tmp_path, NAMES)
    (tmp_path / "ca.key").unlink()
    before, now = found.server.read_bytes(), datetime.datetime.now(datetime.UTC)
    certificates(tmp_path, NAMES, now=now + datetime.timedelta(days=364))
    assert found.server.read_bytes() == before
    with pytest.raises(FedrecallError, match="ended on"):
        certificates(tmp_path, NAMES, now=now + datetime.timedelta(days=366))


def test_an_authority_of_which_only_the_key_was_written_is_made_from_it(tmp_path: Path) -> None:
    """What a full disk or a kill leaves on the first start."""
    certificates(tmp_path, NAMES)
    key = (tmp_path / "ca.key").read_bytes()
    for name in ("ca.pem", "server.pem", "server.key"):
        (tmp_path / name).unlink()
    found = certificates(tmp_path, NAMES)
    assert (tmp_path / "ca.key").read_bytes() == key
    assert handshake(found, found.authority, NAMES[0]) == "TLSv1.3"


@pytest.mark.parametrize("missing", ["ca.pem", "server.pem", "server.key"])
def test_half_a_set_of_another_authority_is_refused(missing: str, tmp_path: Path) -> None:
    certificates(tmp_path, NAMES)
    (tmp_path / "ca.key").unlink()
    (tmp_path / missing).unlink()
    with pytest.raises(FedrecallError, match="some of"):
        certificates(tmp_path, NAMES)
