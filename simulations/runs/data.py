"""The data of a run, by its configuration. Loads nothing that learns."""

from fedrecall.client.events.tables import Progress
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.registry import load_dataset


def load_data(config: RunConfig, progress: Progress) -> Dataset:
    """Return the data set that a configuration names."""
    return load_dataset(
        config.data.name,
        data_path=config.data.path,
        catalogue=config.data.catalogue,
        k_core=config.data.k_core,
        seed=config.seed,
        progress=progress,
    )
