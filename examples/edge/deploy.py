"""Start a server and devices on this machine, train, and stop: every part a process, with TLS and keys."""

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from deployment import Deployment, deployed
from recipe import K, World

START = ("popularity", "second_moments")
"""Mechanisms of the private start."""


def main() -> None:
    """Parse the command line, deploy, and print what happened as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for devices and server")
    parser.add_argument("--devices", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", help="one of `fedrecall data list`; made-up items and events if absent")
    parser.add_argument("--data-path", type=Path, help="its folder")
    parser.add_argument("--tiny", action="store_true", help="the smallest model, without the private start")
    parser.add_argument("--open", action="store_true", help="likewise, no clip and no noise: epsilon is unbounded")
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds of a round at most")
    parser.add_argument("--cohort", type=int, help="devices that a round asks, in turn; all of them if absent")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between the starts of devices")
    given = parser.parse_args()
    sizes = {"devices": given.devices, "rounds": given.rounds, "quorum": given.devices, "cohort": given.cohort}
    tiny, epsilon = given.tiny or given.open, None if given.open else 8.0
    world = None if tiny else World.of(given.devices, given.dataset, given.data_path)
    place = given.folder.resolve()
    with deployed(place, epsilon=epsilon, deadline=given.deadline, world=world, **sizes) as deployment:
        code = train(deployment, given.pause)
        answer = outcome(deployment)
        if world is not None and code == 0:
            answer |= lists(deployment, world)
    print(json.dumps(answer))
    sys.exit(code)


def outcome(deployment: Deployment) -> dict[str, Any]:
    """Return how the training went, as plain JSON data."""
    status, times, devices = deployment.status(), released(deployment), range(deployment.devices)
    return {
        "state": status["state"],
        "rounds": status["rounds"]["done"],
        "refused": status["refused"],
        "start": [name for name in START if all(deployment.charged(number, name) for number in devices)],
        "epsilon": {row["name"]: row["epsilon"] for row in status["privacy"]},
        "seconds_to_first_round": round(times[0] - deployment.began, 1),
        "seconds_a_round": [round(b - a, 1) for a, b in pairwise(times)],
        "connected": deployment.progress()["connected"],
        "bytes_of_an_update": max(state_bytes(deployment, number) for number in devices),
        "rounds_charged": [len(deployment.charged(number)) for number in devices],
        "releases": str(deployment.job / "releases"),
    }


def lists(deployment: Deployment, world: World) -> dict[str, Any]:
    """Print what the first device recommends to its user; return it, and the recall of every device."""
    found = [world.recommended(deployment, number) for number in range(deployment.devices)]
    for place, title in enumerate(found[0]["titles"], 1):
        print(f"{place:3} {title}")
    recalls = [one[f"recall@{K}"] for one in found]
    return {"recommended": found[0]["items"], f"recall@{K}": recalls[0], f"mean_recall@{K}": round(fmean(recalls), 3)}


def train(deployment: Deployment, pause_s: float) -> int:
    """Enrol all devices, start everything, and return the server's exit code."""
    for number in range(deployment.devices):
        deployment.enrol(number)
    up = deployment.up()
    deployment.wait(deployment.registered, 300.0)
    for number in range(deployment.devices):
        deployment.join(number)
        time.sleep(pause_s)
    deployment.began = time.time()
    return up.wait()


def released(deployment: Deployment) -> list[float]:
    """Return when each release that is still there was written, oldest first."""
    return [path.stat().st_mtime for path in sorted((deployment.job / "releases").glob("0*"))]


def state_bytes(deployment: Deployment, number: int) -> int:
    """Return the size of what a device keeps of its last update: its bytes, and little else."""
    path = deployment.device(number) / "state.safetensors"
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    main()
