"""Audit a deployment with canaries: devices of an auditor's beside two honest ones, every part a process.

In each round each device of the auditor's answers with a known direction of the clip norm, or declines, by a fair coin.
Then the auditor reads what was released, and nothing else of the server. Exit code 5: a claim is broken.
"""

import argparse
import json
import secrets
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from deploy import released, state_bytes
from deployment import Deployment, changed, deployed, tampered

from fedrecall.cli.audit import LEAK
from fedrecall.server.job import Job
from fedrecall.simulations.audit.attempt import Attempt
from fedrecall.simulations.audit.deployed import DeployedCanaries, audit_deployed

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
if b"flwr-serverapp" in open("/proc/self/cmdline", "rb").read():
    from dataclasses import replace
    from fedrecall.server import rounds
    sound = rounds.gaussian_sum
    def weaker(sums, mechanism, noise):
        return sound(sums, replace(mechanism, noise_multiplier={factor} * mechanism.noise_multiplier), noise)
    rounds.gaussian_sum = weaker
"""
"""A server whose noise is not what its plan says; no setting of a deployment makes it so."""


def main() -> None:
    """Parse the command line, deploy, audit, and print what was found; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for devices and server")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--canaries", type=int, default=3, help="devices of the auditor's")
    parser.add_argument("--epsilon", type=float, default=24.0, help="of all rounds: little noise, that few coins see")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds of a round at most")
    parser.add_argument("--noise", type=float, default=1.0, help="planted: the server's noise, times this")
    given = parser.parse_args()
    canaries = DeployedCanaries.flip(given.rounds, given.canaries, secrets.randbits(63))
    devices, folder = given.canaries + HONEST, given.folder.resolve()
    sizes = {"devices": devices, "rounds": given.rounds, "quorum": devices, "keep": max(2, given.rounds)}
    began = time.monotonic()
    with deployed(folder, epsilon=given.epsilon, deadline=given.deadline, **sizes) as deployment:
        weaker = {} if given.noise == 1.0 else {"PYTHONPATH": changed(folder, WEAKER.format(factor=given.noise))}
        code = train(deployment, canaries, weaker)
        if code:
            raise RuntimeError(f"the server ended with {code}: see the logs in {folder}")
        attempts = audit_deployed(deployment.job, canaries)
        facts = cost(deployment, canaries) | {"seconds": round(time.monotonic() - began, 1)}
    broken = [attempt.name for attempt in attempts if attempt.verdict == "broken"]
    for attempt in attempts:
        print(line(attempt))
    print(f"BROKEN: {', '.join(broken)}" if broken else "No claim was broken.")
    print(json.dumps({"broken": broken, **facts, "attempts": [attempt.to_dict() for attempt in attempts]}))
    sys.exit(LEAK if broken else 0)


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
    said = [f"one round: epsilon >= {attempt.score:.2f} of {attempt.claimed_epsilon:.2f} claimed"]
    if mu is not None:
        said += [f"mu >= {mu:.2f} of {known['claimed_mu']:.2f}"]
        said += [f"a device in all rounds: epsilon >= {known['whole_run']:.2f} of {known['whole_run_claimed']:.2f}"]
    return f"{attempt.name}: {attempt.verdict}. {', '.join(said)}. Power: {attempt.power}."


if __name__ == "__main__":
    main()
