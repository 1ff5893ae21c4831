"""The gate: the one way out of a device. To know what leaves, read this file.

Everything that leaves passes ``let_out``: only arrays that the plan's mechanism declares, by name and shape; only
finite numbers; jointly clipped where the clip is the gate's; a round and a nonce; nothing else.
"""

import secrets
from collections.abc import Mapping

import numpy as np

from fedrecall.privacy.mechanisms import clip_joint
from fedrecall.protocol.allow_list import STATISTICS, shared_names
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.records import Update

Schema = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def let_out(arrays: Mapping[str, np.ndarray], *, schema: Schema, round: int, clip_norm: float | None) -> Update:
    """Return the update that leaves the device.

    Args:
        arrays: what the device computed.
        schema: name, shape and dtype of everything that this round's mechanism asks for; all of it leaves, always,
            so that a message's size tells nothing.
        round: the round.
        clip_norm: L2 bound over all arrays together, enforced here; ``None`` where the plan has none or noise was
            already added to a clipped sum.

    Raises:
        UpdateError: an array that is not asked for, not on the allow-list, or of another shape: a bug on the device,
            and nothing leaves. Values never raise: with a clip, an invalid result becomes zeros (rule 5).
    """
    if set(arrays) != set(schema):
        raise UpdateError(f"the device made {sorted(arrays)}, the round asks for {sorted(schema)}")
    allowed = {*STATISTICS, *shared_names(name for name in arrays if name not in STATISTICS)}
    for name, array in arrays.items():
        if name not in allowed:
            raise UpdateError(f"array {name!r} is private: it is not on the allow-list and stays on the device")
        if array.shape != schema[name][0]:
            raise UpdateError(f"array {name!r} has shape {array.shape}, the round asks for {schema[name][0]}")
    if clip_norm is not None:
        arrays = clip_joint(arrays, clip_norm)[0]
    out = {name: _towards_zero(array, schema[name][1]) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in out.values()):
        out = {name: np.zeros_like(array) for name, array in out.items()}
    return Update(round=round, nonce=secrets.token_hex(16), arrays=out)


def _towards_zero(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert to ``dtype`` without making any number larger: rounding must not lift a norm above its bound."""
    with np.errstate(over="ignore"):
        out = np.asarray(array, dtype=dtype)
    larger = np.isfinite(out) & (np.abs(out) > np.abs(array))
    return np.where(larger, np.nextafter(out, dtype.type(0)), out)
