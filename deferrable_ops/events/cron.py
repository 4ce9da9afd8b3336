"""When a cron expression next occurs in a timezone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from croniter import CroniterError, croniter  # type: ignore[import-untyped]

from deferrable_ops.exceptions import InputError

# croniter knows the other presets of Airflow.
_PRESETS: Final = {"@quarterly": "0 0 1 */3 *"}
_RANDOM: Final = re.compile("(?<![A-Za-z])[RrHh](?![A-Za-z])")
_ANY_DAY: Final = datetime(2024, 1, 1)  # noqa: DTZ001 - wall-clock time
_LARGEST_SHIFT: Final = timedelta(hours=3)  # of clocks: Antarctica/Troll changes by 2 hours


def check_cron(argument: str, expression: str) -> None:
    """Check a cron expression.

    :param argument: how the user calls it, for the error.
    :raises InputError: it is malformed, does not have five fields, is random, or never occurs.
    """
    try:
        fields = _fields(expression)
        croniter(fields, _ANY_DAY).get_next(datetime)
    except (CroniterError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{argument}={expression!r} is not a cron expression that occurs: {error}; "
            "give five fields, as '0 6 * * *', or a preset, as '@daily'"
        ) from None
    # Seconds are not Airflow's, and R draws another time whenever it is asked.
    if len(croniter(fields).expanded) != 5 or _RANDOM.search(fields):
        raise InputError(f"{argument}={expression!r} must have five fields without R and H, as '0 6 * * *'")


def next_occurrence(expression: str, after: datetime, timezone: tzinfo) -> datetime:
    """Return the first moment after another one that a cron expression names, in UTC.

    As Airflow's scheduler has it where clocks change: what a gap swallows comes as much later as the clock jumps, and
    of an hour that comes twice, a schedule with a fixed hour takes the second, and one of every hour both.

    :param after: an aware datetime.
    :param timezone: whose wall clock the expression means.
    """
    fields = _fields(expression)
    wall_now = after.astimezone(timezone).replace(tzinfo=None)
    every_hour = croniter(fields).expanded[1] == ["*"]
    found: datetime | None = None
    for wall in _walls(fields, wall_now - _LARGEST_SHIFT):
        if found is not None and wall > found.astimezone(timezone).replace(tzinfo=None) + _LARGEST_SHIFT:
            return found
        for moment in _moments(wall, timezone, every_hour):
            if moment > after and (found is None or moment < found):
                found = moment
    raise AssertionError("a cron expression occurs again and again")


def _walls(fields: str, after: datetime) -> Iterator[datetime]:
    cron = croniter(fields, after)
    while True:
        yield cron.get_next(datetime)


def _moments(wall: datetime, timezone: tzinfo, every_hour: bool) -> tuple[datetime, ...]:
    first, second = (wall.replace(tzinfo=timezone, fold=fold).astimezone(UTC) for fold in (0, 1))
    # In a gap the order is the other way round, and the later one is as far behind it as the wall time is within it.
    return (first, second) if every_hour and first < second else (max(first, second),)


def _fields(expression: str) -> str:
    return _PRESETS.get(expression.strip(), expression)
