"""Computes the time window of a wait: the moment from which events are accepted, and the deadline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from deferrable_ops.events.cron import check_cron, next_occurrence
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later, is_output

# The longest timeout, in seconds: ten years.
_MAX_TIMEOUT: Final = 10 * 366 * 86_400.0


def check_since(since: Any) -> Any:
    """Return the argument ``since`` in serializable form: a string, or None for the DAG run's start.

    A reference to another task's output is returned unchanged. This function does not check a template, because the
    template is not rendered yet.

    :raises InputError: if :func:`since_moment` does not accept the value.
    """
    if isinstance(since, datetime):
        return since.isoformat()
    if since is None or is_known_later(since) or since in ("day", "month"):
        return since
    _parsed(since)
    return since


def since_moment(since: datetime | str | None, *, run_start: datetime, timezone: tzinfo) -> datetime:
    """Return the moment (in UTC) from which events are accepted.

    :param since: a datetime or an ISO 8601 string. A time without a UTC offset is in `timezone`. ``"day"`` or
        ``"month"`` means the start of the day or month in which the DAG run started. If `since` is None, the moment is
        the start of the DAG run.
    :param run_start: the DAG run's start, an aware datetime. The DAG run's start does not change when a triggerer
        restarts.
    :param timezone: the DAG's timezone.
    :raises InputError: if `since` is not a datetime, a date and time in ISO 8601, "day", "month" or None.
    """
    if since is None:
        return run_start.astimezone(UTC)
    if since in ("day", "month"):
        day = run_start.astimezone(timezone).date()
        first = day.replace(day=1) if since == "month" else day
        return datetime(first.year, first.month, first.day, tzinfo=timezone).astimezone(UTC)
    moment = since if isinstance(since, datetime) else _parsed(since)
    try:
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)).astimezone(UTC)
    except OverflowError:
        raise InputError(
            f"since={str(since)!r} is before the year 1 or after the year 9999 in UTC; correct it"
        ) from None


def check_timeout(timeout: Any) -> float | str:
    """Return a timeout in serializable form: seconds, or a cron expression.

    :raises InputError: if `timeout` is not a positive number of seconds, a timedelta or a cron expression.
    """
    if isinstance(timeout, str):
        check_cron("timeout", timeout)
        return timeout
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InputError(
            f"timeout={timeout!r} is invalid; give a timedelta, a number of seconds or a cron expression"
        )
    if not 0 < seconds <= _MAX_TIMEOUT:
        raise InputError(f"timeout={timeout!r} must be above zero and at most ten years")
    return float(seconds)


def deadline(
    timeout: float | str, *, start: datetime, timezone: tzinfo, next_interval_end: datetime | None = None
) -> datetime:
    """Return the deadline of a wait, in UTC.

    :param timeout: how long the wait may last, in seconds; or a cron expression. With a cron expression, the deadline
        is the first occurrence of the expression after `start`.
    :param start: when the wait began, as an aware datetime.
    :param timezone: the DAG's timezone, in which a cron expression is evaluated.
    :param next_interval_end: the end of the DAG's next data interval if ``until_next_interval`` is True, otherwise
        None. The deadline is never later than `next_interval_end`.
    """
    if isinstance(timeout, str):
        moment = next_occurrence(timeout, start, timezone)
    else:
        moment = start.astimezone(UTC) + timedelta(seconds=timeout)
    return moment if next_interval_end is None else min(moment, next_interval_end.astimezone(UTC))


def next_interval_end(
    schedule: Any, *, interval_start: datetime, interval_end: datetime, timezone: tzinfo
) -> datetime | None:
    """Return the end (in UTC) of the data interval after the run's own interval.

    The next DAG run starts at the end of this data interval.

    :param schedule: the DAG's schedule: a cron expression or preset, or a timedelta. For any other schedule, the next
        interval is assumed to be as long as the run's interval.
    :param interval_start: the start of the run's data interval, an aware datetime.
    :param interval_end: the end of the run's data interval. For cron schedules in Airflow 3, `interval_end` equals
        `interval_start`, and the next DAG run starts at the schedule's next occurrence.
    :param timezone: the DAG's timezone, in which a cron schedule is evaluated.
    :return: the end of the next data interval, or None if this end is unknown. The end is unknown if the run's
        interval has no length and the schedule is neither a cron expression nor a timedelta.
    """
    if isinstance(schedule, str) and is_cron(schedule):
        return next_occurrence(schedule, interval_end, timezone)
    length = schedule if isinstance(schedule, timedelta) else interval_end - interval_start
    return (interval_end + length).astimezone(UTC) if length > timedelta(0) else None


def is_cron(schedule: str) -> bool:
    """Return whether a DAG's schedule is a cron expression; ``@once`` and ``@continuous`` are not cron expressions."""
    try:
        check_cron("schedule", schedule)
    except InputError:
        return False
    return True


def timezone_named(name: str) -> tzinfo:
    """Return a timezone by its name in Airflow, for example ``Europe/Berlin``, ``UTC`` or ``+02:00``.

    :raises InputError: if no timezone has this name.
    """
    try:
        if name[:1] in ("+", "-"):
            offset = datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
            assert offset is not None
            return offset
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise InputError(
            f"unknown timezone {name!r}; give a name of the IANA database, for example 'Europe/Berlin'"
        ) from None


def _parsed(since: Any) -> datetime:
    if is_output(since) or not isinstance(since, str):
        raise InputError(
            f"since={since!r} is not a date and time; "
            "give a datetime, a string in ISO 8601 format, 'day' or 'month'"
        )
    if since.strip() in ("", "None"):
        raise InputError(
            "since= rendered to an empty string, because a DAG run without a logical date has no data interval; "
            "leave since= out to accept events since the DAG run's start, or give 'day' or 'month'"
        )
    try:
        return datetime.fromisoformat(since.strip())
    except ValueError:
        raise InputError(
            f"since={since!r} is not a date and time; "
            "give a datetime, a string in ISO 8601 format, 'day' or 'month'"
        ) from None
