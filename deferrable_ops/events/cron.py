"""Computes the next occurrence of a cron expression in a timezone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from croniter import CroniterError, croniter  # type: ignore[import-untyped]

from deferrable_ops.exceptions import InputError

# The only preset of Airflow that croniter does not support.
_PRESETS: Final = {"@quarterly": "0 0 1 */3 *"}
_RANDOM: Final = re.compile("(?<![A-Za-z])[RrHh](?![A-Za-z])")
_ANY_DAY: Final = datetime(2024, 1, 1)  # noqa: DTZ001 - wall-clock time
# This is longer than any clock change. The largest clock change is 2 hours, in Antarctica/Troll.
_LARGEST_SHIFT: Final = timedelta(hours=3)


def check_cron(argument: str, expression: str) -> None:
    """Check a cron expression.

    :param argument: the name of the operator's argument that contains the expression; the error message shows this
        name.
    :raises InputError: if the expression is malformed, does not have five fields, contains the letter R or H, or has no
        occurrence.
    """
    try:
        fields = _fields(expression)
        croniter(fields, _ANY_DAY).get_next(datetime)
    except (CroniterError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{argument}={expression!r} is not a valid cron expression: {error}; "
            "give five fields, for example '0 6 * * *', or a preset, for example '@daily'"
        ) from None
    # Airflow does not support a field for seconds. With the letter R, each call would return a different random time.
    if len(croniter(fields).expanded) != 5 or _RANDOM.search(fields):
        raise InputError(
            f"{argument}={expression!r} must have five fields, and must not contain R or H, for example '0 6 * * *'"
        )


def next_occurrence(expression: str, after: datetime, timezone: tzinfo) -> datetime:
    """Return the time (in UTC) of the first occurrence of a cron expression after a moment.

    The start and the end of daylight saving time are handled as in Airflow's scheduler. A time that the clock skips is
    moved forward by the length of the gap. If an hour occurs twice, a schedule with a fixed hour runs in the second of
    these two hours, and an hourly schedule runs in both hours.

    :param after: the moment, as an aware datetime.
    :param timezone: the timezone of the expression.
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
    raise AssertionError("no next occurrence of a valid cron expression was found")


def _walls(fields: str, after: datetime) -> Iterator[datetime]:
    cron = croniter(fields, after)
    while True:
        yield cron.get_next(datetime)


def _moments(wall: datetime, timezone: tzinfo, every_hour: bool) -> tuple[datetime, ...]:
    first, second = (wall.replace(tzinfo=timezone, fold=fold).astimezone(UTC) for fold in (0, 1))
    # If the clock skips this time, `second` is earlier than `first`. The later of both is the skipped time, moved
    # forward.
    return (first, second) if every_hour and first < second else (max(first, second),)


def _fields(expression: str) -> str:
    return _PRESETS.get(expression.strip(), expression)
