"""Who is which device: one key, one number, one node, for as long as the job lives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.server.deployment.roster import Roster, normalised

from ...house import ROOT

OPEN_SSH = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH


def public_key(curve: ec.EllipticCurve | None = None) -> bytes:
    return ec.generate_private_key(curve or ec.SECP384R1()).public_key().public_bytes(*OPEN_SSH)


def test_each_key_gets_the_next_number_and_keeps_it(tmp_path: Path) -> None:
    keys = [public_key() for _ in range(3)]
    roster = Roster(tmp_path, devices=3)
    assert [roster.enrol(key).number for key in [*keys, *reversed(keys)]] == [0, 1, 2, 2, 1, 0]
    assert roster.nodes() == {}
    roster.registered(1, 2**64 - 5)
    again = Roster(tmp_path, devices=3)
    assert again.nodes() == {1: 2**64 - 5}
    assert again.enrol(keys[1]).node == 2**64 - 5


def test_a_plan_is_for_so_many_devices(tmp_path: Path) -> None:
    roster = Roster(tmp_path, devices=1)
    roster.enrol(public_key())
    with pytest.raises(UsageError, match="all 1 devices"):
        roster.enrol(public_key())
    assert len(roster.enrolled()) == 1


def test_a_comment_which_may_name_a_person_is_not_kept(tmp_path: Path) -> None:
    key = public_key()
    commented = key + b" somebody@their-laptop\n"
    assert normalised(commented) == normalised(key) == key.decode()
    roster = Roster(tmp_path, devices=2)
    assert roster.enrol(commented).number == roster.enrol(key).number
    assert "somebody" not in (tmp_path / "devices.json").read_text()


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"not a key",
        public_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*OPEN_SSH),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    ],
    ids=["empty", "text", "P-256", "Ed25519", "a private key"],
)
def test_another_kind_of_key_is_refused(key: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="P-384"):
        Roster(tmp_path, devices=2).enrol(key)
    assert not (tmp_path / "devices.json").exists()


def test_a_roster_that_two_devices_share_is_refused(tmp_path: Path) -> None:
    roster = Roster(tmp_path, devices=2)
    for number in range(2):
        roster.enrol(public_key())
        roster.registered(number, 100 + number)
    path = tmp_path / "devices.json"
    sound = json.loads(path.read_text())
    first, second = sound["devices"]
    for rows in (
        [first, second | {"node": first["node"]}],
        [first, second | {"key": first["key"]}],
        [first, second | {"number": 0}],
        [first, second, second | {"number": 2, "key": public_key().decode(), "node": 9}],
    ):
        path.write_text(json.dumps({"devices": rows}))
        with pytest.raises(CorruptArtefact, match=r"devices\.json"):
            roster.nodes()
    path.write_text("[]")
    with pytest.raises(CorruptArtefact, match="no roster"):
        roster.nodes()


def test_two_operators_at_once_give_no_number_twice(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.server.deployment.test_roster import public_key\n"
        "from fedrecall.server.deployment.roster import Roster\n"
        "for _ in range(15): Roster(Path(sys.argv[2]), devices=30).enrol(public_key())"
    )
    root = str(ROOT)
    command = [sys.executable, "-c", code, root, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert [row.number for row in Roster(tmp_path, devices=30).enrolled()] == list(range(30))
