"""Splits of a data set into training, validation and test, by protocol."""

from fedrecall.simulations.data.splits.choose import BY_ORDER, PROTOCOLS, make_split
from fedrecall.simulations.data.splits.given import split_given
from fedrecall.simulations.data.splits.leave_out import split_loo, split_random
from fedrecall.simulations.data.splits.parts import (
    REPEATS,
    Repeats,
    Split,
    Targets,
    of_known_items,
    of_new_items,
    of_new_users,
)
from fedrecall.simulations.data.splits.sampled import split_ncf
from fedrecall.simulations.data.splits.temporal import split_temporal

__all__ = [
    "BY_ORDER",
    "PROTOCOLS",
    "REPEATS",
    "Repeats",
    "Split",
    "Targets",
    "make_split",
    "of_known_items",
    "of_new_items",
    "of_new_users",
    "split_given",
    "split_loo",
    "split_ncf",
    "split_random",
    "split_temporal",
]
