"""Which data sets there are on this machine, and where they lie. Loads nothing that reads them."""

import os
import re
from pathlib import Path
from typing import Any

from fedrecall.simulations.data.known import KNOWN

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What an imported data set may be called."""


def cache_folder() -> Path:
    """Return the cache's root: ``FEDRECALL_CACHE``, else ``~/.cache/fedrecall``; it may not exist yet."""
    moved = os.environ.get("FEDRECALL_CACHE")
    return Path(moved) if moved else Path.home() / ".cache" / "fedrecall"


def imported_folder(name: str) -> Path:
    """Return where the imported data set ``name`` lies, or would."""
    return cache_folder() / "imported" / name


def imported_names() -> list[str]:
    """Return the names of all imported data sets."""
    root = cache_folder() / "imported"
    return sorted(p.name for p in root.iterdir() if NAME.fullmatch(p.name)) if root.is_dir() else []


def list_datasets() -> list[dict[str, Any]]:
    """Return one row a data set: name, description, counts where known, source, terms, and what is cached."""
    rows = [
        known.as_dict(name) | {"cached": (cache_folder() / name).is_dir(), "imported": False}
        for name, known in KNOWN.items()
    ]
    rows.append(
        {
            "name": "synthetic",
            "description": "generated: tastes, popularity and order",
            "users": 600,
            "items": 400,
            "interactions": None,
            "source": "generated, needs nothing",
            "terms": "none",
            "cached": False,
            "imported": False,
        }
    )
    rows += [
        {
            "name": name,
            "description": "imported",
            "users": None,
            "items": None,
            "interactions": None,
            "source": "fedrecall data import",
            "terms": "yours",
            "cached": True,
            "imported": True,
        }
        for name in imported_names()
    ]
    return rows
