"""Real processes under supervision: restarted with back-off, stopped with all their children, one instance a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedrecall.client.device.supervise import Backoff
from fedrecall.protocol.errors import DataError, FedrecallError
from fedrecall.protocol.lock import only_one

from ...house import ROOT

DRIVER = """
import json, sys
from pathlib import Path
from fedrecall.protocol.lock import only_one
from fedrecall.client.device.supervise import Backoff, supervise
settings = json.loads(sys.argv[1])
def told(status):
    print(json.dumps(vars(status)), flush=True)
with only_one(Path(settings["lock"]), "busy") as held:
    supervise(
        lambda: settings["command"], environment=settings["environment"], on_change=told, chance=lambda: 0.5,
        backoff=Backoff(**settings["backoff"]), grace_s=settings["grace_s"], inherited=[held],
    )
print(json.dumps({"state": "returned"}), flush=True)
"""
QUICK = {"first_s": 0.04, "most_s": 0.3, "steady_s": 60.0}


@contextmanager
def supervised(
    tmp_path: Path,
    code: str,
    *,
    grace_s: float = 20.0,
    backoff: dict[str, float] = QUICK,
    program: str = sys.executable,
) -> Iterator[tuple["subprocess.Popen[str]", Callable[[], dict[str, Any]]]]:
    """Yield a process that supervises ``python -c code``, and what returns its next status."""
    settings = {
        "command": [program, "-c", code],
        "environment": {"PLACE": str(tmp_path)},
        "backoff": backoff,
        "grace_s": grace_s,
        "lock": str(tmp_path / "lock"),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = process.stdout
    try:
        yield process, lambda: json.loads(lines.readline())
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines.close()


def gone(pid: int) -> bool:
    """Whether a process has ended, or ends within 5 seconds; a zombie has ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
        time.sleep(0.05)
    return False


def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


FAMILY = """
import os, signal, subprocess, sys, time
from pathlib import Path
place = Path(os.environ["PLACE"])
{child}
own = subprocess.Popen([sys.executable, "-c", {grandchild!r}])
(place / "pids").write_text(f"{{os.getpid()}} {{own.pid}}\\n")
while True:
    time.sleep(0.05)
"""
CLEAN = """
def bye(*_):
    (place / "bye").write_text("bye\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
DEAF_GRANDCHILD = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(os.environ["PLACE"] + "/deaf", "w") as file:
    file.write("deaf\\n")
time.sleep(600)
"""


def test_a_child_that_dies_is_started_again_later_and_later(tmp_path: Path) -> None:
    with supervised(tmp_path, "raise SystemExit(3)") as (process, status):
        seen = []
        while not seen or seen[-1]["restarts"] < 5:
            seen.append(status())
        process.terminate()
        while status()["state"] != "stopped":
            pass
        assert status() == {"state": "returned"} and process.wait(5) == 0
    assert [s["state"] for s in seen[:4]] == ["running", "waiting", "running", "waiting"]
    assert [s["restarts"] for s in seen if s["state"] == "running"] == [0, 1, 2, 3, 4, 5]
    waits = [s["wait_s"] for s in seen if s["state"] == "waiting"]
    assert waits == [0.03, 0.06, 0.12, 0.225, 0.225], "doubled, never above the most, three quarters of it by chance"
    assert {s["last_exit"] for s in seen[1:]} == {3} and seen[0]["last_exit"] is None


def test_the_waits_are_really_waited(tmp_path: Path) -> None:
    began = time.monotonic()
    with supervised(tmp_path, "raise SystemExit(3)", backoff=QUICK | {"first_s": 0.4, "most_s": 0.4}) as (_, status):
        while status()["restarts"] < 3:
            pass
    assert time.monotonic() - began > 3 * 0.3


def test_a_child_that_lived_long_is_started_again_soon(tmp_path: Path) -> None:
    with supervised(tmp_path, "raise SystemExit(0)", backoff=QUICK | {"steady_s": 0.0}) as (_, status):
        seen = [status() for _ in range(8)]
    assert {s["wait_s"] for s in seen if s["state"] == "waiting"} == {0.03}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_child_end_cleanly_and_takes_its_children_along(number: int, tmp_path: Path) -> None:
    with supervised(tmp_path, FAMILY.format(child=CLEAN, grandchild=DEAF_GRANDCHILD)) as (process, status):
        assert status()["state"] == "running"
        child, grandchild = map(int, wait_for(tmp_path / "pids").split())
        wait_for(tmp_path / "deaf")
        process.send_signal(number)
        assert status() | {"wait_s": 0} == {"state": "stopped", "pid": None, "restarts": 0, "last_exit": 0, "wait_s": 0}
        assert status() == {"state": "returned"} and process.wait(5) == 0
        assert (tmp_path / "bye").exists() and gone(child) and gone(grandchild)


def test_a_child_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    with supervised(tmp_path, FAMILY.format(child=DEAF, grandchild=DEAF_GRANDCHILD), grace_s=0.5) as (process, status):
        status()
        child, grandchild = map(int, wait_for(tmp_path / "pids").split())
        wait_for(tmp_path / "deaf")
        began = time.monotonic()
        process.terminate()
        assert status()["last_exit"] == -signal.SIGKILL and time.monotonic() - began >= 0.5
        assert gone(child) and gone(grandchild)


def test_a_stop_while_waiting_ends_the_wait(tmp_path: Path) -> None:
    with supervised(tmp_path, "raise SystemExit(3)", backoff=QUICK | {"first_s": 300.0, "most_s": 300.0}) as (
        process,
        status,
    ):
        while status()["state"] != "waiting":
            pass
        process.terminate()
        assert status()["state"] == "stopped" and process.wait(5) == 0


def test_what_a_dead_child_left_running_is_ended_before_the_next_start(tmp_path: Path) -> None:
    code = FAMILY.format(child="", grandchild=DEAF_GRANDCHILD).replace(
        "while True:", "while not (place / 'end').exists():"
    )
    with supervised(tmp_path, code) as (_, status):
        status()
        _, grandchild = map(int, wait_for(tmp_path / "pids").split())
        (tmp_path / "end").write_text("")
        assert status()["state"] == "waiting" and gone(grandchild)


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    with supervised(tmp_path, "", program="no-such-program") as (process, status):
        assert status() == {"state": "waiting", "pid": None, "restarts": 0, "last_exit": 127, "wait_s": 0.03}
        process.terminate()
        while status()["state"] != "stopped":
            pass


def test_the_child_has_its_environment_no_stdin_and_makes_private_files(tmp_path: Path) -> None:
    code = (
        "import json, os, sys, time; place = os.environ['PLACE']; open(place + '/made', 'w').close(); "
        "said = [sorted(k for k in os.environ if k != 'LC_CTYPE'), sys.stdin.read(), os.stat(place + '/made').st_mode];"
        "open(place + '/said', 'w').write(json.dumps(said) + '\\n'); print('never on stdout'); time.sleep(600)"
    )
    with supervised(tmp_path, code) as (process, status):
        status()
        names, stdin, mode = json.loads(wait_for(tmp_path / "said"))
        assert (names, stdin, mode & 0o777) == (["PLACE"], "", 0o600)
        process.terminate()
        assert status()["state"] == "stopped"


def test_one_instance_holds_the_lock_and_so_does_a_child_that_it_left_behind(tmp_path: Path) -> None:
    with supervised(tmp_path, FAMILY.format(child="", grandchild="import time; time.sleep(600)")) as (process, status):
        group = status()["pid"]
        wait_for(tmp_path / "pids")
        with pytest.raises(FedrecallError, match="busy"), only_one(tmp_path / "lock", "busy"):
            pass
        process.kill()
        process.wait()
        with pytest.raises(FedrecallError, match="busy"), only_one(tmp_path / "lock", "busy"):
            pass
        os.killpg(group, signal.SIGKILL)
        assert gone(group)
        with only_one(tmp_path / "lock", "busy"):
            pass
    with pytest.raises(DataError), only_one(tmp_path / "nowhere" / "lock", "busy"):
        pass


def test_the_delay_doubles_up_to_the_most_and_spreads_over_its_upper_half() -> None:
    backoff = Backoff(first_s=1.0, most_s=300.0)
    assert [backoff.delay_s(ends, 0.0) for ends in (1, 2, 3, 9, 10, 10_000)] == [0.5, 1.0, 2.0, 128.0, 150.0, 150.0]
    assert backoff.delay_s(3, 0.999999) == pytest.approx(4.0, rel=1e-5)
