"""What kind of person is behind it: age, gender, occupation from what leaves a device, or would with a query vector."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64

from fedrecall.client.recall.retrieval import query_vectors, shared_transformer
from fedrecall.models.recall import ITEM_ID
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.audit.attacks.items import item_scores
from fedrecall.simulations.audit.attacks.logistic import Features, held_out_classes
from fedrecall.simulations.audit.attacks.observed import View
from fedrecall.simulations.audit.attacks.scores import Guesses
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.training.world import World

SMALLEST = 20
"""Devices of a label that enters: fewer would be noise."""


def infer_attribute(
    blocks: Sequence[Features], labels: Sequence[str], rng: np.random.Generator
) -> tuple[Guesses, dict[str, float]] | None:
    """Return guesses of (device, label) pairs, and accuracy beside the largest label's share.

    A guess is how much likelier than usual the label is, by a classifier that was trained on the other half of the
    devices; a cluster is a device. ``None`` where fewer than two labels have 20 devices.

    Args:
        blocks: what is seen of each device, by kind.
        labels: one a device.
        rng: draws the halves.
    """
    _, codes, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts >= SMALLEST)
    if len(large) < 2:
        return None
    keep = np.isin(codes, large)
    truth = np.searchsorted(large, codes[keep])
    found, judged = held_out_classes([block[keep] for block in blocks], truth, rng)
    truth = truth[judged]
    share = counts[large] / counts[large].sum()
    devices, classes = found.shape
    guesses = Guesses(
        scores=(found - np.log(share)).ravel(),
        truth=(np.arange(classes) == truth[:, None]).ravel(),
        clusters=np.repeat(np.arange(devices), classes),
    )
    accuracy = float(np.mean(found.argmax(axis=1) == truth))
    return guesses, {
        "accuracy": accuracy,
        "largest_label": float(share.max()),
        "labels": float(len(large)),
        "devices": float(devices),
    }


def update_features(views: list[View], vectors: Float64[np.ndarray, "items dim"]) -> list[Features]:
    """Return what one update a device tells: a score for every item, and all small arrays as they are.

    Every device's part of a block has length 1, so that the clip makes no difference.
    """
    blocks = [scores for name, scores in item_scores(views, vectors).items() if "centred" not in name]
    small = [name for name in views[0].arrays if name != ITEM_ID]
    blocks += [np.stack([np.ravel(view.arrays[name]) for view in views]).astype(np.float64) for name in small]
    return [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12) for block in blocks]


def query_features(world: World, arrays: Arrays, devices: Int64[np.ndarray, " devices"]) -> list[Features]:
    """Return the devices' query vectors: what a server would see that searched for them."""
    vectors = torch.as_tensor(item_vectors(arrays, world.features))
    queries = query_vectors(shared_transformer(arrays, world.shape), vectors, world.store, devices, None)
    return [queries.astype(np.float64)]
