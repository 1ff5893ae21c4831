"""What asks a cohort: the one thing in which the engines of a simulation differ."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.simulations.training.world import World

Collect = Callable[[int, Arrays, np.ndarray, float | None], CohortSum | Iterator[Update]]
"""Asks a cohort: round, released arrays, the users in it and the round's clip in; a sum or updates out."""

Engine = Callable[[World, Path], AbstractContextManager[Collect]]
"""Yields what asks a cohort, for as long as rounds run."""
