"""From a configuration and a catalogue to a job that a server can run."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from fedrecall.client.device.folder import task_of
from fedrecall.client.events.events import DEFAULT_TYPE
from fedrecall.client.events.tables import Layout, Progress
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.privacy.accounting.accounting import account
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.randomness import public_rng
from fedrecall.server.config import StartSettings
from fedrecall.server.deployment.description import Deployment, check_deployment
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.publish import RELEASES
from fedrecall.server.training.content_features import content_features
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.config import load_config
from fedrecall.simulations.data.dataset import Catalogue
from fedrecall.simulations.data.items import ItemColumns, read_items
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.start import start_settings
from fedrecall.simulations.training.world import shape_of

_WAIT_S = 60.0
_WITHOUT_START = 'rounds.train=["item.", "transformer."]'
"""Item vectors that begin as public random numbers have all to be trained."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What an operator asks for; every field is an option of ``fedrecall server init``."""

    folder: Path
    catalogue: Path
    item_id: str
    title: str | None
    categories: str | None
    separator: str | None
    header: bool
    devices: int
    address: str
    config: Path | None
    preset: str | None
    overrides: tuple[str, ...]
    event_weights: tuple[str, ...]
    every_s: float
    deadline_s: float
    quorum: int | None
    keep_releases: int
    release: str | None


def make_job(request: JobRequest, progress: Progress) -> dict[str, Any]:
    """Write a job's folder and return what is in it, as plain JSON data.

    Raises:
        UsageError: the folder is in use, or the configuration is not one of a deployment.
    """
    folder = request.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is in use: choose a new folder for the job")
    config = load_config(request.config, request.preset, [*request.overrides])
    if not config.start.enabled:
        config = load_config(request.config, request.preset, [_WITHOUT_START, *request.overrides])
    columns = ItemColumns(item=request.item_id, title=request.title, categories=request.categories)
    layout = Layout(separator=request.separator, header=request.header)
    found = read_items(request.catalogue, columns, layout, progress)
    catalogue = Catalogue(ids=found.ids, titles=found.titles, categories=found.categories, source="file")
    features = _features(catalogue) if config.model.features else None
    weights = _weights(request.event_weights) or {DEFAULT_TYPE: 1.0}
    shape = shape_of(config, len(catalogue), 0 if features is None else features.shape[1], len(weights))
    plan = replace(plan_for(config, request.devices), simulated=False)
    fresh = initial_arrays(shape, config.seed)
    arrays = {name: fresh[name].numpy().copy() for name in shared_names(fresh)}
    table = public_rng(config.seed, "id table").standard_normal((shape.n_items, shape.dim)) / np.sqrt(shape.dim)
    arrays[ITEM_ID] = table.astype(np.float32)
    trained = tuple(name for name in arrays if name.startswith(config.rounds.train))
    if not trained:
        raise UsageError(f"rounds.train is {list(config.rounds.train)}: it names no shared array")
    deployment = Deployment(
        address=request.address,
        items=catalogue.ids,
        event_weights=weights,
        features=features,
        release=request.release,
        keep_releases=request.keep_releases,
    )
    task = task_of(plan, shape, config.local, trained, config.seed)
    check_deployment(deployment, task)
    quorum = (plan.devices + 1) // 2 if request.quorum is None else request.quorum
    starting, content = None, None
    if config.start.enabled:
        starting = start_settings(config, plan, shape.n_items)
        content = content_features(catalogue.titles, catalogue.categories) if starting.content else None
    job = Job(
        folder=folder,
        task=task,
        config=config.server,
        deadline_s=request.deadline_s,
        wait_s=_WAIT_S,
        every_s=request.every_s,
        quorum=quorum,
        starting=starting,
    )
    job.check()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made ({error.strerror}): make it beforehand, or choose another"
        ) from error
    # Whoever serves it may start first: a container engine would make it, and the server could not write there.
    (folder / RELEASES).mkdir()
    job.save(arrays, content)
    deployment.save(folder)
    return {
        "job": str(folder),
        "devices": plan.devices,
        "items": len(catalogue),
        "trained": sum(arrays[name].size for name in trained),
        "bytes_of_an_update": sum(arrays[name].nbytes for name in trained),
        "start": _start(starting, content, job),
        "rounds": plan.mechanism(ROUNDS).steps,
        "quorum": quorum,
        "digest": task.digest(),
        "adversaries": [asdict(row) for row in account(plan)],
    }


def _features(catalogue: Catalogue) -> np.ndarray | None:
    features = catalogue.category_matrix()
    return features if features.shape[1] else None


def _start(starting: StartSettings | None, content: sparse.csr_array | None, job: Job) -> dict[str, Any] | None:
    """Return what devices are asked before the first round, as plain JSON data; ``None`` for nothing."""
    if starting is None:
        return None
    terms = 0 if content is None else content.shape[1]
    return {"compared": starting.compared, "terms": terms, "bytes": job.bytes_of_start()}


def _weights(texts: tuple[str, ...]) -> dict[str, float]:
    """Read ``view=1`` and the like; raises UsageError naming the text that is not so."""
    weights = {}
    for text in texts:
        kind, _, number = text.rpartition("=")
        try:
            weights[kind] = float(number)
        except ValueError:
            kind = ""
        if not kind:
            raise UsageError(f"--event-weight is {text!r}: write the type, = and a number, such as view=1")
    return weights
