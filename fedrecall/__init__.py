"""fedrecall: privacy-preserving federated recall.

A server coordinates devices that train local user towers on private implicit feedback; only shared
weights leave a device, clipped and noised by a stated plan, and become a global recall index.

What a program needs is named here (``docs/python.md``) and loaded when it is asked for: the import loads nothing else.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "protocol" / "records.py").is_file():
    # A source tree: its root folders are the sub-packages fedrecall.<folder>.
    __path__.append(str(_root))
del _root, Path

from fedrecall.protocol import VERSION  # noqa: E402  (found by the path above)

if TYPE_CHECKING:
    from fedrecall import privacy
    from fedrecall.api.device import Device
    from fedrecall.api.results import Run
    from fedrecall.api.run import audit, load_run, run
    from fedrecall.protocol.item_table import ItemTable
    from fedrecall.simulations.config import RunConfig, load_config
    from fedrecall.simulations.data.dataset import Dataset
    from fedrecall.simulations.data.importing.frames import dataset_from_frame
    from fedrecall.simulations.data.registry import load_dataset
    from fedrecall.simulations.tracking.callback import Callback
    from fedrecall.simulations.tracking.mlflow import MLflow
    from fedrecall.simulations.tracking.tensorboard import TensorBoard

__version__ = VERSION

__all__ = [
    "Callback",
    "Dataset",
    "Device",
    "ItemTable",
    "MLflow",
    "Run",
    "RunConfig",
    "TensorBoard",
    "audit",
    "dataset_from_frame",
    "load_config",
    "load_dataset",
    "load_run",
    "privacy",
    "run",
]

_HOMES = {
    "Callback": "fedrecall.simulations.tracking.callback",
    "Dataset": "fedrecall.simulations.data.dataset",
    "Device": "fedrecall.api.device",
    "ItemTable": "fedrecall.protocol.item_table",
    "MLflow": "fedrecall.simulations.tracking.mlflow",
    "Run": "fedrecall.api.results",
    "RunConfig": "fedrecall.simulations.config",
    "TensorBoard": "fedrecall.simulations.tracking.tensorboard",
    "audit": "fedrecall.api.run",
    "dataset_from_frame": "fedrecall.simulations.data.importing.frames",
    "load_config": "fedrecall.simulations.config",
    "load_dataset": "fedrecall.simulations.data.registry",
    "load_run": "fedrecall.api.run",
    "run": "fedrecall.api.run",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for, once."""
    if name == "privacy":
        return import_module("fedrecall.privacy")
    if name not in _HOMES:
        raise AttributeError(f"fedrecall has no {name!r}: it has {', '.join(__all__)}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
