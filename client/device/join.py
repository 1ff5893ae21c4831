"""How a device takes part: the Flower SuperNode that stands between its folder and the server, as a command.

Flower finds the programs that it starts by the PATH. The device's PATH holds three and no other: the SuperNode, what
starts its apps, and the device's own app (``fedrecall.client.device.own_app``) in the place of Flower's, which would
run code that the server sends. A run of any other kind (agents, models) finds no program.
"""

from pathlib import Path
from shlex import quote

from fedrecall.client.device.enrolment import enrolled
from fedrecall.client.device.node_key import PRIVATE, make_node_key
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_atomic

LOCK, STATUS, FLOWER, ROOTS, PROGRAMS = "join.lock", "status.json", "flower", "roots.pem", "programs"
_CALLS = {
    "flower-supernode": "-c 'from flwr.supernode.cli import flower_supernode; flower_supernode()'",
    "flower-superexec": "-c 'from flwr.supercore.cli import flower_superexec; flower_superexec()'",
    "flwr-clientapp": "-m fedrecall.client.device.own_app",
}


def supernode_command(folder: Path, port: int) -> list[str]:
    """Return the command line of the device's SuperNode; writes the server's authorities where it reads them.

    The server is authenticated by the invitation's authorities and the device by its key; without authorities (allowed
    on this machine alone) there is neither.

    Args:
        folder: of an enrolled device.
        port: a free one of this machine, on which the SuperNode and the app that it starts talk to each other.

    Raises:
        UsageError: the folder's name cannot be told to Flower, or no device is enrolled in it.
    """
    folder, invitation = folder.absolute(), enrolled(folder)
    command = [str(folder / PROGRAMS / "flower-supernode"), "--superlink", invitation.address]
    command += ["--host", "127.0.0.1", "--port", str(port), "--node-config", _node_config(folder)]
    if invitation.root_certificates is None:
        return [*command, "--insecure"]
    make_node_key(folder)
    roots = folder / ROOTS
    write_atomic(roots, invitation.root_certificates.encode(), mode=0o600)
    key = folder / PRIVATE
    return [*command, "--root-certificates", str(roots), "--auth-supernode-private-key", str(key)]


def supernode_environment(folder: Path, python: str) -> dict[str, str]:
    """Return what the SuperNode's environment needs besides the usual; writes the programs that its PATH names.

    Args:
        folder: of the device, in which Flower's own files stay too.
        python: the interpreter that has fedrecall and Flower.
    """
    programs = folder.absolute() / PROGRAMS
    for name, call in _CALLS.items():
        write_atomic(programs / name, f'#!/bin/sh\nexec {quote(python)} {call} "$@"\n'.encode(), mode=0o700)
    return {"FLWR_HOME": str(folder.absolute() / FLOWER), "PATH": str(programs)}


def _node_config(folder: Path) -> str:
    """Name the folder as Flower reads it: TOML in quotes, which may hold none of the same kind."""
    name = str(folder)
    if "'" in name or any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in name):
        raise UsageError(f"the folder's path {name!r} holds a quote or a control character: move the device elsewhere")
    return f"device='{name}'"
