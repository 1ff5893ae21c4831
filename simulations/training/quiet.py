"""What Flower and Ray may not do on their own. Set before either is imported: they read it once."""

import os

SILENCE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of what it will do one day
}
"""Nothing phones home, and nothing is installed while it runs."""


def silence() -> None:
    """Switch telemetry, update checks and run-time installations of Flower and Ray off, here and in child processes."""
    os.environ.update(SILENCE)
