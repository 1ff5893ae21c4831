"""Negatives: public randomness, the same for all devices of a round, so that they tell nothing about anybody."""

import numpy as np
from jaxtyping import Int32

from fedrecall.protocol.randomness import public_rng


def draw_negatives(seed: int, round: int, n_items: int, count: int) -> Int32[np.ndarray, "count"]:
    """Draw ``min(count, n_items)`` distinct items uniformly from the whole catalogue for one round."""
    rng = public_rng(seed, "negatives", round)
    return rng.choice(n_items, size=min(count, n_items), replace=False).astype(np.int32)
