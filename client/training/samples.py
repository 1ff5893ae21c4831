"""From a device's events to training samples, by the unit of the plan.

Unit ``user``: a sample is one window of the device's history, drawn anew every round. Unit ``interaction``: a
sample is one block of the history. An event's block is a salted hash of its item and of nothing else, so that
adding or removing one event changes one sample (docs/privacy.md, theorem 2).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.models.shape import ModelShape
from fedrecall.models.transformer import GAPS
from fedrecall.protocol.randomness import derive_seed, hashed_uniform


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Padded training samples, a row each. Windows are left-padded; see ``RecallModel.forward``.

    Attributes:
        own: distinct catalogue items of the sample; unused places hold item 0 and no slot points to them.
        slots: index into ``own`` of every event of the window.
        real: which events of the window are not padding.
        types: event types.
        gaps: how long after the event before it each event of the sample came, see ``time_gaps``.
        loss_weights: weight of each target; sums to 1 a sample for unit ``user`` (0 for one without a target), and
            is divided by the public window length for unit ``interaction``.
        masked: which of the round's negatives occur in the sample itself.
    """

    own: Int32[np.ndarray, "samples own"]
    slots: Int64[np.ndarray, "samples length_plus_1"]
    real: Bool[np.ndarray, "samples length_plus_1"]
    types: Int64[np.ndarray, "samples length_plus_1"]
    gaps: Int64[np.ndarray, "samples length_plus_1"]
    loss_weights: Float32[np.ndarray, "samples length"]
    masked: Bool[np.ndarray, "samples negatives"]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.own)


def user_samples(
    store: EventStore,
    users: np.ndarray,
    keys: np.ndarray,
    *,
    window: int,
    negatives: np.ndarray,
    seed: int,
    round: int,
) -> Samples:
    """Return one sample a device: ``window + 1`` consecutive events from a place drawn for this round.

    Args:
        store: the events.
        users: rows of ``store``.
        keys: a number for each device that its draws depend on.
        window: inputs a sample.
        negatives: the round's negatives.
        seed: seed of the draws.
        round: the round.
    """
    counts = store.counts()[users]
    places = np.maximum(counts - window, 1)
    draws = hashed_uniform(derive_seed(seed, "window", round), keys)
    start = store.offsets[users] + np.floor(draws * places).astype(np.int64)
    length = np.minimum(counts, window + 1)
    steps = np.arange(window + 1) - (window + 1 - length)[:, None]
    events = np.where(steps >= 0, start[:, None] + steps, -1)
    return _assemble(store, events, negatives=negatives, public_total=False)


def block_samples(
    store: EventStore, users: np.ndarray, *, blocks: int, window: int, negatives: np.ndarray, seed: int
) -> Samples:
    """Return ``blocks`` samples a device, in order: the latest ``window + 1`` events of each block.

    An event is in the block that a hash of its item gives, whatever else the device holds.
    """
    block_of_item = blocks_of_items(store.n_items, blocks, seed)
    events = np.full((len(users), blocks, window + 1), -1, dtype=np.int64)
    for row, user in enumerate(users):
        own = np.arange(store.offsets[user], store.offsets[user + 1])
        block = block_of_item[store.items[own]]
        for b in range(blocks):
            latest = own[block == b][-(window + 1) :]
            events[row, b, window + 1 - len(latest) :] = latest
    return _assemble(store, events.reshape(-1, window + 1), negatives=negatives, public_total=True)


def blocks_of_items(n_items: int, blocks: int, seed: int) -> Int64[np.ndarray, " items"]:
    """Return the block of each item of the catalogue, a salted hash of it: public."""
    draws = hashed_uniform(derive_seed(seed, "blocks"), np.arange(n_items))
    return np.asarray(np.floor(draws * blocks), dtype=np.int64)


def _assemble(store: EventStore, events: np.ndarray, *, negatives: np.ndarray, public_total: bool) -> Samples:
    """Build samples from ``events`` [samples, length + 1], rows of the store, -1 for padding on the left."""
    real = events >= 0
    items = np.where(real, store.items[events] if store.n_events else 0, store.n_items)
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    rank = np.zeros(items.shape, dtype=np.int64)
    np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1, out=rank[:, 1:])
    slots = np.empty_like(rank)
    np.put_along_axis(slots, order, rank, axis=1)
    own = np.zeros(items.shape, dtype=np.int32)
    np.put_along_axis(own, rank, np.where(ordered < store.n_items, ordered, 0).astype(np.int32), axis=1)

    weights = np.where(real, store.weights[events] if store.n_events else 0.0, 0.0).astype(np.float32)
    targets = weights[:, 1:] * real[:, :-1]
    if public_total:
        loss_weights = targets / np.float32(targets.shape[1])
    else:
        loss_weights = targets / np.maximum(targets.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)

    place = np.full(store.n_items + 1, -1, dtype=np.int64)
    place[negatives] = np.arange(len(negatives))
    hit = place[items]
    masked = np.zeros((len(items), len(negatives)), dtype=bool)
    masked[np.nonzero(hit >= 0)[0], hit[hit >= 0]] = True
    return Samples(
        own=own,
        slots=slots,
        real=real,
        types=np.where(real, store.types[events] if store.n_events else 0, 0).astype(np.int64),
        gaps=time_gaps(store, events),
        loss_weights=loss_weights.astype(np.float32),
        masked=masked,
    )


def time_gaps(store: EventStore, events: Int64[np.ndarray, "samples length"]) -> Int64[np.ndarray, "samples length"]:
    """Return floor(log2(1 + seconds)) between each event and the one before it in its row, at most ``GAPS`` - 1.

    0 where there is none, and everywhere without times. What is before the row is not read: an event that is not in a
    sample changes nothing in it.

    Args:
        store: the events.
        events: rows of ``store``, -1 for padding on the left.
    """
    gaps = np.zeros(events.shape, dtype=np.int64)
    if store.times is None or not store.n_events:
        return gaps
    times = store.times[events]
    since = np.where(events[:, :-1] >= 0, times[:, 1:] - times[:, :-1], 0)
    gaps[:, 1:] = np.clip(np.frexp(1.0 + since)[1] - 1, 0, GAPS - 1)
    return gaps


def input_masks(
    keys: np.ndarray, *, shape: ModelShape, local: LocalConfig, per_device: int, seed: int, round: int
) -> Float32[np.ndarray, "samples length dim"] | None:
    """Return what a round's samples multiply the inputs of the transformer's blocks by; ``None`` without dropout.

    0 with probability ``local.dropout``, else 1 / (1 - it) (Srivastava and others 2014, section 10): drawn from the
    seed, the round and the device's key, never from its events.

    Args:
        keys: a number for each device, as for ``user_samples``.
        shape: the model's.
        local: holds the share.
        per_device: samples a device.
        seed: seed of the draws.
        round: the round.
    """
    if not local.dropout:
        return None
    numbers = np.arange(per_device * shape.window * shape.dim, dtype=np.uint64)
    with np.errstate(over="ignore"):
        ids = np.asarray(keys).astype(np.uint64)[:, None] * np.uint64(len(numbers)) + numbers
    draws = hashed_uniform(derive_seed(seed, "dropout", round), ids)
    kept = (draws >= local.dropout).astype(np.float32) / np.float32(1.0 - local.dropout)
    return kept.reshape(-1, shape.window, shape.dim)


def sample_tensors(
    samples: Samples,
    negatives: np.ndarray,
    features: np.ndarray | None,
    kept: np.ndarray | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return samples as the tensors that ``RecallModel.forward`` takes, with item numbers ``own``, ``negatives``.

    ``kept`` is what ``input_masks`` returned.
    """
    tensors = {
        "own": torch.as_tensor(samples.own, dtype=torch.long),
        "negatives": torch.as_tensor(negatives, dtype=torch.long),
        "slots": torch.as_tensor(samples.slots),
        "real": torch.as_tensor(samples.real),
        "types": torch.as_tensor(samples.types),
        "gaps": torch.as_tensor(samples.gaps),
        "loss_weights": torch.as_tensor(samples.loss_weights, dtype=dtype),
        "masked": torch.as_tensor(samples.masked),
    }
    if kept is not None:
        tensors["kept"] = torch.as_tensor(kept, dtype=dtype)
    if features is not None:
        tensors["own_features"] = torch.as_tensor(features[samples.own], dtype=dtype)
        tensors["negative_features"] = torch.as_tensor(features[negatives], dtype=dtype)[None]
    return {n: t.to(device) for n, t in tensors.items()}
