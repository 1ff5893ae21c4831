"""A finished run, opened for an audit: with its data, or with generated ones where they are missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import FedrecallError, UsageError
from fedrecall.protocol.plan import Plan
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.synthetic import synthetic_dataset
from fedrecall.simulations.report.compare import read_run
from fedrecall.simulations.runs.data import data_of
from fedrecall.simulations.runs.folder import check_recorded, located, read_config, read_data_reference
from fedrecall.simulations.runs.wiring import world_of
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import Progress, World, shape_of

_EVENTS_PER_DEVICE = 20
_TASTES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run to audit.

    Attributes:
        folder: of the run.
        run: its ``run.json``.
        config: its configuration.
        world: what it trained on, or a stand-in of the same size.
        dataset: its data; ``None`` where they are missing.
        missing: why they are.
    """

    folder: Path
    run: dict[str, Any]
    config: RunConfig
    world: World
    dataset: Dataset | None
    missing: str | None


def open_run(folder: Path, *, attach: bool, data_path: Path | None, progress: Progress) -> Opened:
    """Open the run in ``folder``; with ``attach`` it may be a copy whose data are elsewhere.

    Raises:
        UsageError: no finished run, one of an earlier version, or its data are not where they were and ``attach`` is
            not set.
        CorruptArtefact: its configuration is not the one that it records.
    """
    run, config = read_run(folder), read_config(folder)
    check_recorded(folder, config, run.get("config"))
    reference = read_data_reference(folder)
    path = data_path or (reference.path if reference else None)
    config_there = located(config, path)
    missing = ""
    if attach and reference is None and data_path is None:
        missing = "the folder does not say where its data are"
    else:
        try:
            dataset = data_of(folder, config_there, progress)
            _, world = world_of(config_there, dataset, progress)
            if dataset.sha256 == run["dataset"]["sha256"]:
                return Opened(folder=folder, run=run, config=config_there, world=world, dataset=dataset, missing=None)
            missing = "the data found are not those that the run was made with"
        except FedrecallError as error:
            missing = str(error)
    if not attach:
        raise UsageError(f"{missing}: name them with --data-path, or audit without them with --attach")
    return Opened(folder=folder, run=run, config=config, world=_stand_in(run, config), dataset=None, missing=missing)


def ledger_plan(opened: Opened, plan: Plan) -> list[str]:
    """Return how the plan of the configuration differs from ``plan``, which was charged; empty when it does not."""
    mine = plan_for(opened.config, opened.run["dataset"]["users"])
    return [] if mine.digest() == plan.digest() else ["the ledger's plan is not the one of the configuration"]


def _stand_in(run: dict[str, Any], config: RunConfig) -> World:
    """Return a world of as many devices and items as the run had, with generated events and no public features."""
    users, items = run["dataset"]["users"], max(run["dataset"]["items"], 2 * _EVENTS_PER_DEVICE)
    config = config.model_copy(update={"model": config.model.model_copy(update={"features": False})})
    events = min(_EVENTS_PER_DEVICE, items // 2)
    data = synthetic_dataset(users=users, items=items, events_per_user=events, tastes=_TASTES, seed=config.seed)
    plan = plan_for(config, users)
    shape = shape_of(config, items, 0, len(data.events.type_names))
    return World(config=config, plan=plan, store=data.events, features=None, shape=shape)
