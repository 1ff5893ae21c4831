"""What a run is measured against: the baselines, and the same model trained centrally. Simulation only."""

from typing import Any

from fedrecall.protocol.item_table import ItemTable
from fedrecall.simulations.baselines.local_only import LocalOnly
from fedrecall.simulations.baselines.tuning import fit_tuned_baselines
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.evaluation.evaluate import Evaluation
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.runs.wiring import measure, recaller
from fedrecall.simulations.training.central import train_centrally
from fedrecall.simulations.training.world import Progress, World

NAMES = ("most_popular", "own_first", "item_knn", "ease", "ease_weighted", "central", "local_only")
"""What ``run.json`` lists, ``null`` where the configuration leaves it out."""


def measure_rivals(
    world: World, dataset: Dataset, split: Split, progress: Progress
) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """Return the test evaluations by name, and the settings that validation chose."""
    config = world.config
    found: dict[str, Evaluation] = {}
    settings: dict[str, Any] = {}
    if config.evaluation.baselines:
        for name, tuned in fit_tuned_baselines(split, dataset.catalogue, progress).items():
            found[name] = measure(tuned.recaller, dataset, split, "test", config, progress)
            settings[name] = tuned.settings
        found["local_only"] = measure(LocalOnly.fit(dataset.catalogue), dataset, split, "test", config, progress)
    if config.evaluation.central:
        found["central"] = central_evaluation(world, dataset, split, progress)
        settings["central"] = config.central.model_dump()
    return found, settings


def central_evaluation(world: World, dataset: Dataset, split: Split, progress: Progress) -> Evaluation:
    """Train the same model centrally from a noiseless start, and evaluate it on test as the federated one."""
    arrays = train_centrally(world, progress)
    table = ItemTable.from_vectors(item_vectors(arrays, world.features), dataset.catalogue.ids)
    model = recaller(world, arrays, table, None, name="central")
    return measure(model, dataset, split, "test", world.config, progress)
