"""Dates as people and programs write them: which part is the day, where the zone stands, what the month is called."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from fedrecall.protocol.errors import DataError

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)
_HOURS = dict.fromkeys(("z", "ut", "utc", "gmt"), 0) | dict(
    zip(("est", "edt", "cst", "cdt", "mst", "mdt", "pst", "pdt"), (-5, -4, -6, -5, -7, -6, -8, -7), strict=True)
)
"""Names of zones as RFC 2822 defines them; others, such as IST, mean several and are not read."""
_ORDERS = {"dmy": "day first", "mdy": "month first", "ymd": "year first"}
_SURE = 0.95
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")

_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_CLOCK = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?:\s*(?P<half>[ap])\.?m\.?)?"
)
_ZONE = r"(?P<zone>z|(?:utc|gmt|ut)?\s*[+-]\d{2}:?(?:\d{2})?|[a-z]{2,4})(?:\s+[a-z]{3,5})?(?:\s*[\[(][\w /+-]+[\])])?"
_END = rf"(?:(?:\s*,\s*|\s+at\s+|t|:|\s+){_CLOCK}(?:\s*{_ZONE})?)?"
_SHAPES = tuple(
    re.compile(rf"{_WEEKDAY}{shape}", re.IGNORECASE)
    for shape in (
        rf"(?P<year>\d{{4}})(?P<by>[-/.])(?P<month>\d{{1,2}})(?P=by)(?P<day>\d{{1,2}}){_END}",
        rf"(?P<first>\d{{1,2}})(?P<by>[-/.])(?P<then>\d{{1,2}})(?P=by)(?P<year>\d{{4}}|\d{{2}}){_END}",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?[- /.]*(?P<name>[a-z]{{3,9}})\.?,?[- /.]*(?P<year>\d{{4}}|\d{{2}}){_END}",
        rf"(?P<name>[a-z]{{3,9}})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}}){_END}",
        rf"(?P<name>[a-z]{{3}})\s+(?P<day>\d{{1,2}})\s+{_CLOCK}(?:\s+{_ZONE})?\s+(?P<year>\d{{4}})",
    )
)


def read_dates(values: pa.Array, place: Callable[[int], str]) -> tuple[Float64[np.ndarray, " rows"], str]:
    """Return the seconds since 1970 of each date, NaN where it cannot be read, and what the file's dates are.

    Where dates are three numbers and the year does not stand first with four digits, the file must show their order:
    nearly all of those that are no date in every order are one in this order alone. Only with dots and a year of four
    digits the day comes first without that, as everywhere where such dates are written.

    Raises:
        DataError: nothing shows the order, or the file shows two.
    """
    coded = values.dictionary_encode()
    texts = coded.dictionary.to_pylist()
    seconds = np.full(len(texts) + 1, np.nan)
    found = {}
    for i, text in enumerate(texts):
        try:
            seconds[i] = _utc(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            if (match := _match(text)) is not None:
                found[i] = match
    rows = np.array(pc.fill_null(coded.indices, -1))
    name, order = "dates" if found else "ISO 8601", ""
    if numbers := {texts[i]: match for i, match in found.items() if "first" in match}:
        order = _order(numbers, lambda text: place(int(np.argmax(rows == texts.index(text)))))
        name = f"dates, {_ORDERS[order]}"
    for i, match in found.items():
        try:
            seconds[i] = _moment(match, order)
        except (ValueError, OverflowError):
            continue
    return seconds[rows], name


def is_readable(text: str) -> bool:
    """Whether a text is a number or looks like a date."""
    if _NUMBER.fullmatch(text) or _match(text) is not None:
        return True
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _match(text: str) -> dict[str, str] | None:
    """Return the parts of a date by name."""
    for shape in _SHAPES:
        if match := shape.fullmatch(text):
            return {name: part for name, part in match.groupdict().items() if part is not None}
    return None


def _order(numbers: Mapping[str, Mapping[str, str]], where: Callable[[str], str]) -> str:
    """Return the order of day, month and year in dates of three numbers, a key of ``_ORDERS``."""
    able = {text: _orders_of(match) for text, match in numbers.items()}
    telling = {text: orders for text, orders in able.items() if 0 < len(orders) < _most_orders(numbers[text])}
    agreeing = {order: sum(order in orders for orders in telling.values()) for order in _ORDERS}
    likely = [order for order, count in agreeing.items() if telling and count >= _SURE * len(telling)]
    if len(likely) == 1:
        return likely[0]
    if telling and not likely:
        orders = sorted(_ORDERS, key=lambda order: -agreeing[order])[:2]
        first, second = (next(t for t, able_ in telling.items() if order in able_) for order in orders)
        raise DataError(
            f"times have the {_ORDERS[orders[0]]} in {first!r} ({where(first)}) and the {_ORDERS[orders[1]]} in"
            f" {second!r} ({where(second)}): import each kind by itself, with its --time-format"
        )
    text, match = next(iter(numbers.items()))
    if not likely and all(match["by"] == "." and len(match["year"]) == 4 for match in numbers.values()):
        return "dmy"
    possible = likely or [order for order in _ORDERS if order != "ymd" or len(match["year"]) == 2]
    letters = {"d": "%d", "m": "%m", "y": "%Y" if len(match["year"]) == 4 else "%y"}
    clock = f" {'%I' if 'half' in match else '%H'}:%M" if "hour" in match else ""
    clock += ":%S" * ("second" in match) + " %p" * ("half" in match)
    formats = [f"'{match['by'].join(letters[part] for part in order)}{clock}'" for order in possible]
    raise DataError(
        f"nothing says in which order day and month are in {text!r} ({where(text)}): give --time-format"
        f" {' or '.join(formats)}"
    )


def _orders_of(match: Mapping[str, str]) -> set[str]:
    """Return the orders in which three numbers are a date."""
    able = set()
    for order in list(_ORDERS)[: _most_orders(match)]:
        try:
            _moment(match, order)
        except (ValueError, OverflowError):
            continue
        able.add(order)
    return able


def _most_orders(match: Mapping[str, str]) -> int:
    return 3 if len(match["year"]) == 2 and len(match["first"]) == 2 else 2


def _moment(match: Mapping[str, str], order: str) -> float:
    """Return the seconds since 1970 of a date in parts; raises ValueError for one that no calendar has."""
    if "first" in match:
        parts = dict(zip(order, (match["first"], match["then"], match["year"]), strict=True))
        year, month, day = parts["y"], int(parts["m"]), parts["d"]
    else:
        year, day = match["year"], match["day"]
        month = int(match["month"]) if "month" in match else _month(match["name"])
    number = int(year)
    if len(year) == 2:
        number += 2000 if number < 69 else 1900  # as strptime's %y
    hour = int(match.get("hour", 0))
    if half := match.get("half"):
        if not 1 <= hour <= 12:
            raise ValueError(f"hour {hour} of a clock of twelve")
        hour = hour % 12 + 12 * (half.lower() == "p")
    micros = int(match.get("fraction", "0")[:6].ljust(6, "0"))
    clock = datetime(number, month, int(day), hour, int(match.get("minute", 0)), int(match.get("second", 0)), micros)
    return _utc(clock.replace(tzinfo=_zone(match.get("zone", ""))))


def _month(name: str) -> int:
    """Return the number of a month by its English name or the beginning of that; raises ValueError for another word."""
    for number, month in enumerate(_MONTHS, start=1):
        if month.startswith(name.lower()) or name.lower() == "sept" == month[:4]:
            return number
    raise ValueError(f"month {name!r}")


def _zone(text: str) -> timezone:
    """Return the zone of a name or an offset; raises ValueError for a name that means several."""
    bare = re.sub(r"^(?:utc|gmt|ut)(?=\s*[+-])", "", text.lower()).strip()
    if not bare:
        return UTC
    if bare[0] in "+-":
        digits = bare[1:].replace(":", "").ljust(4, "0")
        offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        return timezone(-offset if bare[0] == "-" else offset)
    if bare not in _HOURS:
        raise ValueError(f"zone {text!r}")
    return timezone(timedelta(hours=_HOURS[bare]))


def _utc(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
