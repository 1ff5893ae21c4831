"""The sum over a cohort and its mean. Nobody is weighted, and nothing is divided by who turned up."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.protocol.statistics import Statistic
from fedrecall.server.training.validation import Schema, validate_statistic, validate_update

_CHUNK = 8192  # entries added at a time, so that the working set stays in the processor's cache


def sum_updates(
    updates: Iterable[Update],
    schema: Schema,
    *,
    round: int,
    clip_norm: float | None = None,
    on_refused: Callable[[Update, UpdateError], None] | None = None,
) -> CohortSum:
    """Validate and add up ``updates`` as they come, holding one at a time, in float64.

    The sum does not depend on the order of arrival, to the bit, for up to 65,536 float32 updates whose
    nonzero entries span less than a factor of 2^50: each addition's rounding error is kept (Knuth's TwoSum;
    Ogita, Rump and Oishi 2005, 'Accurate Sum and Dot Product', algorithm 4.4) and added back at the end, one
    rounding in all.

    A refused update raises, or goes to ``on_refused`` and counts as nothing: the mean divides by the expected
    cohort, so that whether it was refused moves the sum by at most one clip norm.

    Args:
        updates: of this round, in any order.
        schema: what each must hold.
        round: the current round.
        clip_norm: bound of each update's joint norm, or ``None`` where devices add noise themselves.
        on_refused: told of each refused update; ``None`` makes the first one an error.

    Raises:
        UpdateError: an update that ``validate_update`` refuses, without ``on_refused``.
    """
    totals = {name: np.zeros(math.prod(shape)) for name, (shape, _) in schema.items()}
    errors = {name: np.zeros_like(total) for name, total in totals.items()}
    nonces: set[str] = set()
    for update in updates:
        try:
            validate_update(update, schema, round=round, seen_nonces=nonces, clip_norm=clip_norm)
        except UpdateError as error:
            if on_refused is None:
                raise
            on_refused(update, error)
            continue
        nonces.add(update.nonce)
        for name, total in totals.items():
            _add(total, errors[name], update.arrays[name].reshape(-1))
    arrays = {name: (totals[name] + errors[name]).reshape(schema[name][0]) for name in schema}
    return CohortSum(round=round, devices=len(nonces), arrays=arrays)


def sum_statistics(
    updates: Iterable[Update], statistic: Statistic, *, on_refused: Callable[[Update, UpdateError], None]
) -> CohortSum:
    """Validate, decode and add up the devices' parts of a statistic of the start, as ``sum_updates`` does.

    A refused one goes to ``on_refused`` and counts as nothing. Decoded numbers have 32 significant bits, so that the
    sum does not depend on the order of arrival here either.
    """
    nothing = {name: np.zeros(shape, dtype) for name, (shape, dtype) in statistic.schema.items()}
    total = statistic.decoded(nothing)
    error, nonces = np.zeros_like(total), set[str]()
    for update in updates:
        try:
            validate_statistic(update, statistic, seen_nonces=nonces)
        except UpdateError as refused:
            on_refused(update, refused)
            continue
        nonces.add(update.nonce)
        _add(total, error, statistic.decoded(update.arrays))
    return CohortSum(round=0, devices=len(nonces), arrays={statistic.name: statistic.summed(total + error)})


def mean_of(sums: Arrays, expected_cohort: float) -> dict[str, np.ndarray]:
    """Divide sums by the expected cohort (sample rate times enrolled devices), never by the actual one.

    Raises:
        PlanError: ``expected_cohort`` is not finite and above 0.
    """
    if not 0.0 < expected_cohort < math.inf:
        raise PlanError(f"expected_cohort is {expected_cohort}: it is sample_rate * devices, above 0")
    return {name: np.asarray(array / expected_cohort) for name, array in sums.items()}


def _add(total: np.ndarray, error: np.ndarray, values: np.ndarray) -> None:
    """Add ``values`` to ``total`` in place and what rounding took away to ``error``."""
    for start in range(0, len(total), _CHUNK):
        part = slice(start, start + _CHUNK)
        old, new = total[part], values[part].astype(np.float64)
        added = old + new
        virtual = added - old
        error[part] += (old - (added - virtual)) + (new - virtual)
        total[part] = added
