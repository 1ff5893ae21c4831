"""Event times as text, in any of the usual spellings, to seconds since 1970."""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from fedrecall.protocol.errors import DataError

LATEST = 7_258_118_400  # 2200-01-01
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_MILLISECONDS_FROM = 1e11


def parse_numbers(values: pa.Array) -> Float64[np.ndarray, " rows"]:
    """Return text as numbers, NaN where it is null or no finite decimal number."""
    try:
        numbers = pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        numeric = pc.match_substring_regex(values, _NUMBER)
        numbers = pc.cast(pc.if_else(numeric, values, pa.scalar(None, pa.string())), pa.float64())
    result: Float64[np.ndarray, " rows"] = np.array(pc.fill_null(numbers, float("nan")))
    result[np.isinf(result)] = np.nan
    return result


def parse_times(values: pa.Array, time_format: str | None = None) -> tuple[Float64[np.ndarray, " rows"], str]:
    """Return the seconds since 1970 of each time (NaN where it cannot be read), and the format used.

    ``time_format`` is ``unix`` (seconds), ``unix-ms``, a ``strptime`` pattern, or ``None``: numbers are then
    seconds, or milliseconds when their median is above 1e11, and anything else is ISO 8601. Times without an
    offset are UTC. Raises DataError for a pattern that ``strptime`` does not know.
    """
    if time_format is None:
        numbers = parse_numbers(values)
        known = numbers[~np.isnan(numbers)]
        if 2 * len(known) >= len(values) - values.null_count and len(known):
            milliseconds = float(np.median(known)) > _MILLISECONDS_FROM
            return (numbers / 1000, "unix-ms (detected)") if milliseconds else (numbers, "unix (detected)")
        return _by_unique(values, datetime.fromisoformat), "ISO 8601 (detected)"
    if time_format in ("unix", "unix-ms"):
        return parse_numbers(values) / (1000 if time_format == "unix-ms" else 1), time_format
    try:
        datetime.strptime(datetime(2000, 1, 1).strftime(time_format), time_format)
    except ValueError as error:
        raise DataError(
            f"--time-format {time_format!r}: {error}; give unix, unix-ms, or a strptime pattern such as"
            " '%d.%m.%Y %H:%M'"
        ) from error
    return _by_unique(values, lambda text: datetime.strptime(text, time_format)), time_format


def _by_unique(values: pa.Array, parse: Callable[[str], datetime]) -> Float64[np.ndarray, " rows"]:
    """Parse each distinct spelling once."""
    coded = values.dictionary_encode()
    seconds = np.full(len(coded.dictionary) + 1, np.nan)
    for i, text in enumerate(coded.dictionary.to_pylist()):
        try:
            moment = parse(text)
            seconds[i] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    result: Float64[np.ndarray, " rows"] = seconds[np.array(pc.fill_null(coded.indices, -1))]
    return result
