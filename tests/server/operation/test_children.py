"""Children come back when they die, and die with their parent, whoever is killed and how."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.lock import is_held, only_one
from fedrecall.server.operation.children import MOST_S, BackOff, Child

from ...house import ROOT

CODE = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"


def child(folder: Path, code: str = CODE) -> Child:
    command = [sys.executable, "-c", code, str(folder / "pids")]
    return Child(command, log=folder / "log", cwd=folder, environment=os.environ | {"PYTHONPATH": str(ROOT)})


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it does not come to pass"
        time.sleep(0.05)


def test_a_child_that_is_killed_comes_back_and_stop_ends_it(tmp_path: Path) -> None:
    kept = child(tmp_path)
    try:
        assert kept.keep()
        until(lambda: len(pids(tmp_path)) == 1)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        until(lambda: kept.keep() and len(pids(tmp_path)) == 2)
        assert kept.starts == 2
    finally:
        kept.stop()
    assert not any(map(alive, pids(tmp_path)))


def test_a_killed_tether_leaves_nothing_behind(tmp_path: Path) -> None:
    kept = child(tmp_path)
    try:
        kept.keep()
        until(lambda: len(pids(tmp_path)) == 1)
        (first,) = pids(tmp_path)
        tether = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(tether, signal.SIGKILL)
        until(lambda: kept.keep() and len(pids(tmp_path)) == 2)
        assert not alive(first)
    finally:
        kept.stop()


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.server.operation.test_children import child\n"
        "child(Path(sys.argv[2])).keep(); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path)], cwd=ROOT)
    until(lambda: len(pids(tmp_path)) == 1)
    parent.kill()
    parent.wait()
    until(lambda: not alive(pids(tmp_path)[0]))


def test_what_does_not_listen_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecall.server.operation.children._STOP_S", -4.0)
    kept = child(tmp_path, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {CODE}")
    kept.keep()
    until(lambda: len(pids(tmp_path)) == 1)
    kept.stop()
    until(lambda: not alive(pids(tmp_path)[0]))


def test_pauses_double_to_a_minute_and_start_anew_after_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fedrecall.server.operation.children.time.monotonic", lambda: now[0])

    def pause(back_off: BackOff, after_s: float) -> float:
        back_off.failed(after_s=after_s)
        began = now[0]
        while not back_off.is_due():
            now[0] += 0.5
        return now[0] - began

    back_off = BackOff()
    assert back_off.is_due()
    assert [pause(back_off, 3.0) for _ in range(9)] == [1, 2, 4, 8, 16, 32, MOST_S, MOST_S, MOST_S]
    assert [pause(back_off, 300.0), pause(back_off, 3.0)] == [1, 2]


def test_one_process_holds_a_lock_and_a_kill_lifts_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_held(path)
    with only_one(path, "busy"):
        with pytest.raises(FedrecallError, match="busy"), only_one(path, "busy"):
            pass
        assert is_held(path)
    code = (
        "import sys, time; from pathlib import Path; from fedrecall.protocol.lock import only_one\n"
        "with only_one(Path(sys.argv[1]), 'busy'): time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    until(lambda: is_held(path))
    other.kill()
    other.wait()
    assert not is_held(path)
