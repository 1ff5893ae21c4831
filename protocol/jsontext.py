"""Strict JSON text, for every ``run.json`` and ``--format json`` answer."""

import json
import math
from typing import Any

import numpy as np

from fedrecall.protocol.errors import FedrecallError


def dumps(obj: Any, *, indent: int | None = None) -> str:
    """Return ``obj`` as strict JSON (RFC 8259), pure ASCII, on one line unless ``indent`` is given.

    Takes dicts with string keys, lists, tuples, strings, numbers, booleans, ``None`` and numpy scalars;
    keys keep their order. Raises FedrecallError naming the place, such as ``$.history[3].loss``, for NaN,
    infinity, a key that is not a string, or any other type: none of them survives a round trip.
    """
    return json.dumps(_plain(obj, "$"), indent=indent, allow_nan=False)


def _plain(obj: Any, place: str) -> Any:
    """Return ``obj`` in plain Python types, or raise with ``place``."""
    if isinstance(obj, np.generic):
        obj = obj.item()
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise FedrecallError(f"{place} is {obj}: JSON has no such number; write null and say why beside it")
        return obj
    if isinstance(obj, dict):
        for key in obj:
            if not isinstance(key, str):
                raise FedrecallError(f"{place} has the key {key!r}: JSON keys are strings; convert it")
        return {str(key): _plain(value, f"{place}.{key}") for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value, f"{place}[{i}]") for i, value in enumerate(obj)]
    raise FedrecallError(f"{place} is a {type(obj).__name__}: JSON cannot hold it; convert it to plain data")
