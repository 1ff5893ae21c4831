"""Sampled softmax with the log-q correction, and full softmax as what it estimates."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sampled_softmax(
    positive: Float[Tensor, "batch length"],
    negative: Float[Tensor, "batch length negatives"],
    masked: Bool[Tensor, "batch negatives"],
    n_items: int,
) -> Float[Tensor, "batch length"]:
    """Return the cross-entropy of each position against uniformly sampled negatives.

    A negative drawn with probability q a draw stands for 1 / (K q) items, so its logit gets -log(K q)
    (Bengio and Senécal 2008; Yi and others 2019, section 3). Here q is uniform over the items that are not masked,
    and the positive stands for itself. With every other item as a negative this is the full softmax exactly.

    Args:
        positive: score of the item that came next.
        negative: scores of the negatives, shared by all positions of a sample.
        masked: negatives that occur in the sample itself and are left out.
        n_items: size of the catalogue.
    """
    kept = (~masked).sum(dim=-1).clamp(min=1)
    # log(K q), for the positive instead of against every negative: the same softmax, in one pass over the scores.
    correction = torch.log(kept.to(negative.dtype)) - math.log(n_items - 1)
    hidden = torch.zeros_like(masked, dtype=negative.dtype).masked_fill(masked, float("-inf"))
    first = positive + correction[:, None]
    logits = torch.cat([first[..., None], negative + hidden[:, None, :]], dim=-1)
    return -torch.log_softmax(logits, dim=-1)[..., 0]


def full_softmax(
    positive: Float[Tensor, "batch length"], every: Float[Tensor, "batch length items"]
) -> Float[Tensor, "batch length"]:
    """Return the cross-entropy of each position against the whole catalogue."""
    return torch.logsumexp(every, dim=-1) - positive
