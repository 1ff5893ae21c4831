"""The server's noise, watched: whether, at each draw, the charge for it is on disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import simulated_noise
from fedrecall.simulations.training.world import World

Draws = list[tuple[str, int, bool]]
"""(mechanism, round, whether its charge was on disk) of each draw."""


@contextmanager
def watching_noise(draws: Draws, ledger: Path, counts: Callable[[str], bool]) -> Iterator[None]:
    """Note into ``draws``, while a training runs, what ``ledger`` said at each draw of a mechanism that ``counts``."""

    def watching(make: Callable[..., NoiseSource]) -> Callable[..., NoiseSource]:
        def watched(world: World, mechanism: str, round: int) -> NoiseSource:
            return _WatchedNoise(make(world, mechanism, round), draws, mechanism, round, ledger, counts)

        return watched

    with wrapped(simulated_noise, "server_noise", watching):
        yield


class _WatchedNoise:
    """A source of noise that looks at the ledger's file before each draw."""

    def __init__(
        self,
        source: NoiseSource,
        draws: Draws,
        mechanism: str,
        round: int,
        ledger: Path,
        counts: Callable[[str], bool],
    ) -> None:
        self.simulated = source.simulated
        self._source, self._draws, self._ledger, self._counts = source, draws, ledger, counts
        self._mechanism, self._round = mechanism, round

    def normal(self, shape: tuple[int, ...], std: float, dtype: Any = np.float64) -> Any:
        """Draw, and note whether the charge was on disk."""
        self._note(std)
        return self._source.normal(shape, std, dtype)

    def added(self, values: Any, std: float) -> Any:
        """Add noise, and note whether the charge was on disk."""
        self._note(std)
        return self._source.added(values, std)

    def _note(self, std: float) -> None:
        of = self._mechanism, self._round
        if std > 0 and self._counts(self._mechanism) and (not self._draws or self._draws[-1][:2] != of):
            try:
                charged = Ledger.read(self._ledger).charged(*of)
            except CorruptArtefact:
                charged = False
            self._draws.append((*of, charged))
