"""Canary events in a deployment of unit ``interaction``: inserted by coins, against what their devices really sent.

Under trust ``local`` a device's own updates are what its server sees, and its noise is all that there is. The auditor
owns some devices, puts events into them as any user does, and keeps every update that leaves them; their app is the
honest one. Every block holds one event that tells nothing, having no other beside it, and by a fair coin a second one:
the canary, whose block then has a gradient. What that gradient is follows from public numbers: releases, negatives.

The claim that is tested is that of ALL rounds: a block that is replaced moves each update by 2 C at most, under noise
of sigma C, which over T rounds has a mu of 2 sqrt(T) / sigma. An event that turns a silent block into another moves it
by C, so that the canaries reach half of what is claimed, at the most; a device's whole update is known but for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.samples import blocks_of_items
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.composition import shift_of, total_sensitivity
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import unpack
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.publish import RELEASES, found
from fedrecall.server.recall.release import load_release
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.deployments.devices import judged
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.watch import flat

Sent = Mapping[int, bytes]
"""What left a device, by round."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EventCanaries:
    """Which events an auditor inserts into its devices.

    Attributes:
        pairs: of each block, the item that is always there and the canary's.
        coins: which canary is in which device.
    """

    pairs: Int64[np.ndarray, "blocks 2"]
    coins: Bool[np.ndarray, "devices blocks"]

    @classmethod
    def flip(cls, task: Task, devices: int, seed: int) -> "EventCanaries":
        """Choose two items of every block that has two, and flip a fair coin for each device and block.

        Args:
            task: of the deployment.
            devices: of the auditor's.
            seed: secret, drawn at random.

        Raises:
            UsageError: the task is not one that this audit reads.
        """
        _check(task)
        rng = np.random.default_rng(derive_seed(seed, "canary events"))
        shape, local = ModelShape(**task.shape), LocalConfig(**task.local)
        block = blocks_of_items(shape.n_items, local.blocks, task.seed)
        members = [np.flatnonzero(block == b) for b in range(local.blocks)]
        pairs = np.array([rng.choice(items, 2, replace=False) for items in members if len(items) > 1])
        return cls(pairs=pairs.reshape(-1, 2), coins=rng.random((devices, len(pairs))) < 0.5)

    def history(self, device: int) -> Int64[np.ndarray, " events"]:
        """Return the items that an auditor's device holds, oldest first."""
        return np.concatenate([self.pairs[:, 0], self.pairs[self.coins[device], 1]])


def audit_events(folder: Path, canaries: EventCanaries, sent: Sequence[Sent]) -> list[Attempt]:
    """Judge a deployment by what the auditor's devices sent, and by the releases in its job's ``folder``.

    Args:
        folder: of the job; every release still is in it.
        canaries: what was inserted.
        sent: by device, in the order of the coins; a round in which it sent nothing may be missing.

    Raises:
        UsageError: the job is not one that this audit reads, or a release is gone.
        CorruptArtefact: a release or an update cannot be read.
        ScoreError: hardly a canary was in, or out.
    """
    job = Job.load(folder)
    _check(job.task)
    mechanism = job.task.plan.mechanism(ROUNDS)
    judgeable = [scores_of(job, canaries, device, updates) for device, updates in enumerate(sent)]
    scores, shifts = (np.array(rows) for rows in zip(*judgeable, strict=True))
    coins = canaries.coins[: len(scores)]
    most = shift_of(mechanism.adjacency) * total_sensitivity(mechanism)
    return judged(
        job.task.plan,
        scores[coins],
        scores[~coins],
        claimed_mu=most / mechanism.sum_noise_multiplier,
        reach=float(shifts.mean()) / (most * float(mechanism.clip_norm or 0.0)),
        adversary="server",
        what="Events were inserted by fair coins into devices of the auditor's, whose app is the honest one, and "
        "what these devices sent was compared with what each event changes in it, everything else known. Score: a "
        "lower bound of the epsilon of all rounds.",
    )


def scores_of(
    job: Job, canaries: EventCanaries, device: int, sent: Sent
) -> tuple[Float64[np.ndarray, " blocks"], Float64[np.ndarray, " blocks"]]:
    """Return a score a canary, 1 higher where it is in, with independent noise; and how far it moves what was sent.

    The change that each event makes is projected on orthonormal directions close to them all (Lowdin 1950: the
    symmetric ones), so that noise of one size in every coordinate has one size, and no correlation, in every score.
    """
    rest, changes = [], []
    for round, model in _models(job, max(sent, default=-1)):
        if round not in sent:
            continue
        each = _changes(job.task, round, model, canaries.pairs)
        update, header = unpack(sent[round], what=f"update {round} of device {device}")
        if header.get("round") != round or set(update) != set(job.task.trained):
            raise CorruptArtefact(f"what device {device} sent is not the update of round {round}: keep it as it left")
        rest.append(flat(update, sorted(update)) - canaries.coins[device] @ each)
        changes.append(each)
    if not rest:
        raise UsageError(f"device {device} of the auditor's sent nothing: let it take part")
    directions, shift = decorrelated(np.concatenate(changes, axis=1))
    return np.asarray(canaries.coins[device] + directions @ np.concatenate(rest) / shift), shift


def decorrelated(
    known: Float64[np.ndarray, "blocks coordinates"],
) -> tuple[Float64[np.ndarray, "blocks coordinates"], Float64[np.ndarray, " blocks"]]:
    """Return orthonormal directions, the closest to the rows that there are, and the length of each row along its own.

    Raises:
        UsageError: the rows are not independent.
    """
    left, sizes, right = np.linalg.svd(known, full_matrices=False)
    if len(sizes) < len(known) or sizes[-1] < 1e-6 * sizes[0]:
        raise UsageError("some canary changes nothing of its own in an update: train more numbers, or use fewer blocks")
    directions = left @ right
    return directions, np.einsum("bc,bc->b", directions, known)


def _changes(
    task: Task, round: int, model: Arrays, pairs: Int64[np.ndarray, "blocks 2"]
) -> Float64[np.ndarray, "blocks coordinates"]:
    """Return what each canary adds to an update: the clipped gradient of its block, which is silent without it."""
    silent = replace(task.plan.mechanism(ROUNDS), noise_multiplier=0.0)
    trainer = Trainer(
        shape=ModelShape(**task.shape),
        features=None,
        local=LocalConfig(**task.local),
        plan=replace(task.plan, mechanisms=(silent,), simulated=True),
        trained=task.trained,
        seed=task.seed,
    )
    found = []
    for pair in pairs:
        device = Device(store=_store(pair, int(task.shape["n_items"])), key=0, tower={})
        update = trainer.update(round, model, device).arrays
        found.append(flat(update, sorted(update)))
    return np.array(found)


def _models(job: Job, last: int) -> Iterator[tuple[int, Arrays]]:
    """Yield the model that each round up to ``last`` started from."""
    releases = found(job.folder)
    for round in range(last + 1):
        if round and round not in releases:
            raise UsageError(f"release {round} of {job.folder} is gone: keep them all (`server init --keep`)")
        yield round, load_release(job.folder / RELEASES / f"{round:06d}").model if round else job.start()


def _store(items: Int64[np.ndarray, " events"], n_items: int) -> EventStore:
    return EventStore.from_columns(
        users=np.zeros(len(items), dtype=np.int64), items=items, n_users=1, n_items=n_items, times=None
    )


def _check(task: Task) -> None:
    """Raise UsageError for a task whose devices this audit cannot follow."""
    plan: Plan = task.plan
    mechanism, local = plan.mechanism(ROUNDS), LocalConfig(**task.local)
    needs = {
        "unit 'interaction' and trust 'local'": (plan.unit, plan.trust) == ("interaction", "local"),
        "sampling 'everyone', a fixed clip and noise": mechanism.sampling == "everyone"
        and mechanism.adaptive_clip is None
        and mechanism.noise_multiplier > 0,
        "items without features": not task.shape["n_features"],
        "local.dropout=0": not local.dropout,
        "start.enabled=false": len(plan.mechanisms) == 1,
    }
    for need, met in needs.items():
        if not met:
            raise UsageError(f"this deployment cannot be audited by canary events: that needs {need}")
