"""Servers and devices whose noise is not what their plan says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from fedrecall.simulations.audit.watching.wrapping import wrapped


@contextmanager
def noise_times(place: ModuleType, factor: float) -> Iterator[None]:
    """Multiply the noise that ``place`` adds by ``gaussian_sum``."""

    def wrong(sound: Any) -> Any:
        return lambda sums, mechanism, noise: sound(
            sums, replace(mechanism, noise_multiplier=factor * mechanism.noise_multiplier), noise
        )

    with wrapped(place, "gaussian_sum", wrong):
        yield
