"""fedrecall: privacy-preserving federated recall.

A server coordinates devices that train local user towers on private implicit feedback; only shared
weights leave a device, clipped and noised by a stated plan, and become a global recall index.
"""

from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "protocol" / "records.py").is_file():
    # A source tree: its root folders are the sub-packages fedrecall.<folder>.
    __path__.append(str(_root))
del _root, Path

from fedrecall.protocol import VERSION  # noqa: E402  (found by the path above)

__version__ = VERSION
