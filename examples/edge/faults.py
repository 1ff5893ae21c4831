"""Break a deployment in every way that a network, a power cut or a stranger would, and say what came of it.

Each scenario starts real processes on this machine, prints one line of JSON, and fails if the outcome is not the one
that docs/deploy.md promises.
"""

import argparse
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from deployment import Deployment, deployed, tampered

from fedrecall.protocol.invitation import Invitation
from fedrecall.server.operation.certificates import certificates

LARGER = """arrays, header = unpack(honest(self, data), what="mine")
        return pack({name: numpy.full_like(array, 1000) for name, array in arrays.items()}, header)"""
SLOW = """time.sleep({seconds})
        return honest(self, data)"""

PARTS = ("flower-superlink", "fedrecall.server.operation.door", "flwr-serverapp", "server up")
"""What dies in turn: all that runs on the server's side."""


def main() -> None:
    """Run the scenarios that the command line names, all of them if it names none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help=f"of {', '.join(SCENARIOS)}")
    given = parser.parse_args()
    for name in given.scenario or SCENARIOS:
        began = time.monotonic()
        found = SCENARIOS[name](given.folder.resolve() / name)
        print(json.dumps({"scenario": name, **found, "seconds": round(time.monotonic() - began, 1)}), flush=True)


def strangers(folder: Path) -> dict[str, Any]:
    """A key that nobody registered, another authority, and an app that its owner changed; two honest devices beside."""
    with deployed(folder, devices=4, rounds=2, quorum=3, deadline=90) as d:
        for number in range(3):
            d.enrol(number)
        # Device 0's own invitation in the hands of somebody with another key.
        d.enrol(9, invitation=folder / "invitation-0.json")
        other = certificates(folder / "other-authority", ["127.0.0.1"]).authority.read_text()
        d.enrol(3)
        invitation = Invitation.load(folder / "invitation-3.json")
        elsewhere = json.loads(json.dumps(invitation.to_dict() | {"root_certificates": other}))
        (d.device(3) / "enrolment.json").write_text(json.dumps(elsewhere))
        up = d.up()
        d.wait(d.registered, 200)
        for number in (0, 1, 3, 9):
            d.join(number)
        d.join(2, PYTHONPATH=tampered(folder, LARGER))
        code, status = up.wait(), d.status()
        # Absent is whom the roster names and nobody is: device 3, whose node trusts another authority.
        outcome = {
            "exit_code": code,
            "connected_at_most": d.progress()["connected"],
            "refused": status["refused"],
            "honest_rounds": [d.charged(0), d.charged(1)],
            "stranger_rounds": d.charged(9),
            "wrong_authority_rounds": d.charged(3),
        }
        expect(code == 0 and outcome["connected_at_most"] == 3, outcome)
        expect(status["refused"] == {"absent": 2, "norm": 2}, outcome)
        expect(outcome["honest_rounds"] == [[0, 1]] * 2, outcome)
        expect(not outcome["stranger_rounds"] and not outcome["wrong_authority_rounds"], outcome)
        return outcome


def node_killed(folder: Path) -> dict[str, Any]:
    """Kill -9 of a SuperNode in the middle of a round: it comes back, and takes part again."""
    with deployed(folder, devices=3, rounds=4, quorum=3, deadline=100) as d:
        up = running(d)
        d.wait(lambda: d.done() >= 1 and d.progress().get("state") == "round", 200, every=0.1)
        victim = json.loads((d.device(1) / "status.json").read_text())["pid"]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        code = up.wait()
        outcome = {
            "exit_code": code,
            "rounds": d.done(),
            "victim_rounds": d.charged(1),
            "refused": d.status()["refused"],
            "seconds_after": round(time.monotonic() - killed, 1),
        }
        expect(code == 0 and d.done() == 4 and 3 in d.charged(1), outcome)
        return outcome


def server_killed(
    folder: Path, kills: int = 6, parts: Sequence[str] = PARTS, at_most_apart: float = 20.0
) -> dict[str, Any]:
    """Kill -9 of SuperLink, door, rounds and supervisor at random moments: no round twice, every charge stays."""
    rng, killed = random.Random(7), []
    rounds = max(10, kills)
    with deployed(folder, devices=3, rounds=rounds, quorum=2, deadline=60) as d:
        up = running(d)
        d.wait(lambda: d.done() >= 1, 300)
        charges = [server_charges(d)]
        for count in range(kills):
            time.sleep(rng.uniform(2, at_most_apart))
            name = parts[count % len(parts)]
            victim = await_part(name, d, up)
            if victim is None:
                break
            os.kill(victim, signal.SIGKILL)
            killed.append(name)
            if name == "server up":
                up.wait()
                up = d.up()
            charges.append(server_charges(d))
        code = up.wait()
        charges.append(server_charges(d))
        final = charges[-1]
        outcome = {
            "exit_code": code,
            "killed": killed,
            "rounds": d.done(),
            "rounds_charged": final,
            "device_rounds": [d.charged(number) for number in range(3)],
            "refused": d.status()["refused"],
        }
        expect(code == 0 and d.done() == rounds and len(killed) >= kills - 1, outcome)
        expect(final == sorted(set(final)), outcome)
        expect(all(later[: len(early)] == early for early, later in pairwise(charges)), outcome)
        return outcome


def superlink_killed(folder: Path) -> dict[str, Any]:
    """Kill -9 of the SuperLink at 20 random moments, up to 40 seconds apart."""
    return server_killed(folder, kills=20, parts=PARTS[:1], at_most_apart=40.0)


def straggler(folder: Path, deadline: float = 40.0) -> dict[str, Any]:
    """A device ten times slower than the deadline: each round ends by its deadline and five seconds."""
    with deployed(folder, devices=3, rounds=3, quorum=3, deadline=deadline) as d:
        for number in range(3):
            d.enrol(number)
        up = d.up()
        d.wait(d.registered, 200)
        d.join(0)
        d.join(1)
        d.join(2, PYTHONPATH=tampered(folder, SLOW.format(seconds=10 * deadline)))
        code = up.wait()
        log = (d.job / "rounds.log").read_text().splitlines()
        moments = [datetime.fromisoformat(line[:23].replace(",", ".")) for line in log if "is released" in line]
        took = [round((b - a).total_seconds(), 1) for a, b in pairwise(moments)]
        outcome = {"exit_code": code, "deadline_s": deadline, "rounds_s": took, "refused": d.status()["refused"]}
        expect(code == 0 and all(seconds <= deadline + 5 for seconds in took), outcome)
        expect(set(outcome["refused"]) <= {"late", "error"} and outcome["refused"].get("late", 0) >= 1, outcome)
        return outcome


def no_room(folder: Path) -> dict[str, Any]:
    """No room on the server's disk, then on a device's: a limit on the size of files stands in for a full one."""
    with deployed(folder, devices=3, rounds=8, quorum=2, deadline=60) as d:
        up = running(d, joined := {})
        d.wait(lambda: d.done() >= 1, 300)
        limit_files(up.pid, 4096)
        d.wait(lambda: d.progress().get("state") == "failed", 120)
        before = server_charges(d)
        time.sleep(30)
        starved, problem = server_charges(d), d.progress()["problem"]
        limit_files(up.pid, None)
        done = d.done()
        d.wait(lambda: d.done() >= done + 1, 120)
        limit_files(joined[1].pid, 4096)
        done = d.done()
        d.wait(lambda: d.done() >= done + 2, 240)
        without = d.charged(1)
        limit_files(joined[1].pid, None)
        code = up.wait()
        outcome = {
            "exit_code": code,
            "problem": problem,
            "rounds_charged": server_charges(d),
            "device_rounds": [d.charged(number) for number in range(3)],
            "refused": d.status()["refused"],
        }
        expect(starved == before and str(d.job) in problem and "no room" in problem, outcome)
        expect(code == 0 and d.done() == 8 and server_charges(d) == list(range(8)), outcome)
        expect(max(without) < max(d.charged(1)) and outcome["refused"].get("failed", 0) >= 1, outcome)
        return outcome


def limit_files(pid: int, most: int | None) -> None:
    """Let a process and all that it started write no file beyond ``most`` bytes; ``None`` lifts that."""
    for process in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (hard if most is None else most, hard))


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these started."""
    found = [pid]
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def running(d: Deployment, joined: dict[int, Any] | None = None) -> Any:
    """Enrol and start all of it; return the server's process, and note those of the devices in ``joined``."""
    for number in range(d.devices):
        d.enrol(number)
    up = d.up()
    d.wait(d.registered, 200)
    for number in range(d.devices):
        process = d.join(number)
        if joined is not None:
            joined[number] = process
    return up


def await_part(name: str, d: Deployment, up: Any) -> int | None:
    """Return the server's process of that name, once there is one; ``None`` when the server has ended."""
    while up.poll() is None:
        found = processes(name, str(d.job))
        if found:
            return found[0]
        time.sleep(0.2)
    return None


def server_charges(d: Deployment) -> list[int]:
    """Return the rounds that the server's ledger was charged for, in order."""
    lines = (d.job / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines if "round" in json.loads(line)]


def processes(*words: str) -> list[int]:
    """Return the processes whose command line, or that of whom they belong to, holds all of ``words``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and "fedrecall.server.operation.children" not in line:
            found.append(int(path.name))
    return sorted(found)


def expect(holds: bool, outcome: dict[str, Any]) -> None:
    """Fail with the whole outcome where it is not the promised one."""
    if not holds:
        raise RuntimeError(f"this is not what was promised: {json.dumps(outcome)}")


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "strangers": strangers,
    "node-killed": node_killed,
    "server-killed": server_killed,
    "superlink-killed": superlink_killed,
    "straggler": straggler,
    "no-room": no_room,
}

if __name__ == "__main__":
    main()
