"""The gate: the one way out of a device. To know what leaves, read this file.

Everything that leaves passes ``let_out``, or ``let_out_statistic`` for the bytes of the private start: only arrays that
the plan's mechanism declares, by name and shape; only finite numbers; jointly clipped where the clip is the gate's; a
round and a nonce; nothing else; and only once the device's ledger was charged for it.
"""

import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from fedrecall.privacy.mechanisms.mechanisms import clip_joint
from fedrecall.protocol.allow_list import SHARED_PREFIXES, STATISTICS, WITHIN_CLIP
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.records import Update
from fedrecall.protocol.statistics import Statistic

Schema = Mapping[str, tuple[tuple[int, ...], np.dtype]]

_WITHIN = 1 + 1e-9
_WIRE = tuple(np.dtype(kind) for kind in (np.float16, np.float32, np.float64))


def let_out(
    arrays: Mapping[str, np.ndarray],
    *,
    schema: Schema,
    round: int,
    clip_norm: float | None,
    charge: Callable[[str], object],
) -> Update:
    """Return the update that leaves the device: fresh, read-only arrays, in the order of ``schema``.

    Args:
        arrays: what the device computed.
        schema: name, shape and dtype (float16, float32 or float64) of everything that this round's mechanism asks
            for; all of it leaves, always, so that a message's size tells nothing.
        round: the round.
        clip_norm: L2 bound over all weights together (the count within the clip has its own), enforced here for the
            numbers in the dtype that leaves, to a factor of 1 + 1e-9; ``None`` where the plan has none or noise was
            already added to a clipped sum.
        charge: charges the device's ledger durably under the update's nonce, or raises; called last (rule 8).

    Raises:
        UpdateError: an array that is not asked for, not on the allow-list, of another shape, or of no real numbers:
            a bug on the device, and nothing leaves. Values never raise: an invalid result becomes zeros (rule 5).
        PlanError: ``clip_norm`` is not a finite number above 0.
        BudgetExhausted: what ``charge`` raises, and nothing leaves.
    """
    if set(arrays) != set(schema):
        raise UpdateError(f"the device made {_listed(arrays)}, the round asks for {_listed(schema)}")
    if WITHIN_CLIP in schema and (clip_norm is None or schema[WITHIN_CLIP][0] != ()):
        raise UpdateError(f"{WITHIN_CLIP!r} has no noise of its own: ask for it as one number, beside clipped weights")
    # A signalling NaN or an overflow must not show in a warning, let alone raise one.
    with np.errstate(all="ignore"):
        found: Mapping[str, np.ndarray] = {name: _admitted(name, arrays[name], schema) for name in schema}
        weights = {name: array for name, array in found.items() if name != WITHIN_CLIP}
        if clip_norm is not None:
            weights = clip_joint(weights, clip_norm)[0]
        out = {name: _towards_zero(array, schema[name][1]) for name, array in weights.items()}
        if not all(np.isfinite(array).all() for array in out.values()):
            out = {name: np.zeros_like(array) for name, array in out.items()}
        if WITHIN_CLIP in found:
            # Two values and no other can leave: its sensitivity of 1/2 is enforced here.
            out[WITHIN_CLIP] = np.where(found[WITHIN_CLIP] > 0, 0.5, -0.5).astype(schema[WITHIN_CLIP][1])
    return _leave(out, schema, round, charge)


def let_out_statistic(
    arrays: Mapping[str, np.ndarray], *, statistic: Statistic, round: int, charge: Callable[[str], object]
) -> Update:
    """Return the update that leaves the device for a statistic of the start: its bytes, and one scale.

    Args:
        arrays: what the device computed.
        statistic: says what leaves, all of it and always, and how long it is.
        round: the round.
        charge: as in ``let_out``.

    Raises:
        UpdateError: as ``let_out``. What is longer than 1 (1 + 1e-9), or no number, becomes zeros (rule 5).
        BudgetExhausted: what ``charge`` raises, and nothing leaves.
    """
    schema = statistic.schema
    if set(arrays) != set(schema):
        raise UpdateError(f"the device made {_listed(arrays)}, the round asks for {_listed(schema)}")
    out = {}
    for name, (shape, dtype) in schema.items():
        array = arrays[name]
        if name not in STATISTICS or type(array) is not np.ndarray or (array.shape, array.dtype) != (shape, dtype):
            raise UpdateError(f"array {name!r} is not the {dtype} array of shape {shape} that the statistic asks for")
        out[name] = array.copy(order="C")
    # Written so that NaN fails too.
    if not statistic.norm(out) <= _WITHIN:
        out = {name: np.zeros_like(array) for name, array in out.items()}
    return _leave(out, schema, round, charge)


def _leave(out: dict[str, np.ndarray], schema: Schema, round: int, charge: Callable[[str], object]) -> Update:
    for array in out.values():
        array.setflags(write=False)
    leaving = MappingProxyType({name: out[name] for name in schema})
    nonce = secrets.token_hex(16)
    charge(nonce)
    return Update(round=round, nonce=nonce, arrays=leaving)


def _admitted(name: str, array: np.ndarray, schema: Schema) -> np.ndarray:
    """Return ``array`` if it may leave and is what ``schema`` asks for; UpdateError otherwise."""
    shape, dtype = schema[name]
    if not isinstance(name, str) or not (name in STATISTICS or name.startswith(SHARED_PREFIXES)):
        raise UpdateError(f"array {name!r} is private: it is not on the allow-list and stays on the device")
    if dtype not in _WIRE:
        raise UpdateError(f"the round asks for array {name!r} as {dtype}: ask for float16, float32 or float64")
    # A subclass may hide values that would leave all the same, as masked arrays do.
    if type(array) is not np.ndarray and not isinstance(array, np.generic):
        raise UpdateError(f"array {name!r} is a {type(array).__name__}: make it a plain numpy array")
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise UpdateError(f"array {name!r} has dtype {array.dtype}: make it real numbers of at most 64 bits")
    if array.shape != tuple(shape):
        raise UpdateError(f"array {name!r} has shape {array.shape}, the round asks for {shape}")
    return np.asarray(array)


def _towards_zero(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Copy to ``dtype`` without making any number larger: rounding must not lift a norm above its bound."""
    out = array.astype(dtype, order="C")
    if array.dtype != dtype:
        larger = np.isfinite(out) & (np.abs(out) > np.abs(array))
        np.nextafter(out, dtype.type(0), out=out, where=larger)
    # The sign of a zero is a bit that no norm counts.
    out += dtype.type(0)
    return out


def _listed(names: Mapping[str, object]) -> list[str]:
    return sorted(map(str, names))
