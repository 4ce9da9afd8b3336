"""From when on events count for a wait, and until when it waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from deferrable_ops.events.cron import check_cron, next_occurrence
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later, is_output

_LONGEST: Final = 10 * 366 * 86_400.0


def check_since(since: Any) -> Any:
    """Return a ``since`` as it travels: text, or None for the DAG run's start; other tasks' outputs stay themselves.

    :raises InputError: it is not one of the things that :func:`since_moment` takes; a template is not checked yet.
    """
    if isinstance(since, datetime):
        return since.isoformat()
    if since is None or is_known_later(since) or since in ("day", "month"):
        return since
    _parsed(since)
    return since


def since_moment(since: datetime | str | None, *, run_start: datetime, timezone: tzinfo) -> datetime:
    """Return the moment from which on events count, in UTC.

    :param since: a datetime or its ISO 8601 text, on the timezone's clock where it names no offset; ``"day"`` or
        ``"month"``: the first moment of that in which the DAG run started; None: the DAG run's start.
    :param run_start: when the DAG run started, an aware datetime. It does not move when a triggerer restarts.
    :param timezone: the DAG's.
    :raises InputError: it is none of these.
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
        raise InputError(f"since={str(since)!r} is before the year 1 or after the year 9999 in UTC") from None


def check_timeout(timeout: Any) -> float | str:
    """Return a timeout as it travels: seconds, or a cron expression.

    :raises InputError: it is neither seconds above zero, nor a timedelta, nor a cron expression.
    """
    if isinstance(timeout, str):
        check_cron("timeout", timeout)
        return timeout
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InputError(
            f"timeout={timeout!r} is not a time to wait; give a timedelta, seconds as a number, or a cron expression"
        )
    if not 0 < seconds <= _LONGEST:
        raise InputError(f"timeout={timeout!r} must be above zero, and at most ten years")
    return float(seconds)


def deadline(
    timeout: float | str, *, start: datetime, timezone: tzinfo, next_interval_end: datetime | None = None
) -> datetime:
    """Return until when a wait waits, in UTC.

    :param timeout: seconds, or a cron expression: its first occurrence after the start.
    :param start: when the wait began, an aware datetime.
    :param timezone: the DAG's.
    :param next_interval_end: what the deadline is never past, for ``until_next_interval=True``; None: no limit.
    """
    if isinstance(timeout, str):
        moment = next_occurrence(timeout, start, timezone)
    else:
        moment = start.astimezone(UTC) + timedelta(seconds=timeout)
    return moment if next_interval_end is None else min(moment, next_interval_end.astimezone(UTC))


def next_interval_end(
    schedule: Any, *, interval_start: datetime, interval_end: datetime, timezone: tzinfo
) -> datetime | None:
    """Return when the data interval after a run's own ends, which is when the next run begins, in UTC.

    :param schedule: the DAG's: a cron expression or preset, or a timedelta. For any other the next interval is taken
        to be as long as this one.
    :param interval_start: of the run, an aware datetime.
    :param interval_end: of the run; where it is the start, as a cron schedule has it in Airflow 3, the next run begins
        at the schedule's next occurrence.
    :param timezone: the DAG's.
    :return: None when there is no telling: the interval has no length, and the schedule is neither.
    """
    if isinstance(schedule, str) and is_cron(schedule):
        return next_occurrence(schedule, interval_end, timezone)
    length = schedule if isinstance(schedule, timedelta) else interval_end - interval_start
    return (interval_end + length).astimezone(UTC) if length > timedelta(0) else None


def is_cron(schedule: str) -> bool:
    """Return whether a DAG's schedule is a cron expression, and not ``@once`` or ``@continuous``."""
    try:
        check_cron("schedule", schedule)
    except InputError:
        return False
    return True


def timezone_named(name: str) -> tzinfo:
    """Return a timezone by what Airflow calls it: ``Europe/Berlin``, ``UTC``, ``+02:00``.

    :raises InputError: there is none of this name.
    """
    try:
        if name[:1] in ("+", "-"):
            offset = datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
            assert offset is not None
            return offset
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise InputError(
            f"there is no timezone {name!r}; name one of the IANA database, as 'Europe/Berlin'"
        ) from None


def _parsed(since: Any) -> datetime:
    if is_output(since) or not isinstance(since, str):
        raise InputError(
            f"since={since!r} is no moment; give a datetime, its ISO 8601 text, 'day' or 'month'"
        )
    if since.strip() in ("", "None"):
        raise InputError(
            "since= is empty once rendered: a run without a logical date has no data interval; "
            "leave since= out for the DAG run's start, or give 'day' or 'month'"
        )
    try:
        return datetime.fromisoformat(since.strip())
    except ValueError:
        raise InputError(
            f"since={since!r} is no moment; give a datetime, its ISO 8601 text, 'day' or 'month'"
        ) from None
