"""Flower's own programs, as child processes: a SuperLink on this machine alone, and ``flwr`` to steer it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fedrecall
from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.files import write_atomic
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.operation.certificates import Certificates

SILENCE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
}
"""Nothing phones home, nothing is installed while it runs, and no log lists each call: who called is who took part."""
_NAME, _LOOPBACK, _TIMEOUT_S = "job", "127.0.0.1", 120.0
_APP = """# The Flower app of a deployment. It holds no code: every machine runs the fedrecall that is installed there.
[project]
name = "fedrecall-deployment"
version = "0.1.0"
description = "fedrecall on devices and a server"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedrecall"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "fedrecall.server.deployment.app:app"
clientapp = "fedrecall.client.device.app:app"

[tool.flwr.app.config]
job = ""
"""


class SuperLink:
    """The SuperLink of one job, with Flower's own files in ``folder``.

    Attributes:
        port: on which it listens, on this machine alone; a free one, kept for as long as this object lives.
    """

    def __init__(self, folder: Path, own: Certificates, database: Path | None) -> None:
        """Write what Flower reads: the connection, and an app without code.

        Without a ``database`` its state is in memory alone. With one, updates that no noise has reached yet are
        written to disk, and stay in the file after they were read.
        """
        self._folder, self._own, self._database = folder, own, database
        self.port = free_port()
        connection = f'address = "{_LOOPBACK}:{self.port}"\nroot-certificates = {json.dumps(str(own.authority))}\n'
        settings = f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\n{connection}'
        write_atomic(folder / "config.toml", settings.encode())
        write_atomic(folder / "app" / "pyproject.toml", _APP.encode())
        write_atomic(folder / "app" / "README.md", b"The app of a fedrecall deployment.\n")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of Flower's programs: silent, with the code and the programs of this very process."""
        code = [str(Path(fedrecall.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        own = {"FLWR_HOME": str(self._folder), "PYTHONPATH": _joined(code), "PATH": _joined(programs)}
        # One thread: a sum over devices needs no more, and idle ones spin.
        return dict(os.environ) | SILENCE | own | {"OMP_NUM_THREADS": "1"}

    @property
    def command(self) -> list[str]:
        """What starts it: node authentication on, and nothing installed."""
        return [
            *(self._program("flower-superlink"), "--host", _LOOPBACK, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self._own.authority), "--ssl-certfile", str(self._own.server)),
            *("--ssl-keyfile", str(self._own.key), "--enable-supernode-auth"),
            "--disable-runtime-dependency-installation",
            *(() if self._database is None else ("--database", str(self._database))),
        ]

    def answers(self) -> bool:
        """Whether somebody listens."""
        try:
            socket.create_connection((_LOOPBACK, self.port), 1.0).close()
        except OSError:
            return False
        return True

    def start_run(self, job: Path) -> None:
        """Start the rounds of ``job``; raises FedrecallError where Flower does not."""
        self._flwr("run", str(self._folder / "app"), _NAME, "--run-config", f"job={json.dumps(str(job))}")

    def door(self, host: str, port: int, outside: Certificates, max_bytes: int) -> list[str]:
        """Return what starts the door to this SuperLink, with the certificates that devices see."""
        return [
            *(sys.executable, "-m", "fedrecall.server.operation.door", "--host", host, "--port", str(port)),
            *("--certificate", str(outside.server), "--key", str(outside.key), "--max-bytes", str(max_bytes)),
            *("--upstream", f"https://{_LOOPBACK}:{self.port}", "--authority", str(self._own.authority)),
        ]

    def register_all(self, roster: Roster, *, check: bool) -> None:
        """Register every enrolled key that has no node yet; raises FedrecallError.

        With ``check`` also those whose node the SuperLink does not know, because its database is a new one.
        """
        rows = roster.enrolled()
        lost = set(roster.nodes().values()) - self.nodes() if check and rows else set()
        for row in rows:
            if row.node is not None and row.node not in lost:
                continue
            path = self._folder / "register.pub"
            write_atomic(path, row.key.encode() + b"\n")
            try:
                node = int(self._flwr("supernode", "register", str(path), _NAME)["node-id"])
            except FedrecallError:
                # Killed between registering a key and noting its node: the one node that nobody is.
                strays = self.nodes() - set(roster.nodes().values())
                if len(strays) != 1:
                    raise
                node = strays.pop()
            roster.registered(row.number, node)

    def nodes(self) -> set[int]:
        """Return the nodes that the SuperLink knows, connected or not."""
        found = self._flwr("supernode", "list", _NAME)["nodes"]
        return {int(node["node-id"]) for node in found if node["status"] != "unregistered"}

    def _flwr(self, *arguments: str) -> Mapping[str, Any]:
        command = [self._program("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command, env=self.environment, cwd=self._folder, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise FedrecallError(f"flwr {arguments[0]} took over {_TIMEOUT_S:.0f} s: see superlink.log") from error
        try:
            # Above the answer there may be words for people.
            found = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            found = {}
        if done.returncode or not isinstance(found, dict) or not found.get("success"):
            said = (done.stdout + done.stderr).strip()[-500:]
            raise FedrecallError(f"flwr {arguments[0]} failed (code {done.returncode}): {said}")
        return found

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.environment["PATH"])
        if found is None:
            raise FedrecallError(f"{name} is not installed beside {sys.executable}: install fedrecall again")
        return found


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with ExitStack() as stack:
        port: int = stack.enter_context(socket.create_server((_LOOPBACK, 0))).getsockname()[1]
        return port


def _joined(parts: list[str]) -> str:
    return os.pathsep.join(part for part in parts if part)
