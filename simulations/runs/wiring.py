"""What every use of a run shares: its split, plan and shape from a configuration, and the model as devices use it."""

from typing import Literal

import numpy as np

from fedrecall.client.training.cohort import Towers
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.soundness import check_task
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.records import Arrays
from fedrecall.server.training.content_features import content_features
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits import Split, make_split
from fedrecall.simulations.evaluation.evaluate import Evaluation, evaluate
from fedrecall.simulations.evaluation.recaller import Recaller
from fedrecall.simulations.runs.data import load_data
from fedrecall.simulations.runs.recaller import ModelRecaller, released
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import Progress, World, shape_of, trained_names


def prepare(config: RunConfig, progress: Progress) -> tuple[Dataset, Split, World]:
    """Load the data, split it, and fix plan and shape."""
    dataset = load_data(config, progress)
    return dataset, *world_of(config, dataset, progress)


def world_of(config: RunConfig, dataset: Dataset, progress: Progress) -> tuple[Split, World]:
    """Split a loaded data set, and fix plan and shape; raises PlanError for a plan that no device would accept."""
    from fedrecall.client.device.folder import task_of  # Opacus takes seconds to load

    split, features, shape = split_of(config, dataset)
    progress("plan", 0, 1)
    plan = plan_for(config, dataset.events.n_users)
    progress("plan", 1, 1)
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


def split_of(config: RunConfig, dataset: Dataset) -> tuple[Split, np.ndarray | None, ModelShape]:
    """Split a loaded data set; also return the item tower's public features (``None`` for none) and the model's shape.

    All that asking a finished run takes, without its plan, which takes seconds to work out.
    """
    split = make_split(dataset, config.data.protocol, config.seed, repeats=config.data.repeats)
    features = dataset.catalogue.category_matrix() if config.model.features else None
    if features is not None and not features.shape[1]:
        features = None
    n_features = 0 if features is None else features.shape[1]
    return split, features, shape_of(config, len(dataset.catalogue), n_features, len(split.train.type_names))


def recaller(world: World, arrays: Arrays, table: ItemTable, towers: Towers | None, *, name: str) -> ModelRecaller:
    """Return ``released`` of a world's model."""
    return released(world.config, world.shape, arrays, table, towers, name=name)


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
