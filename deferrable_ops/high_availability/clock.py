"""Times of day, in a DAG's timezone."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from deferrable_ops.exceptions import InputError


def zone_named(name: str) -> tzinfo:
    """Return a timezone by the name that Airflow has for it, a fixed offset such as ``+02:00`` included.

    :raises InputError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    try:
        offset = datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
    except ValueError:
        offset = None
    if offset is None:
        raise InputError(f"the DAG's timezone {name!r} is not known to this machine; install tzdata")
    return offset


def first_after(moment: datetime, clock: time, zone: tzinfo) -> datetime:
    """Return the first moment after another at which a clock shows this time, in UTC.

    So 06:00 after a start at 22:00 is that of the next day. A time that the clock skips in spring comes an hour later,
    one that it shows twice in autumn comes when it is first shown.

    :param clock: a time of day, in `zone` where it names no offset of its own.
    :param moment: an aware datetime.
    """
    own = clock.tzinfo or zone
    day = moment.astimezone(own).date() - timedelta(days=1)
    while True:
        candidate = datetime.combine(day, clock.replace(tzinfo=None), tzinfo=own).astimezone(UTC)
        if candidate > moment:
            return candidate
        day += timedelta(days=1)
