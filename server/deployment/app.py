"""The server's Flower app: it opens the job's folder, waits for devices, and runs the rounds over the grid.

Start it with ``flwr run APP NAME --run-config 'job="FOLDER"'``, or let ``fedrecall server up`` do it.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.lock import only_one
from fedrecall.protocol.records import Arrays, Update
from fedrecall.server.deployment.description import Deployment, is_deployment
from fedrecall.server.deployment.grid import DeviceCollector, Roll
from fedrecall.server.deployment.job import RUNNING, Job, Publish
from fedrecall.server.deployment.pace import Pace, note_end
from fedrecall.server.deployment.publish import Publisher
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.training.rounds import ROUNDS

app = ServerApp()
_LOG = logging.getLogger("fedrecall")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that ``job`` in the run's configuration names to its plan's horizon."""
    if os.environ.get("FLWR_TELEMETRY_ENABLED") != "0":
        raise FedrecallError("Flower's telemetry is on: set FLWR_TELEMETRY_ENABLED=0 before flower-superlink starts")
    folder = Path(str(context.run_config["job"]))
    _LOG.setLevel(logging.INFO)
    handler = logging.FileHandler(folder / "rounds.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOG.addHandler(handler)
    # A second run would charge and ask every round twice.
    with only_one(folder / RUNNING, f"another process runs the rounds of {folder}: end that one"):
        try:
            run(grid, Job.load(folder))
        except FedrecallError as error:
            _LOG.error("%s", error)
            # On a full disk nothing can be noted, and what ended the rounds is what the operator must read.
            with suppress(FedrecallError):
                note_end(folder, error)
            raise
        note_end(folder, None)


def run(grid: Grid, job: Job) -> None:
    """Run the rounds of ``job`` over ``grid``."""
    enrolled, publish = _deployed(job)
    roll = Roll(grid=grid, task=job.task.digest(), devices=job.task.plan.devices, enrolled=enrolled)
    refusals: Counter[str] = Counter()
    collector = DeviceCollector(
        grid=grid,
        task=roll.task,
        mechanism=ROUNDS,
        trained=job.task.trained,
        nodes=roll.nodes,
        deadline_s=job.deadline_s,
        on_refused=lambda reason: refusals.update([reason]),
    )
    pace = Pace(collect=collector, job=job, connected=lambda: len(roll.nodes()), refusals=refusals)
    roll.wait(roll.devices, job.wait_s)

    def ask(mechanism: str, arrays: Arrays, cohort: np.ndarray, max_bytes: int) -> Iterator[Update]:
        return pace.timed(lambda: collector.statistic(mechanism, arrays, cohort, max_bytes))

    job.run(pace, refusals, publish, ask=ask)


def _deployed(job: Job) -> tuple[Callable[[], Mapping[int, int]] | None, Publish | None]:
    """Return who is enrolled and where releases go, of a deployment."""
    if not is_deployment(job.folder):
        return None, None
    deployment = Deployment.load(job.folder)
    publisher = Publisher(
        folder=job.folder,
        items=deployment.items,
        features=deployment.features,
        plan_digest=job.task.plan.digest(),
        simulated=job.task.plan.simulated,
        keep=deployment.keep_releases,
    )
    return Roster(job.folder, devices=job.task.plan.devices).nodes, publisher
