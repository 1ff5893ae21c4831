"""How the SuperNode is started: with the device's key, the server's authority, and no program but the device's own."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args
from flwr.supernode.runtime import run_clientapp

from fedrecall.client.device.app import app
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.device.join import supernode_command, supernode_environment
from fedrecall.client.device.node_key import make_node_key
from fedrecall.client.device.own_app import main
from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError

from ...house import ROOT
from .small_devices import UNLIMITED, invitation_of, world_of

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def device_in(folder: Path, **changes: object) -> DeviceFolder:
    world, task, _ = world_of()
    folder.mkdir(mode=0o700)
    return DeviceFolder.enrol(folder, replace(invitation_of(world, task, 3), **changes), UNLIMITED)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_server_and_the_device_prove_who_they_are(tmp_path: Path) -> None:
    device = device_in(tmp_path / "device", address="recall.example.org:9092", root_certificates=PEM)
    command = supernode_command(device.path, 4321)
    assert "--insecure" not in command and option(command, "--superlink") == "recall.example.org:9092"
    assert Path(option(command, "--root-certificates")).read_text() == PEM
    key = Path(option(command, "--auth-supernode-private-key"))
    loaded = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey) and isinstance(loaded.curve, ec.SECP384R1)
    assert (option(command, "--host"), option(command, "--port")) == ("127.0.0.1", "4321")
    for path in device.path.iterdir():
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_on_one_machine_it_may_be_tried_without(tmp_path: Path) -> None:
    command = supernode_command(device_in(tmp_path / "device").path, 1)
    assert "--insecure" in command and "--root-certificates" not in command


@pytest.mark.parametrize("name", ["plain", "with space", 'with "quotes"', "with\\backslash", "a=b", "ünï"])
def test_flower_reads_the_name_of_the_folder_as_it_is(name: str, tmp_path: Path) -> None:
    device = device_in(tmp_path / name)
    said = option(supernode_command(device.path, 1), "--node-config")
    assert parse_config_args([said]) == {"device": str(tmp_path / name)}


@pytest.mark.parametrize("name", ["it's", "two\nlines"])
def test_a_name_that_flower_cannot_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="move the device"):
        supernode_command(device_in(tmp_path / name).path, 1)


def test_the_only_programs_are_the_nodes_and_the_devices_own_app(tmp_path: Path) -> None:
    """What Flower looks up by the PATH: of agents, models and connectors that a run might ask for, nothing is found."""
    device = device_in(tmp_path / "device")
    environment = supernode_environment(device.path, sys.executable)
    assert environment["FLWR_HOME"] == str(device.path / "flower")
    programs = Path(environment["PATH"])
    assert {path.name for path in programs.iterdir()} == {"flower-supernode", "flower-superexec", "flwr-clientapp"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in programs.iterdir()} == {0o700}
    assert Path(supernode_command(device.path, 1)[0]) == programs / "flower-supernode"
    for missing in ("flwr-agentapp", "flwr-serverapp", "flwr-model", "flwr-connector", "flwr", "sh"):
        with pytest.raises(FileNotFoundError):
            subprocess.run([missing], env=environment, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flag"),
    [
        ("flower-supernode", "--node-config"),
        ("flower-superexec", "--runtime-api-address"),
        ("flwr-clientapp", "--runtime-api-address"),
    ],
)
def test_each_program_is_what_it_is_called(program: str, flag: str, tmp_path: Path) -> None:
    environment = supernode_environment(device_in(tmp_path / "device").path, sys.executable)
    silent = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([program, "--help"], env=environment | silent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and flag in done.stdout, done.stderr


def test_an_app_that_a_run_brings_is_neither_installed_nor_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Flower's process both ways to a bundle's code lead to the device's app; the rest of it runs as it is."""
    monkeypatch.setattr(run_clientapp, "install_from_fab", run_clientapp.install_from_fab)
    monkeypatch.setattr(run_clientapp, "get_load_client_app_fn", run_clientapp.get_load_client_app_fn)
    monkeypatch.setattr(sys, "argv", ["flwr-clientapp", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert run_clientapp.install_from_fab(b"no bundle at all", skip_prompt=True) is None
    assert run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("a", "1", "f") is app


def test_a_flower_that_loads_apps_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(run_clientapp, "install_from_fab")
    with pytest.raises(FedrecallError, match="install_from_fab"):
        main()


def test_a_key_pair_is_made_once_and_mended_from_its_private_half(tmp_path: Path) -> None:
    public = make_node_key(tmp_path)
    private, line = (tmp_path / "node.key").read_bytes(), public.read_bytes()
    assert public.name == "node.key.pub" and line.startswith(b"ecdsa-sha2-nistp384 ")
    own = load_ssh_private_key(private, None).public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey) and own == load_ssh_public_key(line)
    public.unlink()
    assert make_node_key(tmp_path).read_bytes() == line and (tmp_path / "node.key").read_bytes() == private
    assert {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("node.key", "node.key.pub")} == {0o600}
    (tmp_path / "node.key").write_bytes(b"no key")
    with pytest.raises(CorruptArtefact):
        make_node_key(tmp_path)
