"""From a device's events to its query vector, and the work on its user tower. Runs on the device; nothing leaves.

Functions take a store of one or many devices: a device passes its own.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from fedrecall.client.config import PersonalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Towers
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.client.training.samples import time_gaps
from fedrecall.models.loss import sampled_softmax
from fedrecall.models.shape import ModelShape
from fedrecall.models.towers import UserTower
from fedrecall.models.transformer import Transformer
from fedrecall.protocol.records import Arrays


def shared_transformer(arrays: Arrays, shape: ModelShape) -> Transformer:
    """Return the released transformer, in evaluation mode."""
    model = Transformer(shape)
    prefix = "transformer."
    weights = {n.removeprefix(prefix): torch.as_tensor(a) for n, a in arrays.items() if n.startswith(prefix)}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def contexts(
    transformer: Transformer, item_vectors: Tensor, store: EventStore, users: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode the latest events of ``users`` with the released item vectors.

    Returns:
        Context of every position [users, window, dim]; items [users, window], -1 for padding; loss weights of
        events [users, window].
    """
    window = transformer.position.num_embeddings
    counts = store.counts()[users]
    steps = np.arange(window) - window
    events = np.where(steps >= -counts[:, None], (store.offsets[users] + counts)[:, None] + steps, -1)
    real = events >= 0
    safe = np.where(real, events, 0)
    items = np.where(real, store.items[safe], -1) if store.n_events else np.full(events.shape, -1)
    types = np.where(real, store.types[safe], 0) if store.n_events else np.zeros(events.shape)
    weights = np.where(real, store.weights[safe], 0.0) if store.n_events else np.zeros(events.shape)
    item = torch.as_tensor(items, dtype=torch.long)
    vectors = item_vectors[item.clamp(min=0)] * torch.as_tensor(real)[..., None]
    with torch.no_grad():
        kinds, gaps = torch.as_tensor(types, dtype=torch.long), torch.as_tensor(time_gaps(store, events))
        context = transformer(vectors, kinds, gaps, torch.as_tensor(real))
    return context, item, torch.as_tensor(weights, dtype=torch.float32)


def query_vectors(
    transformer: Transformer,
    item_vectors: Tensor,
    store: EventStore,
    users: np.ndarray,
    towers: Towers | None,
) -> Float32[np.ndarray, "users dim"]:
    """Return the query of each of ``users``: the last context through its own tower, a row of ``towers`` each.

    ``None`` means that every tower is the identity.
    """
    latest = contexts(transformer, item_vectors, store, users)[0][:, -1:]
    if towers is not None:
        with torch.no_grad():
            latest = _towered(towers, latest)
    query: Float32[np.ndarray, "users dim"] = latest[:, 0].numpy()
    return query


def fresh_towers(arrays: Mapping[str, Tensor], devices: int) -> Towers:
    """Return ``devices`` copies of the initial private weights: every tower starts as the identity."""
    private = {n: a for n, a in arrays.items() if n.startswith("user.")}
    return {n: a[None].repeat(devices, *[1] * a.dim()).clone() for n, a in private.items()}


def tune_towers(
    towers: Towers,
    transformer: Transformer,
    item_vectors: Tensor,
    store: EventStore,
    users: np.ndarray,
    shape: ModelShape,
    config: PersonalConfig,
    seed: int,
) -> Towers:
    """Return ``towers``, a row a user, after local tuning on the user's own latest events, all else frozen.

    Each device minimises its own mean loss by Adam with decoupled weight decay (Loshchilov and Hutter 2019), so
    that a tower drifts back to the identity where its events say nothing. Devices do not influence each other.
    """
    private = {n: t.clone().requires_grad_() for n, t in towers.items()}
    context, items, weights = contexts(transformer, item_vectors, store, users)
    inputs, targets = context[:, :-1], items[:, 1:].clamp(min=0)
    weights = weights[:, 1:] * (items[:, :-1] >= 0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    weights_of = list(private.values())
    means, squares = ([torch.zeros_like(weight) for weight in weights_of] for _ in range(2))
    steps = [torch.zeros(()) for _ in weights_of]
    for step in range(config.steps):
        drawn = draw_negatives(seed, step, shape.n_items, config.negatives)
        negatives = torch.as_tensor(drawn, dtype=torch.long)
        masked = (items[:, :, None] == negatives).any(dim=1)
        query = _towered(private, inputs)
        positive = (query * item_vectors[targets]).sum(dim=-1)
        loss = sampled_softmax(positive, query @ item_vectors[negatives].T, masked, shape.n_items)
        gradients = list(torch.autograd.grad((loss * weights).sum(), weights_of))
        with torch.no_grad():
            # The class of that name does the same, and loads torch's compiler first: a second on every device.
            adamw(
                weights_of,
                gradients,
                means,
                squares,
                [],
                steps,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
    return {n: t.detach() for n, t in private.items()}


def _towered(towers: Towers, context: Tensor) -> Tensor:
    """Send each device's contexts [devices, length, dim] through its own tower."""
    bare = {n.removeprefix("user."): t for n, t in towers.items()}
    tower = UserTower(context.shape[-1], bare["vector.weight"].shape[-1], bare["hidden.weight"].shape[1])

    def one(weights: dict[str, Tensor], own: Tensor) -> Tensor:
        out: Tensor = functional_call(tower, weights, (own[None],))[0]
        return out

    result: Tensor = vmap(one)(bare, context)
    return result
