"""The start of a run in one process: what its rounds begin with, from private statistics and public content."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedrecall.client.training.start import popularity_sum, second_moment_sum
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.privacy.mechanisms.noise import check_noise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed, public_rng
from fedrecall.protocol.records import Comparison
from fedrecall.server.config import StartSettings
from fedrecall.server.training.content import Content
from fedrecall.server.training.start import (
    compare,
    first_item_vectors,
    first_model,
    release_popularity,
    release_second_moments,
)
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.training import simulated_noise
from fedrecall.simulations.training.plan import moment_items
from fedrecall.simulations.training.world import Progress, World


def start_arrays(
    world: World, charge: Callable[[str], object], progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Make the first model: public random weights, and item vectors from the private start.

    ``charge`` is called with each mechanism's name before its release. Also returns facts for the report.
    """
    config, plan, store = world.config, world.plan, world.store
    fresh = initial_arrays(world.shape, derive_seed(config.seed, "model"))
    arrays = {name: fresh[name].numpy().copy() for name in shared_names(fresh)}
    if not config.start.enabled:
        rng = public_rng(config.seed, "id table")
        table = rng.standard_normal((world.shape.n_items, world.shape.dim)) / np.sqrt(world.shape.dim)
        arrays[ITEM_ID] = table.astype(np.float32)
        return arrays, {"items": 0, "directions": 0}
    steps = 3
    progress("start", 0, steps)
    mechanism = plan.mechanism("popularity")
    noise = simulated_noise.server_noise(world, mechanism.name, 0)
    check_noise(noise, plan)
    charge(mechanism.name)
    popular = simulated_noise.released_locally(world, mechanism, popularity_sum(store, plan.unit))
    central = plan.trust == "central"
    released = release_popularity(popular, mechanism, noise).arrays if central else popular.arrays
    popularity = released["popularity"]
    progress("start", 1, steps)
    settings, moments, second = config.start, None, None
    content = None
    if world.content is not None and settings.content:
        content = Content(features=world.content, items=settings.content_items, weight=settings.content)

    def most_popular(count: int) -> Comparison:
        return compare(popularity, count, mechanism, exponent=settings.exponent, reach=settings.reach)

    count = moment_items(config, plan, world.shape.n_items)
    if count:
        comparison = most_popular(count)
        second = plan.mechanism("second_moments")
        charge(second.name)
        sums = second_moment_sum(store, comparison)
        release = release_second_moments(sums, second, simulated_noise.server_noise(world, second.name, 0))
        moments = release.arrays["second_moments"]
    progress("start", 2, steps)
    compared = most_popular(max(count, content.items) if content else count)
    first = first_item_vectors(
        popularity,
        moments,
        compared,
        second,
        world.shape.dim,
        power=settings.power,
        cut=settings.cut,
        content=content,
    )
    progress("start", 3, steps)
    facts = {"items": count, "directions": first.directions}
    return first_model(arrays, first, start_settings(config, plan, world.shape.n_items)), facts


def start_settings(config: RunConfig, plan: Plan, n_items: int) -> StartSettings:
    """Return the start of a run as a server carries it out."""
    own = config.start.model_dump(include=set(StartSettings.model_fields))
    return StartSettings(compared=moment_items(config, plan, n_items), **own)
