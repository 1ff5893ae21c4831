"""Which items are in a device's history: all of it against items that it lacks and that are as popular.

Popularity alone puts a device's items above random ones; that is no leak. So each item of the history meets one of
nearly the same popularity among the other devices.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fedrecall.simulations.audit.attacks.items import Scorers
from fedrecall.simulations.audit.attacks.scores import Guesses, best_of

_NEAR = 0.1
"""Counts within 10 %, or 1, are as popular."""


def matched_items(
    held: Bool[np.ndarray, " items"], counts: Int64[np.ndarray, " items"], rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " matched"], Int64[np.ndarray, " matched"]]:
    """Return items of a history and, for each, another one outside it that as many other devices hold.

    Args:
        held: the history.
        counts: devices that hold each item, this one included.
        rng: draws among equals; an item that finds no partner is left out.
    """
    others = counts - held
    free = rng.permutation(np.flatnonzero(~held))
    free = free[np.argsort(others[free], kind="stable")]
    rivals = others[free].astype(np.float64)
    taken = np.zeros(len(free), dtype=bool)
    own, partner = [], []
    for item in rng.permutation(np.flatnonzero(held)).tolist():
        slack = max(1.0, _NEAR * others[item])
        low, high = np.searchsorted(rivals, [others[item] - slack, others[item] + slack + 1e-9])
        open_ones = low + np.flatnonzero(~taken[low:high])
        if len(open_ones):
            best = open_ones[np.argmin(np.abs(rivals[open_ones] - others[item]))]
            taken[best] = True
            own.append(item)
            partner.append(int(free[best]))
    return np.array(own, dtype=np.int64), np.array(partner, dtype=np.int64)


def reconstruct(
    scorers: Scorers,
    rows: Int64[np.ndarray, " devices"],
    held: Bool[np.ndarray, "devices items"],
    counts: Int64[np.ndarray, " items"],
    rng: np.random.Generator,
) -> tuple[str, Guesses]:
    """Return the scorer used and its guesses: each device's items against matched ones, a cluster a device.

    Args:
        scorers: from ``item_scores``: views by items.
        rows: the view of each device.
        held: its history.
        counts: devices of the whole world that hold each item.
        rng: draws partners and halves.
    """
    pairs: list[tuple[int, int, int, bool]] = []
    for device, row in enumerate(rows.tolist()):
        own, partner = matched_items(held[device], counts, rng)
        pairs += [(device, row, item, True) for item in own.tolist()]
        pairs += [(device, row, item, False) for item in partner.tolist()]
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 4).T
    guesses = Guesses(scores=np.zeros(columns.shape[1]), truth=columns[3].astype(bool), clusters=columns[0])
    return best_of({name: _standard(s)[columns[1], columns[2]] for name, s in scorers.items()}, guesses, rng)


def against(
    scores: Float64[np.ndarray, "devices items"],
    held: Bool[np.ndarray, "devices items"],
    rivals: Bool[np.ndarray, "devices items"],
) -> Guesses:
    """Return the guesses of a scorer on each device's items against ``rivals`` that it lacks, such as negatives."""
    wanted = held | rivals
    devices, items = np.nonzero(wanted)
    return Guesses(
        scores=_standard(scores)[devices, items], truth=held[devices, items], clusters=devices.astype(np.int64)
    )


def _standard(scores: Float64[np.ndarray, "views items"]) -> Float64[np.ndarray, "views items"]:
    """Bring views to one scale, since devices' updates have different lengths."""
    spread = scores.std(axis=1, keepdims=True)
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0))
