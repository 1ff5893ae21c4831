"""Every error that fedrecall raises on purpose.

::

    FedrecallError                 exit code 3   something failed
    ├── UsageError                 exit code 2   a request that cannot be carried out as asked
    │   ├── ConfigError            exit code 2   a configuration key or value
    │   ├── DataError              exit code 2   an input file or its contents
    │   └── PlanError              exit code 2   a privacy plan that cannot be accounted
    ├── UpdateError                exit code 3   an update that the gate or the server refuses
    ├── ScoreError                 exit code 3   scores that cannot be ranked: NaN, infinite, or of a wrong shape
    ├── BudgetExhausted            exit code 4   the ledger allows no further spending
    └── CorruptArtefact            exit code 6   bad signature, hash, format, or broken ledger chain

A message names the thing, the value, the bound and the remedy.
"""

from typing import Literal

UpdateReason = Literal["missing", "extra", "dtype", "shape", "nan", "stale", "replay", "norm"]


class FedrecallError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 3


class UsageError(FedrecallError):
    """A request that cannot be carried out as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value that is unknown, missing or out of bounds."""


class DataError(UsageError):
    """An input file that is missing, empty or malformed."""


class PlanError(UsageError):
    """A privacy plan that cannot be accounted or enforced."""


class UpdateError(FedrecallError):
    """An update that the gate or the server refuses; ``reason`` says why in one word."""

    def __init__(self, message: str = "", *, reason: UpdateReason | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class ScoreError(FedrecallError):
    """Scores that cannot be ranked: NaN, infinite, or of a wrong shape."""


class BudgetExhausted(FedrecallError):
    """The ledger allows no further spending."""

    exit_code = 4


class CorruptArtefact(FedrecallError):
    """A file whose signature, hash, format or chain is wrong."""

    exit_code = 6
