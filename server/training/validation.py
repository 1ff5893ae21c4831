"""What the server refuses to add up: a device is not trusted, and its update is checked before it counts."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np

from fedrecall.privacy.mechanisms.mechanisms import joint_norm
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.protocol.statistics import Statistic

Schema = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and dtype of each array that an update must hold, by name."""

NORM_TOLERANCE = 1e-6
"""A clipped float32 update may exceed its bound by rounding, relative to the bound."""


def schema_of(arrays: Arrays) -> Schema:
    """Return the schema that ``arrays`` themselves satisfy."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def validate_update(
    update: Update,
    schema: Schema,
    *,
    round: int,
    seen_nonces: AbstractSet[str],
    clip_norm: float | None = None,
) -> None:
    """Refuse an update that is not exactly what this round asked for.

    Guarantees when it returns: the names are the schema's; every array is a plain numpy array of its dtype
    and of exactly its shape (one that would merely broadcast is refused), without NaN or infinity; round and
    nonce are fresh; the joint L2 norm of the weights is at most ``clip_norm`` (1 + 1e-6). ``clip_norm`` is ``None``
    where the device adds its own noise, which no bound holds.

    Raises:
        UpdateError: with ``reason`` one of ``missing``, ``extra``, ``dtype``, ``shape``, ``nan``, ``stale``,
            ``replay``, ``norm``.
    """
    if update.round != round:
        raise UpdateError(f"update of round {update.round} in round {round}: ask the device again", reason="stale")
    if not update.nonce or update.nonce in seen_nonces:
        message = f"nonce {update.nonce!r} is empty or was used before: each update needs a fresh one"
        raise UpdateError(message, reason="replay")
    _validate_arrays(update.arrays, schema, wide=False)
    if clip_norm is not None:
        _validate_norm(update.arrays, clip_norm, f"the clip norm {clip_norm}")


def validate_statistic(update: Update, statistic: Statistic, *, seen_nonces: AbstractSet[str]) -> None:
    """Refuse what is not exactly what a mechanism of the start asked for; its norm is at most 1 (1 + 1e-6).

    The norm is that of what the bytes and the scale add to the sum, worked out here.

    Raises:
        UpdateError: as ``validate_update``.
    """
    validate_update(update, statistic.schema, round=0, seen_nonces=seen_nonces)
    norm = statistic.norm(update.arrays)
    if not norm <= 1.0 + NORM_TOLERANCE:
        raise UpdateError(f"{statistic.name} has norm {norm}, above 1: scale it before sending", reason="norm")


def validate_cohort_sum(cohort: CohortSum, schema: Schema, *, round: int, clip_norm: float | None = None) -> None:
    """Refuse a simulated cohort's sum that its devices could not have made.

    As ``validate_update``, but an array may also be float64, and the norm is at most ``devices`` times
    ``clip_norm``, which clipping each contribution implies.
    """
    if cohort.round != round:
        raise UpdateError(f"sum of round {cohort.round} in round {round}: collect it again", reason="stale")
    _validate_arrays(cohort.arrays, schema, wide=True)
    if clip_norm is not None:
        bound = cohort.devices * clip_norm
        words = f"{cohort.devices} devices times the clip norm {clip_norm}"
        _validate_norm(cohort.arrays, bound, words, devices=cohort.devices)


def _validate_arrays(arrays: Arrays, schema: Schema, *, wide: bool) -> None:
    """Check names, dtypes, shapes and finiteness; ``wide`` also takes float64."""
    if missing := sorted(set(schema) - set(arrays)):
        raise UpdateError(f"arrays {missing} are missing: send all of {sorted(schema)}", reason="missing")
    if extra := sorted(set(arrays) - set(schema)):
        raise UpdateError(f"arrays {extra} were not asked for: send only {sorted(schema)}", reason="extra")
    for name, (shape, dtype) in schema.items():
        array = arrays[name]
        # A subclass could carry its own arithmetic (masked arrays hide NaN), and an object array any Python
        # value.
        if type(array) is not np.ndarray or not (array.dtype == dtype or (wide and array.dtype == np.float64)):
            got = getattr(array, "dtype", type(array).__name__)
            raise UpdateError(f"array {name!r} is {got}: send a numpy array of {dtype}", reason="dtype")
        if array.shape != tuple(shape):
            raise UpdateError(f"array {name!r} has shape {array.shape}: send {tuple(shape)}", reason="shape")
        if not np.isfinite(array).all():
            raise UpdateError(f"array {name!r} holds NaN or infinity: send zeros instead", reason="nan")


def _validate_norm(arrays: Arrays, bound: float, words: str, *, devices: int = 1) -> None:
    """Check the norm of the weights together, and apart from it the count of contributions within the clip."""
    if WITHIN_CLIP in arrays and not abs(float(arrays[WITHIN_CLIP])) <= devices / 2:
        count = float(arrays[WITHIN_CLIP])
        raise UpdateError(f"{WITHIN_CLIP} is {count}: {devices} devices make at most half as much", reason="norm")
    norm = joint_norm({name: array for name, array in arrays.items() if name != WITHIN_CLIP})
    if not norm <= bound * (1.0 + NORM_TOLERANCE):
        raise UpdateError(f"the joint L2 norm is {norm}, above {words}: clip before sending", reason="norm")
