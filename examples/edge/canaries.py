"""Audit a deployment with canaries: devices of an auditor's beside two honest ones, every part a process.

Unit ``user``: in each round each device of the auditor's answers with a known direction of the clip norm, or declines,
by a fair coin. Then the auditor reads what was released, and nothing else of the server.

Unit ``interaction``: events are put into the auditor's devices by fair coins, before they join. Their app is the honest
one; the auditor keeps what they send, and compares it with what each event changes in it.

Exit code 5: a claim is broken.
"""

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from deploy import released, state_bytes
from deployment import Deployment, changed, deployed, tampered

from fedrecall.cli.audit import LEAK
from fedrecall.client.device.enrolment import SENT, STATE
from fedrecall.protocol.tensors import unpack
from fedrecall.server.deployment.job import Job
from fedrecall.simulations.audit.deployments.devices import DeployedCanaries, audit_deployed
from fedrecall.simulations.audit.deployments.events import EventCanaries, audit_events
from fedrecall.simulations.audit.watching.attempt import Attempt

HONEST = 2
CANARY = """from fedrecall.protocol.errors import BudgetExhausted
        canary, own = unpack(open({path!r}, "rb").read(), what="the canary")
        round = unpack(data, what="the ask")[1]["round"]
        if not own["coins"][round]:
            raise BudgetExhausted("the coin says out")
        arrays, header = unpack(honest(self, data), what="mine")
        return pack({{name: numpy.asarray(canary[name][round]) for name in arrays}}, header)"""
"""A device of the auditor's: enrolled, asked and charged like any other, with an answer of its own."""

WEAKER = """
import sys
if b"{process}" in open("/proc/self/cmdline", "rb").read():
    from dataclasses import replace
    from fedrecall.{folder} import {module}
    sound = {module}.gaussian_sum
    def weaker(sums, mechanism, noise):
        return sound(sums, replace(mechanism, noise_multiplier={factor} * mechanism.noise_multiplier), noise)
    {module}.gaussian_sum = weaker
"""
"""A server, or a device, whose noise is not what its plan says; no setting of a deployment makes it so."""
SERVER = {"process": "flwr-serverapp", "folder": "server.training", "module": "rounds"}
DEVICE = {"process": "fedrecall.client.device.own_app", "folder": "client.training", "module": "trainer"}

EVENT_ROUNDS, EVENT_ITEMS = 6, 512


def main() -> None:
    """Parse the command line, deploy, audit, and print what was found; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for devices and server")
    parser.add_argument("--unit", choices=["user", "interaction"], default="user")
    parser.add_argument("--rounds", type=int, help="24; 6 for unit interaction")
    parser.add_argument("--canaries", type=int, default=3, help="devices of the auditor's")
    parser.add_argument(
        "--epsilon", type=float, help="of all rounds: 24, little noise, that few coins see; 8 for events"
    )
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds of a round at most")
    parser.add_argument("--noise", type=float, default=1.0, help="planted: the server's, or devices', noise times this")
    given = parser.parse_args()
    began = time.monotonic()
    attempts, facts = with_directions(given) if given.unit == "user" else with_events(given)
    facts |= {"seconds": round(time.monotonic() - began, 1)}
    broken = [attempt.name for attempt in attempts if attempt.verdict == "broken"]
    for attempt in attempts:
        print(line(attempt))
    print(f"BROKEN: {', '.join(broken)}" if broken else "No claim was broken.")
    print(json.dumps({"broken": broken, **facts, "attempts": [attempt.to_dict() for attempt in attempts]}))
    sys.exit(LEAK if broken else 0)


def with_directions(given: argparse.Namespace) -> tuple[list[Attempt], dict[str, Any]]:
    """Deploy for unit ``user``; return what the auditor found, and what it cost."""
    rounds = given.rounds or 24
    canaries = DeployedCanaries.flip(rounds, given.canaries, secrets.randbits(63))
    devices, folder = given.canaries + HONEST, given.folder.resolve()
    sizes = {"devices": devices, "rounds": rounds, "quorum": devices, "keep": max(2, rounds)}
    with deployed(folder, epsilon=given.epsilon or 24.0, deadline=given.deadline, **sizes) as deployment:
        finished(train(deployment, canaries, planted(folder, given.noise, SERVER)), folder)
        return audit_deployed(deployment.job, canaries), cost(deployment, canaries)


def with_events(given: argparse.Namespace) -> tuple[list[Attempt], dict[str, Any]]:
    """Deploy for unit ``interaction``; return what the auditor found, and what it cost."""
    rounds, devices, folder = given.rounds or EVENT_ROUNDS, given.canaries + HONEST, given.folder.resolve()
    sizes = {"devices": devices, "rounds": rounds, "quorum": devices, "keep": max(2, rounds), "items": EVENT_ITEMS}
    plan: dict[str, Any] = {"unit": "interaction", "epsilon": given.epsilon or 8.0}
    with deployed(folder, deadline=given.deadline, **plan, **sizes) as deployment:
        canaries = EventCanaries.flip(Job.load(deployment.job).task, given.canaries, secrets.randbits(63))
        for number in range(devices):
            own = [f"i{item}" for item in canaries.history(number)] if number < given.canaries else None
            deployment.enrol(number, items=own)
        weaker = planted(folder, given.noise, DEVICE)
        up = deployment.up()
        deployment.wait(deployment.registered, 300.0)
        with recorded(deployment, given.canaries) as sent:
            for number in range(devices):
                deployment.join(number, **(weaker if number < given.canaries else {}))
            finished(up.wait(), folder)
        times = released(deployment)
        facts = {
            "canaries": canaries.coins.size,
            "in": int(canaries.coins.sum()),
            "updates": [len(updates) for updates in sent],
            "refused": deployment.status()["refused"],
            "seconds_a_round": median(round(b - a, 1) for a, b in pairwise(times)),
        }
        return audit_events(deployment.job, canaries, sent), facts


@contextmanager
def recorded(deployment: Deployment, devices: int) -> Iterator[list[dict[int, bytes]]]:
    """Keep what the first ``devices`` send, by round: a device keeps its last answer itself, in its folder."""
    sent: list[dict[int, bytes]] = [{} for _ in range(devices)]
    over = threading.Event()

    def look() -> None:
        for number, updates in enumerate(sent):
            path = deployment.device(number) / STATE
            if path.exists():
                data = unpack(path.read_bytes(), what=str(path))[0][SENT].tobytes()
                updates[unpack(data, what="an update")[1]["round"]] = data

    def watch() -> None:
        while not over.wait(0.5):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sent
    finally:
        over.set()
        watcher.join()
        look()


def planted(folder: Path, factor: float, where: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process ``where`` noise is ``factor`` times what it should be."""
    return {} if factor == 1.0 else {"PYTHONPATH": changed(folder, WEAKER.format(factor=factor, **where))}


def finished(code: int, folder: Path) -> None:
    """Raise RuntimeError unless the server ended well."""
    if code:
        raise RuntimeError(f"the server ended with {code}: see the logs in {folder}")


def train(deployment: Deployment, canaries: DeployedCanaries, weaker: dict[str, str]) -> int:
    """Enrol all devices, the auditor's first, start everything, and return the server's exit code."""
    for number in range(deployment.devices):
        deployment.enrol(number)
    job, audited = Job.load(deployment.job), canaries.coins.shape[1]
    up = deployment.up(**weaker)
    deployment.wait(deployment.registered, 300.0)
    for number in range(audited):
        path = deployment.folder / f"canary-{number}.safetensors"
        path.write_bytes(canaries.answers(number, job))
        deployment.join(number, PYTHONPATH=tampered(deployment.folder, CANARY.format(path=str(path))))
    for number in range(audited, deployment.devices):
        deployment.join(number)
    return up.wait()


def cost(deployment: Deployment, canaries: DeployedCanaries) -> dict[str, Any]:
    """Return what the canaries took, and whether their devices' ledgers tell the coins again."""
    rounds, devices = canaries.coins.shape
    inside, times = int(canaries.coins.sum()), released(deployment)
    ask = (deployment.job / "releases" / "latest" / "model.safetensors").stat().st_size
    return {
        "canaries": rounds * devices,
        "in": inside,
        "as_flipped": all(deployment.charged(n) == canaries.coins[:, n].nonzero()[0].tolist() for n in range(devices)),
        "refused": deployment.status()["refused"],
        "seconds_a_round": median(round(b - a, 1) for a, b in pairwise(times)),
        "bytes_up": inside * max(state_bytes(deployment, number) for number in range(devices)),
        "bytes_down": rounds * devices * ask,
    }


def line(attempt: Attempt) -> str:
    """Return one attempt as a line for people."""
    known, mu = attempt.detail, attempt.detail["mu"]
    what = "all rounds" if attempt.unit == "interaction" else "one round"
    said = [f"{what}: epsilon >= {attempt.score:.2f} of {attempt.claimed_epsilon:.2f} claimed"]
    if mu is not None:
        said += [f"mu >= {mu:.2f} of {known['claimed_mu']:.2f}"]
    if "whole_run" in known:
        said += [f"a device in all rounds: epsilon >= {known['whole_run']:.2f} of {known['whole_run_claimed']:.2f}"]
    return f"{attempt.name}: {attempt.verdict}. {', '.join(said)}. Power: {attempt.power}."


if __name__ == "__main__":
    main()
