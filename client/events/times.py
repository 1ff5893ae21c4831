"""Event times as text, in any of the usual spellings, to seconds since 1970: what is not certain is refused."""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64

from fedrecall.client.events.dates import read_dates
from fedrecall.client.events.spelling import shape
from fedrecall.protocol.errors import DataError

LATEST = 7_258_118_400  # 2200-01-01
PLAUSIBLE = (631_152_000, 2_524_608_000)
"""1990 and 2050, in seconds: where the times of a log lie. Other times are kept, and said."""

Seconds = Float64[np.ndarray, " rows"]
Place = Callable[[int], str]
"""Says where the row of a number is, such as ``log.csv line 7``."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_SPREADSHEET_EPOCH = 25_569  # days from 1899-12-30, where spreadsheets count from, to 1970
_SURE, _FEW = 0.9, 0.1
_DATE_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "mon tue wed thu fri sat sun monday tuesday wednesday thursday friday saturday sunday jan feb mar apr may jun "
        "jul aug sep sept oct nov dec january february march april june july august september october november "
        "december am pm utc gmt est edt cst cdt mst mdt pst pdt cet cest bst ist jst msk th st nd rd at of t z",
    )
)


def _unit(per_second: float) -> Callable[[Seconds], Seconds]:
    return lambda numbers: numbers / per_second


def _spreadsheet(numbers: Seconds) -> Seconds:
    return np.round((numbers - _SPREADSHEET_EPOCH) * 86_400, 3)


def _of_digits(text: str) -> float:
    """Return the moment of year, month, day and so on without anything between them; NaN for no moment."""
    parts = [text[:4], *(text[i : i + 2] for i in range(4, len(text), 2)), "00", "00", "00"]
    try:
        return datetime.fromisoformat(f"{'-'.join(parts[:3])}T{':'.join(parts[3:6])}+00:00").timestamp()
    except ValueError:
        return math.nan


def _digits(count: int) -> Callable[[Seconds], Seconds]:
    """Return the reader of whole numbers whose ``count`` digits are year, month, day, and hour, minute, second."""

    def read(numbers: Seconds) -> Seconds:
        out = np.full(len(numbers), np.nan)
        fits = (numbers >= 19 * 10.0 ** (count - 2)) & (numbers < 22 * 10.0 ** (count - 2)) & (numbers % 1 == 0)
        values, places = np.unique(numbers[fits], return_inverse=True)
        out[fits] = np.array([_of_digits(f"{int(value)}") for value in values], dtype=np.float64)[places]
        return out

    return read


UNITS: dict[str, Callable[[Seconds], Seconds]] = {
    "unix": _unit(1),
    "unix-ms": _unit(10**3),
    "unix-us": _unit(10**6),
    "unix-ns": _unit(10**9),
    "spreadsheet": _spreadsheet,
}
"""Numbers that ``--time-format`` names: seconds and parts of them since 1970, and days since the end of 1899."""
_READINGS = UNITS | {"%Y%m%d": _digits(8), "%Y%m%d%H%M": _digits(12), "%Y%m%d%H%M%S": _digits(14)}
"""All that a number may be; no number is plausible as two of them."""
FORMATS = ", ".join([*UNITS, "iso"]) + ", or a strptime pattern such as '%d.%m.%Y %H:%M'"


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


def parse_times(
    values: pa.Array, time_format: str | None = None, *, typed: str | None = None, place: Place | None = None
) -> tuple[Seconds, Bool[np.ndarray, " rows"], str]:
    """Return the times of one file.

    Numbers are one unit a file: the one that most of them are plausible in (``PLAUSIBLE``), else by their size. Text
    is a date: ISO 8601, RFC 2822, with or without a zone (UTC without), day or month first where the file shows which.

    Args:
        values: as the file spells them, null where there is none.
        time_format: ``unix``, ``unix-ms``, ``unix-us``, ``unix-ns``, ``spreadsheet`` (days since 1899-12-30), ``iso``,
            a ``strptime`` pattern, or ``None`` to find out.
        typed: the type of a column that holds moments by its type; ``values`` are seconds since 1970 then.
        place: where a row is, for messages.

    Returns:
        Seconds since 1970, NaN where a time cannot be read; which rows are another unit than the file, a thousandfold
        off (NaN too); and the format used.

    Raises:
        DataError: a pattern that ``strptime`` does not know, or that has no year; a format given for a typed column;
            a unit in which hardly a time is plausible while nearly all are in another; no time that can be read;
            dates of which nothing says whether day or month comes first.
    """
    place = place or (lambda row: f"row {row + 1}")
    none = np.zeros(len(values), dtype=bool)
    if typed is not None:
        if time_format is not None:
            raise DataError(
                f"the times of {_file(place)} are {typed} already, not {time_format!r}: give no --time-format"
            )
        return parse_numbers(values), none, f"{typed} column"
    if time_format is None:
        numbers = parse_numbers(values)
        known = numbers[~np.isnan(numbers)]
        if 2 * len(known) >= len(values) - values.null_count and len(known):
            seconds, strange, name = _by_unit(numbers, None, values, place)
            return seconds, strange, f"{name} (detected)"
        seconds, name = read_dates(values, place)
        _refuse_unreadable(seconds, values, None, place)
        return seconds, none, f"{name} (detected)"
    if time_format in _READINGS:  # strptime would find a date in the digits of any number
        numbers = parse_numbers(values)
        _refuse_unreadable(numbers, values, time_format, place)
        seconds, strange, _ = _by_unit(numbers, time_format, values, place)
        return seconds, strange, time_format
    if time_format == "iso":
        seconds = _by_unique(values, datetime.fromisoformat)
    else:
        check_pattern(time_format)
        seconds = _by_unique(values, lambda text: datetime.strptime(text, time_format))
    _refuse_unreadable(seconds, values, time_format, place)
    return seconds, none, time_format


def check_pattern(time_format: str) -> None:
    """Raise DataError unless ``time_format`` is one that ``parse_times`` takes."""
    if time_format in UNITS or time_format == "iso":
        return
    remedy = f"give {FORMATS}"
    if "%" not in time_format:
        pattern = _as_pattern(time_format)
        raise DataError(f"--time-format {time_format!r} has no %: {f'give {pattern!r}' if pattern else remedy}")
    try:
        datetime.strptime(datetime(2000, 1, 1).strftime(time_format), time_format)
    except ValueError as error:
        raise DataError(f"--time-format {time_format!r}: {error}; {remedy}") from error
    if not re.search(r"%[YyGcxD]", time_format):
        raise DataError(f"--time-format {time_format!r} has no year (%Y), so that all dates would be of 1900; {remedy}")


def shown(text: str) -> str:
    """Return a time as a message may show it: what may be a name, and so a person's, only by its shape."""
    words = {word.lower() for word in re.findall("[A-Za-z]+", text)}
    if len(text) <= 40 and re.search("[0-9]", text) and words <= _DATE_WORDS and text.isascii() and text.isprintable():
        return repr(text)
    return f"text like {shape(text)!r}"


def _by_unit(
    numbers: Seconds, asked: str | None, values: pa.Array, place: Place
) -> tuple[Seconds, Bool[np.ndarray, " rows"], str]:
    """Read numbers in the unit asked for, or in that of most; tells which rows are plausible in another alone."""
    read = {name: reading(numbers) for name, reading in _READINGS.items()}
    low, high = PLAUSIBLE
    plausible = {name: (seconds >= low) & (seconds < high) for name, seconds in read.items()}
    known = int(np.sum(~np.isnan(numbers)))
    most = max(plausible, key=lambda name: int(plausible[name].sum()))
    count = int(plausible[most].sum())
    wrong = asked not in (None, most) and most != "spreadsheet" and count >= _SURE * known > 0
    if asked is not None and wrong and plausible[asked].sum() <= _FEW * known:
        row = int(np.argmax(plausible[most]))
        raise DataError(
            f"--time-format {asked} puts {shown(str(values[row]))} ({place(row)}) at {_day(read[asked][row])}, and"
            f" {count} of {known} times outside 1990 to 2050; as {most} it is {_day(read[most][row])}: give"
            f" --time-format {most}, or none"
        )
    if asked is None:
        sure = 2 * count >= known and (most != "spreadsheet" or count >= _SURE * known)
        asked = most if sure else _by_size(numbers)
    seconds = read[asked]
    if 2 * plausible[asked].sum() < known:
        return seconds, np.zeros(len(numbers), dtype=bool), asked
    other = np.any([mask for name, mask in plausible.items() if name not in (asked, "spreadsheet")], axis=0)
    strange = np.asarray(other & ~plausible[asked])
    return np.where(strange, np.nan, seconds), strange, asked


def _by_size(numbers: Seconds) -> str:
    """Return the unit of numbers none of which is plausible: as large as they would be about 2001 and later."""
    middle = float(np.nanmedian(numbers))
    return next(
        (name for name, least in (("unix-ns", 1e17), ("unix-us", 1e14), ("unix-ms", 1e11)) if middle > least), "unix"
    )


def _refuse_unreadable(seconds: Seconds, values: pa.Array, time_format: str | None, place: Place) -> None:
    """Raise DataError where not a single time could be read."""
    known = ~pc.is_null(values).to_numpy(zero_copy_only=False)
    if not known.any() or not np.isnan(seconds[known]).all():
        return
    row = int(np.argmax(known))
    asked = "is no date or number that is known" if time_format is None else f"is not of --time-format {time_format!r}"
    raise DataError(
        f"no time can be read: {shown(values[row].as_py())} ({place(row)}) {asked}; give --time-format: {FORMATS}"
    )


def _by_unique(values: pa.Array, parse: Callable[[str], datetime]) -> Seconds:
    """Parse each distinct spelling once."""
    coded = values.dictionary_encode()
    seconds = np.full(len(coded.dictionary) + 1, np.nan)
    for i, text in enumerate(coded.dictionary.to_pylist()):
        try:
            moment = parse(text)
            seconds[i] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    result: Seconds = seconds[np.array(pc.fill_null(coded.indices, -1))]
    return result


def _as_pattern(text: str) -> str | None:
    """Return the strptime pattern of a format as spreadsheets and Java write it, such as dd/mm/yyyy hh:mm."""
    date, _, clock = re.sub("T", " ", text.strip()).partition(" ")
    letters = {"yyyy": "%Y", "yy": "%y", "mmm": "%b", "mm": "%m", "m": "%m", "dd": "%d", "d": "%d"}
    times = {"hh": "%H", "h": "%H", "mm": "%M", "ss": "%S", "s": "%S"}
    said = re.sub(r"[a-z]+", lambda m: letters.get(m[0], "?"), date.lower())
    said += " " + re.sub(r"[a-z]+", lambda m: times.get(m[0], "?"), clock.lower()) if clock else ""
    return said if "%" in said and "?" not in said and re.search("%[Yy]", said) else None


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "no date at all"


def _file(place: Place) -> str:
    return place(0).rpartition(" line ")[0] or "the column"
