"""A device as it really runs: `device join`, a SuperLink, and a run whose app bundle brings code of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fedrecall.protocol.plan import Mechanism
from fedrecall.simulations.training.quiet import SILENCE

from .client.device.small_devices import invitation_of, world_of
from .house import ROOT

CLI = [sys.executable, "-m", "fedrecall.cli", "device"]
BUNDLE = """
[project]
name = "hostile"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "hostile"
[tool.flwr.app.components]
serverapp = "hostile.server:app"
clientapp = "hostile.client:app"
[tool.flwr.app.config]
"""
DEVICE_SIDE = """
import os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
Path(os.environ["PLACE"], "ran-on-" + os.environ["NODE"]).touch()
app = ClientApp()
@app.query()
def query(message, context):
    return Message(RecordDict({"stolen": ConfigRecord({"x": 1})}), reply_to=message)
"""
SERVER_SIDE = """
import json, time
from pathlib import Path
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.3)
    asks = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
    asked, answers = list(grid.push_messages(asks)), []
    while len(answers) < 2:
        answers += [sorted(reply.content) for reply in grid.pull_messages(asked) if reply.has_content()]
        time.sleep(0.3)
    Path("{place}", "answers").write_text(json.dumps(sorted(answers)))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait(what: str, there: Callable[[], bool], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends, f"{what} took more than {seconds} s"
        time.sleep(0.2)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_code_that_a_run_brings_runs_on_flowers_node_and_not_on_a_device(tmp_path: Path) -> None:
    """The control is a plain SuperNode, which runs it: without that the test would prove nothing."""
    port, home = free_port(), tmp_path / "flower"
    for name, text in (
        ("client", DEVICE_SIDE),
        ("server", SERVER_SIDE.replace("{place}", str(tmp_path))),
        ("__init__", ""),
    ):
        (tmp_path / "app" / "hostile").mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / "hostile" / f"{name}.py").write_text(text)
    (tmp_path / "app" / "pyproject.toml").write_text(BUNDLE)
    home.mkdir()
    connection = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | SILENCE | {"PATH": programs, "PYTHONPATH": str(ROOT), "FLWR_HOME": str(home)}
    environment |= {"PLACE": str(tmp_path), "OMP_NUM_THREADS": "1"}

    world, task, _ = world_of(
        simulated=False, mechanisms=(Mechanism(name="rounds", clip_norm=0.3, noise_multiplier=5.0),)
    )
    replace(invitation_of(world, task, 3), address=f"127.0.0.1:{port}").save(tmp_path / "invitation.json")
    device = tmp_path / "device"
    enrol = [
        "init",
        str(device),
        "--invitation",
        str(tmp_path / "invitation.json"),
        "--epsilon",
        "2",
        "--delta",
        "1e-5",
    ]
    subprocess.run([*CLI, *enrol], env=environment, check=True, stdout=subprocess.DEVNULL)

    with ExitStack() as stack:

        def start(name: str, command: list[str]) -> "subprocess.Popen[bytes]":
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            out = stack.enter_context((tmp_path / f"{name}.out").open("wb"))
            own = environment | {"NODE": name}
            process = subprocess.Popen(command, env=own, cwd=tmp_path, stdout=out, stderr=log)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            return process

        start("link", ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)])
        wait("the SuperLink", lambda: listens(port))
        plain = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
        start("plain", plain)
        joined = start("device", [*CLI, "join", str(device), "--format", "json"])
        run = ["flwr", "run", str(tmp_path / "app"), "here", "--format", "json"]
        subprocess.run(run, env=environment, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=120)
        wait("the run", (tmp_path / "answers").exists)
        node = json.loads((device / "status.json").read_text())
        joined.send_signal(signal.SIGTERM)
        assert joined.wait(60) == 0
        assert json.loads((tmp_path / "device.out").read_text())["state"] == "stopped"
        assert node["state"] == "running" and not Path(f"/proc/{node['pid']}").exists()
    assert json.loads((tmp_path / "answers").read_text()) == [["device"], ["stolen"]]
    assert [path.name for path in tmp_path.glob("ran-on-*")] == ["ran-on-plain"]
    assert not (device / "flower" / "apps").exists()
