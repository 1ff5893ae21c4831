"""The same model trained centrally: shuffled mini-batches, torch's Adam, plain autograd. No clip, no noise, no devices.

What a company that collects everybody's events would do; the gap to it is the price of federation. It shares the
model, the loss and the samples with the federated paths, and nothing of their round loop.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedrecall.client.training.negatives import draw_negatives
from fedrecall.client.training.samples import input_masks, sample_tensors, user_samples
from fedrecall.models.recall import ITEM_ID, RecallModel
from fedrecall.protocol.randomness import derive_seed, public_rng
from fedrecall.simulations.training.plan import bounded_steps, plan_for
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import Progress, World

_PIECE = 64
"""Samples whose gradient is taken at a time: the scores of a whole batch would not fit into a processor's cache."""


def train_centrally(world: World, progress: Progress) -> dict[str, np.ndarray]:
    """Train on all training events, from the start without its noise; return the shared arrays.

    Settings are ``world.config.central``; the learning rate warms up and then falls linearly to zero.
    """
    config = world.config.model_copy(update={"privacy": world.config.privacy.model_copy(update={"epsilon": None})})
    settings = config.central
    world = replace(world, config=config, plan=plan_for(config, world.plan.devices))
    start = start_arrays(world, lambda name: None, progress)[0]
    table = nn.Parameter(torch.as_tensor(start[ITEM_ID]).clone())
    model = RecallModel(world.shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.copy_(torch.as_tensor(start[name]))
    shared = [p for n, p in model.named_parameters() if n in start]
    for parameter in model.user.parameters():
        parameter.requires_grad_(False)
    optimiser = torch.optim.Adam([table, *shared], lr=settings.learning_rate, betas=(0.9, 0.99))
    usable = np.flatnonzero(world.store.counts() >= 2)
    rng = public_rng(config.seed, "central")
    seed = derive_seed(config.seed, "central")
    order = np.zeros(0, dtype=np.int64)
    steps = bounded_steps(settings.steps, settings.passes, len(usable), settings.batch)
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
        rate = settings.learning_rate * warm * (1.0 - step / steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        while len(order) < min(settings.batch, len(usable)):
            order = np.concatenate([order, rng.permutation(usable)])
        users, order = order[: settings.batch], order[settings.batch :]
        negatives = draw_negatives(seed, step, world.shape.n_items, config.local.negatives)
        optimiser.zero_grad(set_to_none=True)
        for begin in range(0, len(users), _PIECE):
            piece = users[begin : begin + _PIECE]
            samples = user_samples(
                world.store, piece, piece, window=world.shape.window, negatives=negatives, seed=seed, round=step
            )
            kept = input_masks(piece, shape=world.shape, local=config.local, per_device=1, seed=seed, round=step)
            batch = sample_tensors(samples, negatives, world.features, kept, device=table.device, dtype=table.dtype)
            own, negative = table[batch.pop("own")], table[batch.pop("negatives")][None]
            features = batch.pop("own_features", None), batch.pop("negative_features", None)
            loss = model(own, negative, *features, **batch).sum() / settings.batch
            loss.backward()
        optimiser.step()
        progress("central", step + 1, steps)
    arrays = {n: p.detach().numpy() for n, p in model.named_parameters() if n in start}
    return {**arrays, ITEM_ID: table.detach().numpy()}
