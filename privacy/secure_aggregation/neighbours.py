"""Who shares masks with whom: a sparse graph, and how many neighbours and which threshold it takes.

Each device has ``neighbours`` others, those that stand next to it on a ring in random order (a Harary graph; Bell and
others 2020, section 3), so that they are a uniform subset of the others: how many of them lie or drop out is
hypergeometric, and the tails are worked out exactly.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import gammaln

from fedrecall.protocol.errors import PlanError

Adversary = Literal["curious", "active"]

SECRECY, COMPLETION = 2.0**-40, 2.0**-30
"""Chances, in one round, that some device's input can be opened, and that a round that could end does not."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph's numbers.

    Attributes:
        neighbours: of each device.
        threshold: shares that open a secret.
        secrecy: chance that more shares can be had than may be, or that the sum falls into parts; at most.
        completion: chance that some device has fewer surviving neighbours than ``threshold``; at most.
    """

    neighbours: int
    threshold: int
    secrecy: float
    completion: float


def graph_for(
    devices: int,
    *,
    dropout: float,
    colluding: float,
    adversary: Adversary = "active",
    majority: bool = False,
    secrecy: float = SECRECY,
    completion: float = COMPLETION,
) -> Graph:
    """Return the graph of fewest neighbours that keeps both chances.

    Args:
        devices: of a cohort.
        dropout: share of them that may drop out.
        colluding: share of them that tell the server all that they know.
        adversary: a server that is ``curious`` follows the protocol, and then needs ``threshold`` colluders beside one
            device. One that is ``active`` may tell neighbours different stories: colluders give both kinds of share,
            the others one each, so that it needs 2 t - k colluders.
        majority: whether the threshold is more than half of the neighbours in any case.
        secrecy: see ``SECRECY``.
        completion: see ``COMPLETION``.

    Raises:
        PlanError: no graph does it.
    """
    for name, share in (("dropout", dropout), ("colluding", colluding)):
        if not 0.0 <= share < 1.0:
            raise PlanError(f"{name} is {share}: choose it from 0 to below 1")
    if type(devices) is not int or devices < 3:
        raise PlanError(f"a cohort of {devices} devices hides nobody: at least 3 take part in secure aggregation")
    bad, gone = math.ceil(colluding * devices - 1e-9), math.ceil(dropout * devices - 1e-9)
    for k in range(2, devices):
        # On a ring of an odd number of devices nobody stands opposite: the neighbours are an even number.
        if k % 2 and devices % 2 and k != devices - 1:
            continue
        thresholds = np.arange(1, k + 1)
        needed = thresholds if adversary == "curious" else 2 * thresholds - k
        opened = devices * _at_least(devices - 1, bad, k, needed)
        if k < devices - 1:
            opened += _parted(devices, bad, gone, k, thresholds, adversary)
        short = devices * _at_least(devices - 1, gone, k, k - thresholds + 1)
        sound = (opened <= secrecy) & (short <= completion) & (needed >= 1)
        if majority:
            sound &= 2 * thresholds > k
        if sound.any():
            at = int(np.argmax(sound))
            return Graph(
                neighbours=k, threshold=at + 1, secrecy=float(min(1, opened[at])), completion=float(min(1, short[at]))
            )
    raise PlanError(
        f"no graph over {devices} devices bears {dropout:.0%} dropping out and {colluding:.0%} colluding: enlarge the "
        "cohort, or assume less"
    )


def _at_least(devices: int, marked: int, drawn: int, least: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return the chance that of so many devices drawn from all at least so many are among the marked ones."""
    found = np.arange(max(0, drawn - (devices - marked)), min(drawn, marked) + 1)
    chances = np.zeros(drawn + 1)
    chances[found] = np.exp(
        _log_choices(marked, found) + _log_choices(devices - marked, drawn - found) - _log_choices(devices, drawn)
    )
    # Summed from the small end, so that small tails are exact.
    tails = np.append(np.cumsum(chances[::-1])[::-1], 0.0)
    return np.asarray(np.minimum(1.0, tails[np.clip(least, 0, drawn + 1)]))


def _log_choices(of: int, chosen: Any) -> Any:
    return gammaln(of + 1) - gammaln(chosen + 1) - gammaln(of - chosen + 1)


def _parted(
    devices: int, bad: int, gone: int, neighbours: int, thresholds: Int64[np.ndarray, " n"], adversary: Adversary
) -> Float64[np.ndarray, " n"]:
    """Return the chance that the sum can be opened in parts, by threshold: that the ring is cut somewhere.

    A cut takes half as many devices in a row as one has neighbours. Those that drop out by chance, or collude, make
    one where they are all. Who may choose who is said to be gone needs colluders in it: beside a cut stand devices that
    open nothing unless a threshold of their neighbours survives, which are at most the other half and the colluders.
    """
    run = neighbours // 2
    if adversary == "curious":
        return devices * _at_least(devices, min(devices, bad + gone), run, np.full(len(thresholds), run))
    return devices * _at_least(devices, bad, run, thresholds - run - neighbours % 2)


def graph_over(cohort: Sequence[int], neighbours: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Return the neighbours of every device, ascending; everybody works out the same graph.

    Args:
        cohort: distinct numbers of the devices.
        neighbours: of each; all others where there are not more.
        seed: public, and fixed by what devices advertised.

    Raises:
        PlanError: an odd number of devices has no graph of an odd number of neighbours.
    """
    ring = sorted(cohort, key=lambda one: hashlib.sha256(seed + one.to_bytes(8, "big")).digest())
    size = len(ring)
    if neighbours >= size - 1:
        return {one: tuple(other for other in sorted(ring) if other != one) for one in ring}
    if neighbours % 2 and size % 2:
        raise PlanError(f"neighbours is {neighbours}: an odd number, {size}, of devices needs an even one")
    offsets = [step * side for step in range(1, neighbours // 2 + 1) for side in (1, -1)]
    offsets += [size // 2] if neighbours % 2 else []
    return {one: tuple(sorted({ring[(at + offset) % size] for offset in offsets})) for at, one in enumerate(ring)}
