"""Exact ranks and top lists from scores, with ties broken by one fixed public permutation.

A score and the item's place in the permutation are folded into one 64-bit key, so that no two items of a row
are equal: ranks and top lists are then unambiguous, and the same in whatever batch a user is asked.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64

from fedrecall.protocol.errors import ScoreError
from fedrecall.protocol.randomness import public_rng

MASKED_KEY = np.iinfo(np.int64).min
"""Key of an item that is not ranked; below the key of every finite score."""
UNRANKED = np.iinfo(np.int64).max
"""Rank of a target that is not ranked: beyond every cut-off."""
NO_ITEM = -1
"""Filler of a top list where fewer items are ranked than asked for."""


def tie_order(n_items: int) -> Int64[np.ndarray, " items"]:
    """Return the place of each item in the public permutation that breaks ties; the smaller place wins."""
    return public_rng(0, "evaluation", "ties", n_items).permutation(n_items).astype(np.int64)


def check_scores(
    scores: Float[np.ndarray, "batch items"], users: Int64[np.ndarray, " batch"], n_items: int, name: str
) -> Float32[np.ndarray, "batch items"]:
    """Return ``scores`` as float32 after checking shape and finiteness.

    Raises:
        ScoreError: a wrong shape, NaN or an infinity; the message names the recaller ``name`` and the users.

    """
    if scores.shape != (len(users), n_items):
        raise ScoreError(
            f"{name} scored {len(users)} users with an array of shape {scores.shape}, not "
            f"{(len(users), n_items)}: score must return one row a user and one column a catalogue item"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        scores = np.asarray(scores, dtype=np.float32)
    finite = np.isfinite(scores)
    if not finite.all():
        rows, columns = np.nonzero(~finite)
        row, item = rows[0], columns[0]
        raise ScoreError(
            f"{name} gave the score {scores[row, item]} to user {users[row]} and item {item} ({len(rows)} "
            f"such scores in the batch of users {users[0]}..{users[-1]}): scores must be finite; lower the "
            "learning rate or look for a division by zero"
        )
    return scores


def rank_keys(
    scores: Float32[np.ndarray, "batch items"],
    order: Int64[np.ndarray, " items"],
    ranked: Bool[np.ndarray, "batch items"],
) -> Int64[np.ndarray, "batch items"]:
    """Fold finite scores and tie order into distinct sortable keys; ``MASKED_KEY`` where not ``ranked``.

    IEEE floats sort like their bits once the bits of negative numbers are turned round; ``+ 0.0`` makes the
    two zeros one.
    """
    bits = (scores + np.float32(0.0)).view(np.int32)
    bits = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys: Int64[np.ndarray, "batch items"] = (bits.astype(np.int64) << 32) | (len(order) - 1 - order)
    keys[~ranked] = MASKED_KEY
    return keys


def top_items(keys: Int64[np.ndarray, "batch items"], k: int) -> Int32[np.ndarray, "batch k"]:
    """Return the ``k`` best items of each row, best first, filled up with ``NO_ITEM``."""
    found = torch.topk(torch.from_numpy(keys), min(k, keys.shape[1]))
    top = np.full((len(keys), k), NO_ITEM, dtype=np.int32)
    values = found.values.numpy()
    top[:, : values.shape[1]] = np.where(values == MASKED_KEY, NO_ITEM, found.indices.numpy())
    return top


def ranks_of(
    keys: Int64[np.ndarray, "batch items"],
    offsets: Int64[np.ndarray, " batch_plus_1"],
    items: Int32[np.ndarray, " targets"],
) -> Int64[np.ndarray, " targets"]:
    """Return the rank in row ``r`` of ``items[offsets[r]:offsets[r + 1]]``: 0 is best, or ``UNRANKED``."""
    rows = np.repeat(np.arange(len(keys)), np.diff(offsets))
    own = keys[rows, items]
    ranks = np.empty(len(items), dtype=np.int64)
    if len(items) <= 8 * len(keys):  # a pass over its row for each target is cheaper than sorting the rows
        for start in range(0, len(items), len(keys)):
            part = slice(start, start + len(keys))
            ranks[part] = (keys[rows[part]] > own[part, None]).sum(axis=1)
    else:
        for row, ordered in enumerate(np.sort(keys, axis=1)):
            part = slice(offsets[row], offsets[row + 1])
            ranks[part] = len(ordered) - np.searchsorted(ordered, own[part], side="right")
    ranks[own == MASKED_KEY] = UNRANKED
    return ranks
