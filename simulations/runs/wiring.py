"""What every use of a run shares: its data, plan and shape from a configuration, and the model as devices use it."""

from typing import Literal

from fedrecall.client.device.folder import task_of
from fedrecall.client.training.cohort import Towers
from fedrecall.privacy.accounting.soundness import check_task
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.records import Arrays
from fedrecall.server.training.content_features import content_features
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import Split, make_split
from fedrecall.simulations.evaluation.evaluate import Evaluation, evaluate
from fedrecall.simulations.evaluation.recaller import Recaller
from fedrecall.simulations.runs.recaller import ModelRecaller
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import Progress, World, shape_of, trained_names


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


def prepare(config: RunConfig, progress: Progress) -> tuple[Dataset, Split, World]:
    """Load the data, split it, and fix plan and shape."""
    dataset = load_data(config, progress)
    return dataset, *world_of(config, dataset, progress)


def world_of(config: RunConfig, dataset: Dataset, progress: Progress) -> tuple[Split, World]:
    """Split a loaded data set, and fix plan and shape."""
    split = make_split(dataset, config.data.protocol, config.seed, repeats=config.data.repeats)
    features = dataset.catalogue.category_matrix() if config.model.features else None
    if features is not None and not features.shape[1]:
        features = None
    n_features = 0 if features is None else features.shape[1]
    progress("plan", 0, 1)
    plan = plan_for(config, dataset.events.n_users)
    progress("plan", 1, 1)
    shape = shape_of(config, len(dataset.catalogue), n_features, len(split.train.type_names))
    world = World(
        config=config,
        plan=plan,
        store=split.train,
        features=features,
        shape=shape,
        content=content_features(dataset.catalogue.titles, dataset.catalogue.categories),
    )
    # What no device would accept is not simulated either.
    check_task(task_of(plan, shape, config.local, trained_names(world), config.seed))
    return split, world


def recaller(world: World, arrays: Arrays, table: ItemTable, towers: Towers | None, *, name: str) -> ModelRecaller:
    """Return a released model as devices use it: shared arrays, item table, and towers that rounds trained."""
    return ModelRecaller(
        name=name,
        arrays=arrays,
        vectors=table.vectors(),
        shape=world.shape,
        personal=world.config.personal,
        towers=towers,
        seed=world.config.seed,
    )


def measure(
    model: Recaller,
    dataset: Dataset,
    split: Split,
    which: Literal["validation", "test"],
    config: RunConfig,
    progress: Progress,
) -> Evaluation:
    """Evaluate ``model`` as the run's configuration says."""
    return evaluate(
        model,
        split,
        which,
        catalogue=dataset.catalogue,
        ks=config.evaluation.cutoffs,
        groups=dataset.groups,
        progress=progress,
    )
