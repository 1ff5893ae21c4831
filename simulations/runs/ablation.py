"""How much of a run comes from each of its parts: every one switched off in turn."""

import shutil
from dataclasses import replace
from pathlib import Path

from fedrecall.protocol.item_table import ItemTable
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.runs.wiring import measure, recaller
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import Progress, World


def measure_ablation(
    world: World, dataset: Dataset, split: Split, folder: Path, progress: Progress
) -> dict[str, dict[str, float]]:
    """Return test metrics of the run without each of its parts, every one at the run's whole epsilon.

    The trainings live in ``folder``, so that an interrupted one goes on, and are removed at the end.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, config in _without(world.config).items():
        # The cohort engine ends with flower's weights, and needs no other processes.
        engine = "cohort" if config.engine == "flower" else config.engine
        config = config.model_copy(update={"engine": engine})
        other = replace(world, config=config, plan=plan_for(config, dataset.events.n_users))
        place = folder / name.replace(" ", "-")
        trained = train(other, place, resume=True, validate=None, progress=_renamed(progress, name))
        table = ItemTable.from_vectors(item_vectors(trained.arrays, world.features), dataset.catalogue.ids)
        model = recaller(other, trained.arrays, table, trained.towers, name=name)
        rows[name] = measure(model, dataset, split, "test", config, progress).metrics
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def _without(config: RunConfig) -> dict[str, RunConfig]:
    start, rounds = config.start.model_copy(update={"enabled": False}), config.rounds.model_copy(update={"count": 0})
    personal = config.personal.model_copy(update={"steps": 0})
    local = config.local.model_copy(update={"tower_learning_rate": 0.0})
    found = {}
    if config.start.enabled:
        found["without the start"] = config.model_copy(update={"start": start})
        if config.start.items and config.privacy.unit == "user":
            no_moments = config.start.model_copy(update={"items": 0})
            found["without second moments"] = config.model_copy(update={"start": no_moments})
        if config.start.content:
            no_content = config.start.model_copy(update={"content": 0.0})
            found["without public content"] = config.model_copy(update={"start": no_content})
    if config.rounds.count:
        found["without the rounds"] = config.model_copy(update={"rounds": rounds})
    if config.personal.steps or config.local.tower_learning_rate:
        found["without the user tower"] = config.model_copy(update={"personal": personal, "local": local})
    return found


def _renamed(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{stage}, {name}", done, total)
