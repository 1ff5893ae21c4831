"""How long an audit has left: beside every stage that it tells of."""

import time
from collections.abc import Mapping

from fedrecall.simulations.report.words import duration
from fedrecall.simulations.training.world import Progress


class TimeLeft:
    """A ``Progress`` that names beside each stage the time that all steps together have left.

    What a step is expected to take is an estimate; one that takes longer counts as over at any moment.
    """

    def __init__(self, progress: Progress, expected: Mapping[str, float]) -> None:
        """Tell ``progress``; ``expected`` holds seconds by step, in the order in which they are done."""
        self._progress, self._expected = progress, dict(expected)
        self._step, self._began = "", time.perf_counter()
        self._stage, self._label = "", ""

    def begin(self, step: str) -> None:
        """Say that ``step`` begins, and that the one before it is over."""
        self._expected.pop(self._step, None)
        self._step, self._began, self._stage = step, time.perf_counter(), ""

    def seconds(self) -> float:
        """Return the seconds that are left of all steps that are not over."""
        spent = time.perf_counter() - self._began
        return sum(
            max(0.0, seconds - spent) if step == self._step else seconds for step, seconds in self._expected.items()
        )

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Pass on how far ``stage`` is; the time left is that at its beginning, so that it stays one stage."""
        if stage != self._stage:
            self._stage, self._label = stage, f"{stage} (audit: about {duration(round(self.seconds()))} left)"
        self._progress(self._label, done, total)
