"""What ends the checks of a DAG run without their saying so: a runtime, a time of day, a number of retriggers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from deferrable_ops.exceptions import InputError

REFERENCE_DATES: Final = ("data_interval_end", "logical_date", "start_date")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one operator.

    :param runtime: seconds after the reference date; None: none.
    :param endtime: ISO 8601 time of day after the reference date, on the DAG's clock; None: none.
    :param maxretrigger: how often a chain of runs may start another; 0: never, None: as often as it likes.
    """

    runtime: float | None = None
    endtime: str | None = None
    maxretrigger: int | None = None

    @classmethod
    def of(cls, runtime: Any, endtime: Any, maxretrigger: Any, prefix: str = "") -> Limits:
        """Return the limits that a user's values mean.

        :param prefix: what the names of the values begin with, for the error.
        :raises InputError: one of them is wrong.
        """
        return cls(
            _runtime(f"{prefix}runtime", runtime),
            _endtime(f"{prefix}endtime", endtime),
            _count(f"{prefix}maxretrigger", maxretrigger),
        )

    def overridden_by(self, forced: Limits) -> Limits:
        """Return the limits with those that are forced in their places."""
        given = {name: value for name in self.__slots__ if (value := getattr(forced, name)) is not None}
        return replace(self, **given)

    def end(self, reference: datetime, timezone: str) -> tuple[datetime, str] | None:
        """Return the moment from which on the checks have ended, and which limit says so; None without one.

        :param reference: an aware datetime.
        :param timezone: the DAG's, by name.
        :raises InputError: the timezone is not known, or the moment is after the year 9999.
        """
        ends: list[tuple[datetime, str]] = []
        try:
            if self.runtime is not None:
                ends.append((reference + timedelta(seconds=self.runtime), f"runtime={self.runtime:g} s"))
            if self.endtime is not None:
                clock = time.fromisoformat(self.endtime)
                ends.append(
                    (next_occurrence(reference, clock, timezone_by_name(timezone)), f"endtime={self.endtime}")
                )
        except OverflowError:
            raise InputError(f"runtime={self.runtime!r} ends after the year 9999; leave it out") from None
        return min(ends, default=None)

    def is_last(self, retriggers: int) -> bool:
        """Return whether a run that was retriggered so often may not be again."""
        return self.maxretrigger is not None and retriggers >= self.maxretrigger


def check_reference_date(value: Any) -> str:
    """Return a ``reference_date``.

    :raises InputError: it is none.
    """
    if value not in REFERENCE_DATES:
        raise InputError(f"reference_date={value!r} must be one of {', '.join(map(repr, REFERENCE_DATES))}")
    return str(value)


def forced_limits(task_id: str, params: Mapping[str, Any]) -> Limits:
    """Return the limits that a run's params force, by the names ``{task_id}-force-...``.

    :raises InputError: one of them is wrong.
    """
    prefix = f"{task_id}-force-"
    runtime, endtime, maxretrigger = (
        params.get(f"{prefix}{name}") for name in ("runtime", "endtime", "maxretrigger")
    )
    return Limits.of(runtime, endtime, maxretrigger, prefix)


def timezone_by_name(name: str) -> tzinfo:
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


def next_occurrence(moment: datetime, clock: time, zone: tzinfo) -> datetime:
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


def _runtime(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise InputError(f"{name}={value!r} is not a duration; give a timedelta, or seconds as a number")
    return float(value)


def _endtime(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = time.fromisoformat(value)
    if not isinstance(value, time):
        raise InputError(
            f"{name}={value!r} is not a time of day; give a datetime.time, or its text as '18:00:00'"
        )
    if value.tzinfo is not None and value.utcoffset() is None:
        raise InputError(f"{name}={value!r} names a timezone; the DAG's counts, so leave it out")
    return value.isoformat()


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name}={value!r} must be a whole number, 0 for none; leave it out for no limit")
    return value
