"""Calendar windows in UTC, in which budgets renew: days, ISO weeks (from Monday) and months."""

from datetime import UTC, date, datetime, timedelta

from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.plan import Renewal

_LAST_YEAR = 9998


def utc_day(now: datetime) -> date:
    """Return the day of ``now`` in UTC; UsageError without a time zone, or past the year 9998."""
    if now.tzinfo is None:
        raise UsageError(f"now is {now.isoformat()}, without a time zone: give it one, such as datetime.now(UTC)")
    if now.year > _LAST_YEAR:
        raise UsageError(f"the clock says {now.year}: set it to the time of day")
    return now.astimezone(UTC).date()


def window_start(day: date, renews: Renewal) -> date:
    """Return the first day of the window that holds ``day``; of ``never`` the first day there is."""
    if renews == "day":
        return day
    if renews == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if renews == "month" else date.min


def next_window(day: date, renews: Renewal) -> date | None:
    """Return the first day of the window after the one that holds ``day``; ``None`` when there is none."""
    if renews == "never":
        return None
    length = {"day": 1, "week": 7, "month": 31}[renews]
    return window_start(window_start(day, renews) + timedelta(days=length), renews)
