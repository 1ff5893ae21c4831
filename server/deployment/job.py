"""A training job of a deployment: a folder with all that the server needs, the start, the rounds over whoever collects.

A killed job goes on from its last checkpoint, one a round and one a mechanism of the start. What was charged and then
lost stays charged, and is left out (docs/privacy.md, rule 8).
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from fedrecall.privacy.accounting.soundness import check_task
from fedrecall.privacy.ledger.ledger import Head, Ledger
from fedrecall.protocol.errors import CorruptArtefact, PlanError, UpdateError
from fedrecall.protocol.files import check_room, read_bounded, write_atomic, write_json_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.config import ServerConfig, StartSettings
from fedrecall.server.deployment.chance import coins_of, key_of, noise_of, secret_cohorts
from fedrecall.server.deployment.description import DEPLOYMENT
from fedrecall.server.deployment.starting import Ask, StartEnvironment, bytes_of_start, check_start, run_start
from fedrecall.server.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedrecall.server.training.content import Content
from fedrecall.server.training.content_features import pack_features, unpack_features
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState, run_rounds, start_state
from fedrecall.server.training.sampling import Sampler

CHECKPOINTS, LEDGER = "checkpoints", "ledger.jsonl"
"""Names in the job's folder."""

UP, RUNNING = ".up.lock", ".rounds.lock"
"""Locks there: of the one ``server up`` of a job, and of the one process that runs its rounds."""
_JOB, _START, _CONTENT = "job.json", "start.safetensors", "content.safetensors"
_PACES = ("deadline_s", "wait_s", "every_s")
_MAX_BYTES = 64 << 30
_SPARE = 1 << 20
"""Bytes for the ledger's lines, manifests and logs."""
_LOG = logging.getLogger(__name__)

Collect = Callable[[int, Arrays, np.ndarray, float | None], Iterable[Update]]
Publish = Callable[[ServerState, str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What a server trains, and how long it waits.

    Attributes:
        folder: of the job; the server's alone.
        task: what devices agreed to.
        config: of the global optimiser.
        deadline_s: seconds after which a round ends with what came.
        wait_s: seconds to wait at the start for the enrolled devices to connect.
        every_s: seconds from the start of one round to that of the next, at least.
        quorum: connected devices without which no round starts: a round with nobody in it costs as much as any.
        starting: of the private start; ``None`` where rounds start from ``start`` as it is.
    """

    folder: Path
    task: Task
    config: ServerConfig
    deadline_s: float
    wait_s: float
    every_s: float = 0.0
    quorum: int = 0
    starting: StartSettings | None = None

    def save(self, arrays: Arrays, content: sparse.csr_array | None = None) -> None:
        """Write the job and the model that it starts from; refuses a plan that this server cannot carry out.

        ``content`` is what is public about items, for the private start.
        """
        self.check()
        write_atomic(self.folder / _START, pack(arrays, {}))
        if content is not None:
            write_atomic(self.folder / _CONTENT, pack_features(content))
        starting = None if self.starting is None else self.starting.model_dump(mode="json")
        settings: dict[str, Any] = {"task": self.task.to_dict(), "config": self.config.model_dump(mode="json")}
        settings |= {"starting": starting}
        paces = {name: getattr(self, name) for name in _PACES}
        write_json_atomic(self.folder / _JOB, settings | paces | {"quorum": self.quorum})

    @classmethod
    def load(cls, folder: Path) -> "Job":
        """Read what ``save`` wrote; raises CorruptArtefact for anything else."""
        try:
            found = json.loads(read_bounded(folder / _JOB, max_bytes=_MAX_BYTES))
            task, config = Task.from_dict(found["task"]), ServerConfig.model_validate(found["config"])
            job = cls(
                folder=folder,
                task=task,
                config=config,
                quorum=int(found["quorum"]),
                starting=None if found["starting"] is None else StartSettings.model_validate(found["starting"]),
                **{name: float(found[name]) for name in _PACES},
            )
        except (ValueError, TypeError, KeyError, PlanError) as error:
            raise CorruptArtefact(f"{folder / _JOB} is no job ({error}): write it again") from error
        job.check()
        return job

    def start(self) -> dict[str, np.ndarray]:
        """Return the model that the job starts from; raises CorruptArtefact."""
        return unpack(read_bounded(self.folder / _START, max_bytes=_MAX_BYTES), what=_START)[0]

    def content(self) -> Content | None:
        """Return what the start reads of public content, if anything; raises CorruptArtefact."""
        path, settings = self.folder / _CONTENT, self.starting
        if settings is None or not settings.content or not path.exists():
            return None
        features = unpack_features(read_bounded(path, max_bytes=_MAX_BYTES), what=_CONTENT)
        return Content(features=features, items=settings.content_items, weight=settings.content)

    def bytes_of_start(self) -> int:
        """Return how many bytes the arrays of a device's longest answer to the private start hold."""
        return bytes_of_start(self.starting, self.task.shape)

    def check_room(self) -> None:
        """Raise FedrecallError, naming the folder, unless it has room for all that the next charge pays for.

        That is a checkpoint and a release: at most six times the model, what the start releases, and the identifiers.
        """
        names = self.folder / DEPLOYMENT
        known = names.stat().st_size if names.exists() else 0
        model = (self.folder / _START).stat().st_size
        check_room(self.folder, 6 * model + 16 * self.bytes_of_start() + 2 * known + _SPARE)

    def run(
        self, collect: Collect, refusals: Counter[str], publish: Publish | None = None, *, ask: Ask | None = None
    ) -> ServerState:
        """Train to the plan's horizon, from the last checkpoint where there is one; returns the last state.

        Args:
            collect: asks a cohort for updates; a sum over devices cannot be told apart from a lie, and is none.
            refusals: counts what counts as nothing, by its reason; refused updates are added.
            publish: gets every new state, and the one that a killed job goes on from, with the ledger's head: what it
                gets was charged and checkpointed.
            ask: asks devices for the statistics of the private start, where the job has one.

        Raises:
            as ``run_rounds`` and ``run_start``.
        """
        plan, settings = self.task.plan, self.config.model_dump(mode="json")
        start = None if self.starting is None else self.starting.model_dump(mode="json")
        settings |= {"task": self.task.digest(), "starting": start}
        digest = hashlib.sha256(dumps(settings).encode()).hexdigest()
        saved = load_latest(self.folder / CHECKPOINTS)
        path = self.folder / LEDGER
        if saved is None:
            ledger, sha256 = Ledger.resume(path, plan), ""
        else:
            if saved.config_digest != digest:
                raise CorruptArtefact(f"{self.folder} was started as another job: give this one its own folder")
            lines, _, sha256 = (saved.ledger_head or "").partition(":")
            ledger = Ledger.open(path, plan, at_least=Head(lines=int(lines), sha256=sha256))

        def save(state: ServerState, *, started: bool = True) -> Head:
            head = ledger.head()
            checkpoint = Checkpoint(
                round=state.round,
                arrays=state.arrays,
                optimiser=state.optimiser,
                average=state.average,
                ledger_head=f"{head.lines}:{head.sha256}",
                config_digest=digest,
                plan_digest=plan.digest(),
                extra={"clip_norm": state.clip_norm, "started": started},
            )
            save_checkpoint(self.folder / CHECKPOINTS, checkpoint, keep=self.config.keep_checkpoints)
            return head

        if saved is None or not saved.extra["started"]:
            released = {} if saved is None else saved.arrays
            # Until the start is over, a checkpoint holds its releases in the place of a model.
            arrays = self._started(
                released,
                ledger,
                refusals,
                ask,
                keep=lambda known: save(start_state(ServerConfig(), known, (), None), started=False),
            )
            state = start_state(self.config, arrays, self.task.trained, plan.mechanism(ROUNDS).clip_norm)
            if self.starting is not None:
                save(state)
        else:
            state = ServerState(
                round=saved.round,
                arrays=saved.arrays,
                trained=self.task.trained,
                clip_norm=saved.extra["clip_norm"],
                optimiser=saved.optimiser,
                average=saved.average,
            )
            if publish is not None and state.round:
                publish(state, sha256)

        def on_round(state: ServerState) -> None:
            head = save(state)
            if publish is not None:
                publish(state, head.sha256)
            _LOG.info("round %d of %d is released", state.round, plan.mechanism(ROUNDS).steps)
            if not secret_cohorts(plan):
                # Rule 7: where sampling amplifies, how many took part stays secret, also in logs.
                _LOG.info("updates that count as nothing, so far: %s", dict(refusals))

        environment = self._environment(collect, refusals)
        return run_rounds(state, plan, environment, config=self.config, ledger=ledger, on_round=on_round)

    def _environment(self, collect: Collect, refusals: Counter[str]) -> Environment:
        plan, mechanism = self.task.plan, self.task.plan.mechanism(ROUNDS)
        return Environment(
            collect=collect,
            sampler=Sampler.of(mechanism, plan.devices, lambda round: coins_of(self.task, round)),
            noise=lambda round: noise_of(self.task, mechanism.name, round),
            key=lambda round: key_of(self.task, mechanism.name, round),
            samples=int(self.task.local["blocks"]) if plan.unit == "interaction" else 1,
            on_refused=_counting(refusals),
        )

    def _started(
        self,
        released: Arrays,
        ledger: Ledger,
        refusals: Counter[str],
        ask: Ask | None,
        keep: Callable[[Arrays], object],
    ) -> Arrays:
        """Return the model that rounds start from: ``start`` as it is, or what the private start makes of it."""
        if self.starting is None:
            return self.start()
        if ask is None:
            raise PlanError("the job has a private start, and nobody to ask for it: give `ask`")
        environment = StartEnvironment(
            ask=ask,
            noise=lambda mechanism: noise_of(self.task, mechanism, 0),
            key=lambda mechanism: key_of(self.task, mechanism, 0),
            on_refused=_counting(refusals),
            keep=keep,
        )
        return run_start(
            self.start(),
            self.task.plan,
            self.starting,
            self.content(),
            environment,
            released=released,
            ledger=ledger,
        )

    def check(self) -> None:
        """Raise PlanError for what this server cannot do as it was accounted."""
        check_task(self.task)
        check_start(self.task.plan, self.starting, self.task.shape)
        if self.task.plan.mechanism(ROUNDS).bands > 1:
            raise PlanError("rounds.bands is above 1: correlated noise runs in simulations alone; make it 1")
        if not (self.deadline_s > 0 and self.wait_s >= 0 and self.every_s >= 0):
            paces = {name: getattr(self, name) for name in _PACES}
            raise PlanError(f"{paces}: choose the deadline above 0, and the others from 0")
        if not 0 <= self.quorum <= self.task.plan.devices:
            raise PlanError(f"quorum is {self.quorum}: choose it from 0 to the {self.task.plan.devices} devices")


def _counting(refusals: Counter[str]) -> Callable[[Update, UpdateError], None]:
    return lambda _, error: refusals.update([error.reason or "refused"])
