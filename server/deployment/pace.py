"""When a round starts and how long it takes: a schedule, a quorum, and no length that tells who took part."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import read_bounded, write_json_atomic
from fedrecall.protocol.records import Arrays, Update
from fedrecall.server.deployment.chance import secret_cohorts
from fedrecall.server.deployment.job import Collect, Job

PROGRESS = "progress.json"
_MAX_BYTES = 1 << 20
_LOOK_S = 1.0


@dataclass(kw_only=True, eq=False)
class Pace:
    """A collector that asks when it is time to.

    Where sampling amplifies, a round takes its whole deadline: one that ended with its last answer would tell how many
    were asked (docs/privacy.md, rule 7). For the same reason no count of refusals is written down then.

    Attributes:
        collect: asks the cohort.
        job: says when.
        connected: returns how many devices are there now.
        refusals: as in ``Job.run``.
    """

    collect: Collect
    job: Job
    connected: Callable[[], int]
    refusals: Counter[str]
    _progress: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Go on with the schedule of before a kill."""
        self._progress = read_progress(self.job.folder)

    def __call__(self, round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        """Yield what ``collect`` does, at the round's time."""
        yield from self.timed(lambda: self.collect(round, arrays, cohort, clip_norm))

    def timed(self, ask: Callable[[], Iterable[Update]]) -> Iterator[Update]:
        """Wait for the time of a round, or of a mechanism of the start, and for the quorum; then yield what comes.

        Raises FedrecallError where the disk has no room for what follows: before anybody is asked, and again when the
        answers are in, just before the charge. What was not charged is asked again when there is room.
        """
        self._wait()
        self.job.check_room()
        ends = time.monotonic() + self.job.deadline_s
        self._say("round", began=time.time())
        yield from ask()
        if secret_cohorts(self.job.task.plan):
            time.sleep(max(0.0, ends - time.monotonic()))
        self.job.check_room()
        self._say("working")

    def _wait(self) -> None:
        began = self._progress.get("began")
        due = 0.0 if began is None else began + self.job.every_s
        # A clock that was set back must not stop the schedule for longer than one turn of it.
        due = min(due, time.time() + self.job.every_s)
        while (early := time.time() < due) or self.connected() < self.job.quorum:
            self._say("waiting for its time" if early else "waiting for devices", due=due if early else None)
            time.sleep(_LOOK_S)

    def _say(self, state: str, **values: Any) -> None:
        known = {"began": self._progress.get("began"), "state": state, "connected": self.connected(), **values}
        known["refused"] = None if secret_cohorts(self.job.task.plan) else dict(self.refusals)
        if known != self._progress:
            write_json_atomic(self.job.folder / PROGRESS, known)
            self._progress = known


def note_end(folder: Path, problem: FedrecallError | None) -> None:
    """Note how the rounds of the job in ``folder`` ended: ``state`` finished, or failed with ``problem``."""
    known = read_progress(folder) | {"state": "failed" if problem else "finished", "ended": time.time()}
    if problem:
        known |= {"problem": str(problem), "exit_code": problem.exit_code}
    write_json_atomic(folder / PROGRESS, known)


def read_progress(folder: Path) -> dict[str, Any]:
    """Return what the rounds of the job in ``folder`` last said.

    ``state``, ``connected``, ``began`` (of the last round) and ``refused``; ``ended``, ``problem`` and ``exit_code``
    where they ended. Empty before the first; raises CorruptArtefact for a file that holds anything else.
    """
    path = folder / PROGRESS
    if not path.exists():
        return {}
    try:
        found = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
    except ValueError as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): delete it") from error
    if not isinstance(found, dict) or "state" not in found:
        raise CorruptArtefact(f"{path} says nothing of a job's rounds: delete it")
    return found
