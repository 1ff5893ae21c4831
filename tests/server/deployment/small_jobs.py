"""Jobs of a deployment, small enough for tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.folder import task_of as task_for
from fedrecall.models.shape import ModelShape
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.task import Task
from fedrecall.server.config import ServerConfig
from fedrecall.server.deployment.description import Deployment
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.publish import Publisher
from fedrecall.server.training.optimiser import init
from fedrecall.server.training.rounds import ServerState

ITEMS = ("a", "b", "c")
HEAD = "ab" * 32
ROUNDS = Mechanism(name="rounds", clip_norm=1.0, noise_multiplier=2.0, steps=4)
POISSON = replace(ROUNDS, sampling="poisson", sample_rate=0.5)
SGD = ServerConfig(optimiser="sgd", learning_rate=1.0)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {"item.id.weight": rng.standard_normal((3, 2)).astype(np.float32), "transformer.w": np.ones(2, np.float32)}


def task_of(mechanism: Mechanism = ROUNDS, devices: int = 4, *, simulated: bool = False) -> Task:
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=devices, mechanisms=(mechanism,), simulated=simulated)
    shape = ModelShape(
        n_items=3, n_features=0, n_types=1, dim=2, window=2, blocks=0, heads=1, hidden=1, user_dim=1, user_hidden=1
    )
    return task_for(plan, shape, LocalConfig(), tuple(arrays()), 1)


def job_in(folder: Path, mechanism: Mechanism = ROUNDS, **settings: float) -> Job:
    folder.mkdir(exist_ok=True)
    given = {"deadline_s": 1.0, "wait_s": 0.0} | settings
    job = Job(folder=folder, task=task_of(mechanism), config=SGD, **given)  # type: ignore[arg-type]
    job.save(arrays())
    deployment = Deployment(
        address="127.0.0.1:9092",
        items=ITEMS,
        event_weights={"event": 1.0},
        features=None,
        release=None,
        keep_releases=3,
    )
    deployment.save(folder)
    return Job.load(folder)


def state_of(round: int) -> ServerState:
    names = tuple(arrays())
    shifted = {name: array + np.float32(round) for name, array in arrays().items()}
    return ServerState(
        round=round, arrays=shifted, trained=names, clip_norm=1.0, optimiser=init(SGD, shifted), average=None
    )


def publisher(folder: Path, keep: int = 3) -> Publisher:
    return Publisher(folder=folder, items=ITEMS, features=None, plan_digest="cd" * 32, simulated=False, keep=keep)
