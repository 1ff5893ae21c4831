"""Processes that charge a ledger: to be killed, starved of disk, or set against each other. Run as a script.

``python ledger_processes.py server|device PATH STEPS`` answers each line of its stdin: ``charge`` forks a child that
charges and releases until it is killed or the plan is spent; ``fill BYTES`` one that may write so many bytes more;
``race`` two at once. It says ``pid N``, then ``released N`` after each release, ``refused WHY``, and ``ended``.
"""

import os
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import BudgetExhausted, FedrecallError
from fedrecall.protocol.plan import Mechanism, Plan

NOW = datetime(2031, 5, 6, tzinfo=UTC)
BUDGET = Budget(epsilon=None, delta=1e-6)


def plan_of(steps: int) -> Plan:
    mechanism = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=1.0, steps=steps)
    return Plan(unit="user", trust="central", delta=1e-5, devices=10, mechanisms=(mechanism,), simulated=False)


def charger(kind: str, path: Path, steps: int) -> tuple[int, Callable[[int], bool]]:
    """Open the ledger, or start it; return how much is spent and how to charge a round."""
    plan = plan_of(steps)
    if kind == "server":
        server = Ledger.resume(path, plan)
        return server.spent()["rounds"], lambda n: server.charge("rounds", n, "key")
    device = DeviceLedger.resume(path, BUDGET)
    spent = sum('"mechanism"' in line for line in path.read_text().splitlines())
    return spent, lambda n: device.charge(plan, "rounds", n, "key", NOW)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def work(kind: str, path: Path, steps: int, again: bool) -> None:
    """Charge, release, and so on; ``again`` opens the ledger anew when another process was faster."""
    while True:
        try:
            spent, charge = charger(kind, path, steps)
            while True:
                charge(spent)
                say(f"released {spent}")
                spent += 1
        except BudgetExhausted as error:
            return say(f"refused {error}")
        except FedrecallError as error:
            if not again:
                return say(f"refused {error}")


def main(kind: str, path: Path, steps: int) -> None:
    for line in sys.stdin:
        command, *more = line.split()
        children = []
        for _ in range(2 if command == "race" else 1):
            child = os.fork()
            if child == 0:
                if more:
                    size = path.stat().st_size if path.exists() else 0
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(more[0]),) * 2)
                try:
                    work(kind, path, steps, again=command == "race")
                finally:
                    os._exit(0)
            children.append(child)
        say(f"pid {children[0]}")
        for child in children:
            os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
