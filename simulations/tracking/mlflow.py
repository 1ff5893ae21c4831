"""A run as MLflow keeps it. Needs the extra ``track``."""

import itertools
from collections.abc import Mapping
from typing import Any

from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.tracking.scalars import scalars

_PARAMS_AT_ONCE = 100
"""As many as MLflow takes in one request."""


class MLflow:
    """Logs settings, every validation and the test's figures as one MLflow run, of whatever tracking server is set.

    A ``Callback``: what such a log says is outside epsilon, and MLflow may send it to another machine.
    """

    def __init__(self, experiment: str | None = None) -> None:
        """Log under ``experiment``, MLflow's own if ``None``; raises UsageError where mlflow is not installed."""
        try:
            import mlflow
        except ImportError as error:
            raise UsageError("mlflow is not installed: pip install 'fedrecall[track]'") from error
        self._mlflow = mlflow
        if experiment is not None:
            mlflow.set_experiment(experiment)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Start a run and log the settings."""
        self._mlflow.start_run()
        params = iter(_named(scalars(config, all=True)).items())
        while batch := dict(itertools.islice(params, _PARAMS_AT_ONCE)):
            self._mlflow.log_params(batch)

    def measured(self, row: Mapping[str, Any]) -> None:
        """Log a validation as a step."""
        self._mlflow.log_metrics(_named(scalars(row), "validation/"), step=row["round"])

    def end(self, result: Mapping[str, Any]) -> None:
        """Log the test's figures and end the run."""
        self._mlflow.log_metrics(_named(scalars(result["metrics"]), "test/"))
        self._mlflow.end_run()


def _named(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by names that MLflow takes: it knows no @."""
    return {f"{prefix}{name}".replace("@", "_at_"): value for name, value in values.items()}
