"""Who is told how a run goes, besides the person before the screen."""

from collections.abc import Mapping
from typing import Any, Protocol


class Callback(Protocol):
    """Is told of a run as it goes; an error that it raises ends the run, which can be resumed.

    What is told is computed on private events, outside epsilon: a log of it says of real people what the plan was to
    keep. Of a simulation it may be kept; in earnest nobody has these figures.
    """

    def begin(self, config: Mapping[str, Any]) -> None:
        """Be told of the settings, at the start and whenever the run is resumed."""

    def measured(self, row: Mapping[str, Any]) -> None:
        """Be told of a validation: ``round``, metrics, ``epsilon`` so far by adversary; a row of ``history``."""

    def end(self, result: Mapping[str, Any]) -> None:
        """Be told of the whole result, the content of ``run.json``."""
