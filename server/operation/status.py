"""What an operator sees of a job: everything from the files of its folder, whether its server is up or not."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.ledger.chain import head_path
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.files import read_bounded
from fedrecall.protocol.lock import is_held
from fedrecall.protocol.plan import Plan
from fedrecall.server.deployment.chance import secret_cohorts
from fedrecall.server.deployment.job import CHECKPOINTS, LEDGER, RUNNING, UP, Job
from fedrecall.server.deployment.pace import read_progress
from fedrecall.server.deployment.publish import RELEASES, found
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.training.checkpoint import rounds_done
from fedrecall.server.training.rounds import ROUNDS

STATE = "up.json"
_MAX_BYTES = 1 << 20


class Spending:
    """What a job has spent against its plan; worked out anew only when the ledger has grown."""

    def __init__(self, folder: Path) -> None:
        """Look at the ledger in a job's ``folder``."""
        self._path = folder / LEDGER
        self._of: Plan | None = None
        self._epsilon: list[dict[str, Any]] = []

    def now(self, plan: Plan) -> list[dict[str, Any]]:
        """Return the rows of the adversaries ``released-model`` and ``server``; epsilon 0 before the first charge.

        Raises:
            CorruptArtefact: the ledger is broken.
        """
        if not (self._path.exists() or head_path(self._path).exists()):
            return []
        spent = Ledger.read(self._path).spent_plan()
        if spent != self._of:
            rows = [account_adversary(spent, name) for name in ("released-model", "server")]
            self._of, self._epsilon = spent, [asdict(row) for row in rows]
        return self._epsilon


def status(folder: Path, spending: Spending) -> dict[str, Any]:
    """Return how the job in ``folder`` stands, as plain JSON data for its operator.

    ``up``, ``uptime_s``, ``state``, ``problem``, ``rounds{done,planned}``, ``devices{planned,enrolled,connected}``,
    ``refused`` by reason (``None`` where ``cohorts_secret``: docs/privacy.md, rule 7), ``privacy`` (spent so far),
    ``release{round,written}`` and ``restarts`` by process.

    Raises:
        CorruptArtefact: a file of the folder is damaged.
    """
    job = Job.load(folder)
    plan = job.task.plan
    state, progress, up = read_state(folder), read_progress(folder), is_held(folder / UP)
    alive = up and is_held(folder / RUNNING)
    releases = found(folder)
    newest = max(releases, default=None)
    return {
        "up": up,
        "uptime_s": round(time.time() - state["began"], 1) if up and state else None,
        "state": _state(progress, up=up, alive=alive),
        "problem": progress.get("problem"),
        "rounds": {"done": rounds_done(folder / CHECKPOINTS), "planned": plan.mechanism(ROUNDS).steps},
        "devices": {
            "planned": plan.devices,
            "enrolled": len(Roster(folder, devices=plan.devices).enrolled()),
            "connected": progress.get("connected") if alive else None,
        },
        "cohorts_secret": secret_cohorts(plan),
        "refused": progress.get("refused"),
        "privacy": spending.now(plan),
        "release": None if newest is None else {"round": newest, "written": _written(folder, newest)},
        "restarts": {name: starts - 1 for name, starts in state.get("starts", {}).items()},
    }


def read_state(folder: Path) -> dict[str, Any]:
    """Return what the job's server noted of itself: ``pid``, ``began`` and ``starts``; empty before the first.

    Raises:
        CorruptArtefact: the file holds anything else.
    """
    path = folder / STATE
    if not path.exists():
        return {}
    try:
        state = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
        return {"pid": int(state["pid"]), "began": float(state["began"]), "starts": dict(state["starts"])}
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): delete it") from error


def _state(progress: dict[str, Any], *, up: bool, alive: bool) -> str:
    if progress.get("state") == "finished":
        return "finished"
    if not up:
        return "down"
    return str(progress["state"]) if alive and progress else "starting"


def _written(folder: Path, round: int) -> float:
    return (folder / RELEASES / f"{round:06d}").stat().st_mtime
