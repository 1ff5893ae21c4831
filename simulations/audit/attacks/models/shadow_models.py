"""Models that the run's own training makes of random halves of the devices: what membership attacks learn from."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from fedrecall.client.recall.retrieval import contexts, shared_transformer
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.world import Progress, World

Release = Callable[[World], Arrays]

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """Models and who is in them.

    Attributes:
        signals: how well each model predicts each device's events: mean log-likelihood of the next item over the
            whole catalogue, minus the model's mean over devices.
        included: the coin that put a device's events into a model's training; all fair and independent.
    """

    signals: Float64[np.ndarray, "models devices"]
    included: Bool[np.ndarray, "models devices"]


def train_shadows(
    world: World,
    devices: Int64[np.ndarray, " devices"],
    *,
    models: int,
    seconds: float,
    rng: np.random.Generator,
    progress: Progress,
    release: Release | None = None,
) -> Shadows:
    """Train up to ``models`` models, as many as ``seconds`` allow and at least 4, and measure ``devices`` on each.

    A device that is out stays enrolled and has no events: its contributions are zero, so that in and out are the
    neighbours that add or remove a device. Every model has its own seed, hence its own noise. ``release`` makes the
    model of a world; ``None`` is the run's own training.
    """
    began = time.perf_counter()
    signals, included = [], []
    for model in range(models):
        spent = time.perf_counter() - began
        if model >= 4 and spent * (model + 1) / model > seconds:
            break
        # Told is how many the time allows at this speed, so that what is left is not of models that never come.
        allowed = min(models, max(4, int(seconds * model / spent))) if model else models
        progress("shadow models", model, allowed)
        kept = rng.random(world.store.n_users) < 0.5
        seed = derive_seed(world.config.seed, "shadow model", model) % 2**63
        config = world.config.model_copy(update={"seed": seed})
        own = replace(world, config=config, store=world.store.select(kept[world.store.users()]))
        arrays = (release or trained)(own)
        found = signal(world, arrays, devices)
        signals.append(found - found.mean())
        included.append(kept[devices])
    progress("shadow models", len(signals), len(signals))
    return Shadows(signals=np.stack(signals), included=np.stack(included))


def trained(world: World) -> Arrays:
    """Return the model that the run's own training of ``world`` releases."""
    with tempfile.TemporaryDirectory() as folder:
        return train(world, Path(folder), resume=False, validate=None, progress=lambda *_: None).arrays


def signal(world: World, arrays: Arrays, devices: Int64[np.ndarray, " devices"]) -> Float64[np.ndarray, " devices"]:
    """Return the mean log-likelihood of each device's latest events under a released model; 0 without a target."""
    transformer = shared_transformer(arrays, world.shape)
    vectors = torch.as_tensor(item_vectors(arrays, world.features))
    found = []
    for begin in range(0, len(devices), _AT_ONCE):
        part = devices[begin : begin + _AT_ONCE]
        context, items, _ = contexts(transformer, vectors, world.store, part)
        target = items[:, 1:]
        real = (target >= 0) & (items[:, :-1] >= 0)
        logs = torch.log_softmax(context[:, :-1] @ vectors.T, dim=-1)
        own = logs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        found.append((own * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))
    return torch.cat(found).numpy().astype(np.float64)
