"""Limits that end the checks of a DAG run: a runtime, a time of day or a number of retriggers."""

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

    :param runtime: the checks end this many seconds after the reference date; None means no limit.
    :param endtime: the checks end at the first occurrence of this time of day after the reference date; ISO 8601, in
        the DAG's timezone; None means no limit.
    :param maxretrigger: the maximum number of retriggers in a row, counted from the chain's last long run; 0 means no
        retriggers, and None means no limit.
    :param runtime_function: the dotted path of a function that computes `runtime` for each run; None if there is no
        such function.
    :param endtime_function: the dotted path of a function that computes `endtime` for each run; None if there is no
        such function.
    """

    runtime: float | None = None
    endtime: str | None = None
    maxretrigger: int | None = None
    runtime_function: str | None = None
    endtime_function: str | None = None

    @classmethod
    def of(cls, runtime: Any, endtime: Any, maxretrigger: Any, prefix: str = "") -> Limits:
        """Return the limits that an operator's arguments or a run's params set.

        :param prefix: text that error messages show before the limit's name.
        :raises InputError: if a limit is invalid.
        """
        return cls(
            None if runtime is None else duration(f"{prefix}runtime", runtime),
            _endtime(f"{prefix}endtime", endtime),
            _count(f"{prefix}maxretrigger", maxretrigger),
        )

    def overridden_by(self, forced: Limits) -> Limits:
        """Return a copy of these limits, in which each limit that is set in `forced` replaces the limit of the same
        name.
        """
        given = {name: value for name in self.__slots__ if (value := getattr(forced, name)) is not None}
        return replace(self, **given)

    def end(self, reference: datetime, timezone: str) -> tuple[datetime, str] | None:
        """Return the time at which the checks end, and a text that shows which limit ends the checks; None if there is
        no limit.

        :param reference: the reference date, a datetime with a timezone.
        :param timezone: the name of the DAG's timezone, in which ``endtime`` is read.
        :raises InputError: if the timezone is unknown, or the end is after the year 9999.
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
            raise InputError(
                f"runtime={self.runtime!r} ends after the year 9999; give a shorter runtime, or leave out runtime"
            ) from None
        return min(ends, default=None)

    def is_last(self, retriggers: int) -> bool:
        """Return whether this run may not retrigger the DAG, because `retriggers` has reached the limit
        ``maxretrigger``.
        """
        return self.maxretrigger is not None and retriggers >= self.maxretrigger


def check_reference_date(value: Any) -> str:
    """Return the ``reference_date`` if it is valid.

    :raises InputError: if the value is not in ``REFERENCE_DATES``.
    """
    if value not in REFERENCE_DATES:
        raise InputError(f"reference_date={value!r} must be one of {', '.join(map(repr, REFERENCE_DATES))}")
    return str(value)


def forced_limits(task_id: str, params: Mapping[str, Any]) -> Limits:
    """Return the limits that a run's params ``{task_id}-force-...`` set.

    :raises InputError: if a limit is invalid.
    """
    prefix = f"{task_id}-force-"
    runtime, endtime, maxretrigger = (
        params.get(f"{prefix}{name}") for name in ("runtime", "endtime", "maxretrigger")
    )
    return Limits.of(runtime, endtime, maxretrigger, prefix)


def timezone_by_name(name: str) -> tzinfo:
    """Return the timezone with this name, for example ``Europe/Zurich``.

    A fixed UTC offset such as ``+02:00`` is also a valid name.

    :raises InputError: if the timezone is unknown.
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
        raise InputError(f"the DAG's timezone {name!r} is unknown on this machine; install tzdata")
    return offset


def next_occurrence(moment: datetime, clock: time, zone: tzinfo) -> datetime:
    """Return the next occurrence of a time of day after a moment, in UTC.

    For example, the next occurrence of 06:00 after 22:00 is on the next day. On the day when daylight saving time
    starts, a time of day that does not exist is moved one hour later. On the day when daylight saving time ends, a
    time of day can exist twice; the first of the two occurrences that is after the moment is returned.

    :param moment: a datetime with a timezone.
    :param clock: the time of day whose next occurrence is returned. If the time of day has no UTC offset of its own,
        it is in the timezone `zone`.
    """
    own = clock.tzinfo or zone
    day = moment.astimezone(own).date() - timedelta(days=1)
    while True:
        local = datetime.combine(day, clock.replace(tzinfo=None), tzinfo=own)
        first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        # If the time of day does not exist on this day, `second` is earlier, and is not an occurrence.
        for candidate in (first, max(first, second)):
            if candidate > moment:
                return candidate
        day += timedelta(days=1)


def duration(name: str, value: Any) -> float:
    """Convert a duration to seconds.

    :raises InputError: if the value is not a duration, or is below zero.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise InputError(
            f"{name}={value!r} is not a duration; give a timedelta, or seconds as a number of 0 or more"
        )
    return float(value)


def _endtime(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = time.fromisoformat(value)
    if not isinstance(value, time):
        raise InputError(
            f"{name}={value!r} is not a time of day; give a datetime.time, or a string such as '18:00:00'"
        )
    if value.tzinfo is not None and value.utcoffset() is None:
        raise InputError(
            f"{name}={value!r} has a timezone; remove the timezone, because the DAG's timezone is used"
        )
    return value.isoformat()


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(
            f"{name}={value!r} must be a whole number of 0 or more (0 means no retriggers); for no limit, "
            f"leave {name}= out"
        )
    return value
