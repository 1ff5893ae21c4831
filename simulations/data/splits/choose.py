"""A split by the protocol's name."""

from dataclasses import replace

from fedrecall.protocol.errors import ConfigError
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits.given import split_given
from fedrecall.simulations.data.splits.leave_out import split_loo, split_random
from fedrecall.simulations.data.splits.parts import Repeats, Split
from fedrecall.simulations.data.splits.sampled import split_ncf
from fedrecall.simulations.data.splits.temporal import split_temporal

PROTOCOLS = ("loo", "temporal", "ncf", "random", "given")
BY_ORDER = ("loo", "ncf")
"""Protocols whose held-out events are the last ones, whatever orders them."""


def make_split(dataset: Dataset, protocol: str, seed: int = 0, *, repeats: Repeats = "mask") -> Split:
    """Split by the protocol's name; ``seed`` matters to ``ncf`` and ``random``.

    Raises ConfigError for another name, and for ``ncf`` with ``repeats="recommend"``: its sampled items are those that
    a device never had, so that figures could be compared with nobody's.
    """
    split = _split(dataset, protocol, seed, repeats)
    if dataset.parts is None or protocol == "given":
        return split
    return replace(split, held_out=f"{split.held_out}; the parts that the data was given in are not used")


def _split(dataset: Dataset, protocol: str, seed: int, repeats: Repeats) -> Split:
    if protocol == "loo":
        return split_loo(dataset, repeats=repeats)
    if protocol == "temporal":
        return split_temporal(dataset, repeats=repeats)
    if protocol == "random":
        return split_random(dataset, seed=seed, repeats=repeats)
    if protocol == "given":
        return split_given(dataset, repeats=repeats)
    if protocol == "ncf":
        if repeats != "mask":
            raise ConfigError(f"data.repeats is {repeats!r}, which protocol 'ncf' does not know: choose --protocol loo")
        return split_ncf(dataset, seed=seed)
    raise ConfigError(f"protocol is {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
