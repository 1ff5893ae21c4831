"""Named arrays and one JSON header as safetensors bytes: one encoding for tables, models and checkpoints."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.records import Arrays

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
}
_KEY = "fedrecall"


def pack(arrays: Arrays, header: Mapping[str, Any]) -> bytes:
    """Encode ``arrays`` and a JSON ``header``; equal inputs give equal bytes.

    Raises:
        FedrecallError: an array's dtype is none of the portable ones (float16-64, int8-64, uint8-64).
    """
    allowed = {np.dtype(t) for t in _DTYPES.values()}
    for name, array in arrays.items():
        if array.dtype not in allowed:
            raise FedrecallError(f"array {name!r} has dtype {array.dtype}: convert it to a float or integer type")
    # The library reads raw memory: a view with strides would be written wrongly. asarray keeps 0-d
    # arrays as they are.
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # One key, because the library writes several in a random order, and equal releases must hash alike.
    return save(dense, metadata={_KEY: dumps(dict(header))})


def unpack(data: bytes, *, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Decode what ``pack`` wrote into writable arrays and the header.

    Allocates no more than twice the length of ``data``, whatever the bytes claim.

    Raises:
        CorruptArtefact: any other bytes, naming ``what``.
    """
    try:
        views = deserialize(data)  # type: ignore[no-untyped-call]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        arrays = {}
        for name, view in views:
            dtype = np.dtype(_DTYPES[view["dtype"]])
            arrays[name] = np.frombuffer(view["data"], dtype=dtype).reshape(view["shape"])
            if not arrays[name].flags.writeable:
                arrays[name] = arrays[name].copy()
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptArtefact(f"{what} is not a fedrecall file ({error}): fetch or write it again") from error
    if not isinstance(header, dict):
        raise CorruptArtefact(f"{what} has no fedrecall header: fetch or write it again")
    return arrays, header
