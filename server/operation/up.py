"""A running server: its processes, kept alive; its devices, registered; its rounds, started until the last is done."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedrecall.protocol.errors import FedrecallError, UsageError
from fedrecall.protocol.files import write_json_atomic
from fedrecall.protocol.lock import is_held, only_one
from fedrecall.server.deployment.description import Deployment, is_deployment
from fedrecall.server.deployment.grid import SLACK
from fedrecall.server.deployment.job import CHECKPOINTS, RUNNING, UP, Job
from fedrecall.server.deployment.pace import read_progress
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.operation.certificates import certificates
from fedrecall.server.operation.children import BackOff, Child
from fedrecall.server.operation.metrics import serve_metrics
from fedrecall.server.operation.status import STATE, read_state
from fedrecall.server.operation.superlink import SuperLink
from fedrecall.server.training.checkpoint import rounds_done
from fedrecall.server.training.rounds import ROUNDS

TLS = "tls"
_LOOK_S, _START_S = 1.0, 90.0
_FINAL = (2, 4, 6)
"""Exit codes of what no restart mends: a plan or a request, a spent budget, a corrupt file."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where a server is reached, and what for.

    Attributes:
        host: address to listen on for devices.
        port: likewise.
        metrics: port of this machine for metrics; ``None`` for none.
    """

    host: str
    port: int
    metrics: int | None = None


@dataclass(kw_only=True, eq=False)
class Server:
    """One job's server while it is up. Made by ``started``.

    Attributes:
        job: what it trains.
        superlink: what devices reach through the door.
        children: every process that is kept alive, by name.
        roster: the enrolled devices.
        say: told of what an operator would want to know.
    """

    job: Job
    superlink: SuperLink
    children: dict[str, Child]
    roster: Roster
    say: Say
    _registering: BackOff = field(default_factory=BackOff)
    _running: BackOff = field(default_factory=BackOff)
    _checked: int = 0
    _starts: dict[str, int] = field(default_factory=dict)
    _asked: float | None = None
    _seen: bool = False

    def run(self) -> None:
        """Keep everything going until the last round is released.

        Raises:
            FedrecallError: the rounds ended with what no restart mends; its exit code is that of the cause.
        """
        steps = self.job.task.plan.mechanism(ROUNDS).steps
        while True:
            alive = {name: child.keep() for name, child in self.children.items()}
            self._note_starts()
            busy = is_held(self.job.folder / RUNNING)
            self._seen |= busy
            if not busy and is_finished(self.job):
                self.say(f"all {steps} rounds are released")
                return
            if alive["superlink"] and self.superlink.answers():
                self._register()
                if not busy:
                    self._keep_rounds()
            time.sleep(_LOOK_S)

    def _register(self) -> None:
        """Register who was invited since; after a restart also whom a lost database does not know any more."""
        starts = self.children["superlink"].starts
        if not self._registering.is_due():
            return
        try:
            self.superlink.register_all(self.roster, check=self._checked != starts)
            self._checked = starts
        except FedrecallError as error:
            self.say(f"{error}; trying again")
            self._registering.failed(after_s=0.0)

    def _keep_rounds(self) -> None:
        """Start the rounds where none run; a run that ended early is started again, later each time."""
        if self._asked is not None:
            lasted = time.time() - self._asked
            problem = self._problem(self._asked)
            if not (self._seen or problem or lasted > _START_S):
                return
            self.say(f"the rounds ended early ({problem or 'see superlink.log'}); starting them again")
            self._running.failed(after_s=lasted)
            self._asked, self._seen = None, False
        if not self._running.is_due():
            return
        try:
            self.job.check_room()
            self.superlink.start_run(self.job.folder)
            self._asked, self._seen = time.time(), False
        except FedrecallError as error:
            self.say(f"{error}; trying again")
            self._running.failed(after_s=0.0)

    def _problem(self, since: float) -> str | None:
        """Return why rounds failed after ``since``; raises what no restart mends."""
        progress = read_progress(self.job.folder)
        if progress.get("state") != "failed" or progress["ended"] < since:
            return None
        if progress["exit_code"] in _FINAL:
            final = FedrecallError(progress["problem"])
            final.exit_code = progress["exit_code"]
            raise final
        return str(progress["problem"])

    def _note_starts(self) -> None:
        starts = {name: child.starts for name, child in self.children.items()}
        if starts == self._starts:
            return
        for name, times in starts.items():
            if times > 1 and times != self._starts.get(name):
                self.say(f"{name} ended and was started again (see {name}.log)")
        began = read_state(self.job.folder).get("began", time.time()) if self._starts else time.time()
        write_json_atomic(self.job.folder / STATE, {"pid": os.getpid(), "began": began, "starts": starts})
        self._starts = starts


@contextmanager
def started(folder: Path, listen: Listen | None, *, tls: Path, database: Path | None, say: Say) -> Iterator[Server]:
    """Start a job's server, alone in its folder, and stop all of it at the end.

    Args:
        folder: of a job that ``server init`` made.
        listen: where; ``None`` for all addresses of this machine, on the port that devices are told.
        tls: folder of the certificates that devices see; made where it is missing.
        database: file of the SuperLink's state; ``None`` for memory alone, as ``SuperLink`` says.
        say: told of what an operator would want to know.

    Raises:
        UsageError: the folder holds no deployment.
        FedrecallError: another server is up in it, a certificate has ended, or a file cannot be written.
    """
    folder = folder.resolve()
    if not is_deployment(folder):
        raise UsageError(f"{folder} holds no deployment: make one with `fedrecall server init`")
    job, deployment = Job.load(folder), Deployment.load(folder)
    listen = listen or Listen(host="0.0.0.0", port=deployment.port)
    flower = folder / "flower"
    with ExitStack() as stack:
        stack.enter_context(only_one(folder / UP, f"{folder} is in use by another `server up`: end that one"))
        flower.mkdir(mode=0o700, exist_ok=True)
        outside = certificates(tls, names(deployment))
        superlink = SuperLink(flower, certificates(flower / "tls", ["127.0.0.1"]), database and database.resolve())
        most = max(sum(array.nbytes for array in job.start().values()), job.bytes_of_start()) + SLACK
        children = {"superlink": superlink.command, "door": superlink.door(listen.host, listen.port, outside, most)}
        kept = {}
        for name, command in children.items():
            log = folder / f"{name}.log"
            kept[name] = Child(command, log=log, cwd=flower, environment=superlink.environment)
            stack.callback(kept[name].stop)
        if listen.metrics is not None:
            stack.enter_context(serve_metrics(folder, listen.metrics))
        # Whoever runs services ends them with this signal.
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, previous)
        roster = Roster(folder, devices=job.task.plan.devices)
        yield Server(job=job, superlink=superlink, children=kept, roster=roster, say=say)


def is_finished(job: Job) -> bool:
    """Whether the last round is released: its checkpoint alone is not enough, the release may have been refused."""
    done = rounds_done(job.folder / CHECKPOINTS) >= job.task.plan.mechanism(ROUNDS).steps
    return done and read_progress(job.folder).get("state") == "finished"


def names(deployment: Deployment) -> list[str]:
    """Return the names that a server's certificate is for."""
    return list(dict.fromkeys([deployment.host, "localhost", "127.0.0.1"]))
