from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.timetables.base import DataInterval, TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.events.cron import check_cron, next_occurrence
from deferrable_ops.events.windows import (
    check_since,
    check_timeout,
    deadline,
    next_interval_end,
    since_moment,
    timezone_named,
)
from deferrable_ops.exceptions import InputError

BERLIN = ZoneInfo("Europe/Berlin")  # 2026: forward on 29 March at 2:00, back on 25 October at 3:00
SANTIAGO = ZoneInfo(
    "America/Santiago"
)  # 2026: forward on 6 September at 0:00, a time that does not exist on that day
NEW_YORK = ZoneInfo("America/New_York")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    ("since", "run_start", "zone", "moment"),
    [
        (None, "2026-05-05T10:00:00+02:00", BERLIN, "2026-05-05T08:00:00+00:00"),
        ("day", "2026-05-05T23:30:00+00:00", BERLIN, "2026-05-05T22:00:00+00:00"),
        ("day", "2026-05-05T23:30:00+00:00", UTC, "2026-05-05T00:00:00+00:00"),
        ("month", "2026-05-31T23:30:00+00:00", BERLIN, "2026-05-31T22:00:00+00:00"),
        ("month", "2026-05-31T23:30:00+00:00", NEW_YORK, "2026-05-01T04:00:00+00:00"),
        # Days with a clock change: 23 and 25 hours long, and one without a midnight.
        ("day", "2026-03-29T20:00:00+02:00", BERLIN, "2026-03-28T23:00:00+00:00"),
        ("day", "2026-10-25T20:00:00+01:00", BERLIN, "2026-10-24T22:00:00+00:00"),
        ("month", "2026-03-31T20:00:00+02:00", BERLIN, "2026-02-28T23:00:00+00:00"),
        ("day", "2026-09-06T12:00:00-03:00", SANTIAGO, "2026-09-06T04:00:00+00:00"),
        ("2026-05-05T10:00:00+02:00", "2026-05-06T00:00:00+00:00", UTC, "2026-05-05T08:00:00+00:00"),
        ("2026-05-05 10:00:00.5+00:00", "2026-05-06T00:00:00+00:00", BERLIN, "2026-05-05T10:00:00.5+00:00"),
        ("2026-05-05", "2026-05-06T00:00:00+00:00", BERLIN, "2026-05-04T22:00:00+00:00"),
        ("2026-03-29T02:30:00", "2026-05-06T00:00:00+00:00", BERLIN, "2026-03-29T01:30:00+00:00"),
        ("2026-10-25T02:30:00", "2026-05-06T00:00:00+00:00", BERLIN, "2026-10-25T00:30:00+00:00"),
    ],
)
def test_since_is_converted_into_a_moment(
    since: str | None, run_start: str, zone: tzinfo, moment: str
) -> None:
    found = since_moment(since, run_start=utc(run_start), timezone=zone)
    assert found == utc(moment)
    assert found.tzinfo is UTC


def test_rendered_template_is_a_valid_since() -> None:
    interval_start = pendulum.datetime(2026, 5, 5, 12, tz="Europe/Berlin")
    rendered = str(interval_start)
    assert since_moment(rendered, run_start=utc("2026-05-06T00:00:00+00:00"), timezone=UTC) == interval_start


def test_a_since_is_serialized_as_text() -> None:
    assert check_since(datetime(2026, 5, 5, tzinfo=UTC)) == "2026-05-05T00:00:00+00:00"
    assert check_since("{{ data_interval_start }}") == "{{ data_interval_start }}"
    assert [check_since(since) for since in (None, "day", "month")] == [None, "day", "month"]
    naive = datetime(2026, 5, 5)  # noqa: DTZ001 - the DAG's timezone is meant
    sent = check_since(naive)
    start = utc("2026-05-06T00:00:00+00:00")
    assert since_moment(sent, run_start=start, timezone=BERLIN) == utc("2026-05-04T22:00:00+00:00")
    assert since_moment(naive, run_start=start, timezone=BERLIN) == utc("2026-05-04T22:00:00+00:00")


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("", "rendered to an empty string"),
        ("None", "rendered to an empty string"),
        ("week", "is not a date and time"),
        ("yesterday", "is not a date and time"),
        (5, "is not a date and time"),
        (timedelta(days=1), "is not a date and time"),
    ],
)
def test_invalid_since_is_refused(since: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_since(since)
    with pytest.raises(InputError, match=reason):
        since_moment(since, run_start=datetime.now(UTC), timezone=UTC)


def test_a_since_outside_the_calendar_is_refused() -> None:
    with pytest.raises(InputError, match="before the year 1"):
        since_moment("0001-01-01T00:00:00+05:00", run_start=datetime.now(UTC), timezone=UTC)


@pytest.mark.parametrize(
    ("timeout", "sent"), [(60, 60.0), (timedelta(hours=6), 21600.0), ("0 6 * * *", "0 6 * * *")]
)
def test_a_timeout_is_serialized_as_seconds_or_cron(timeout: Any, sent: Any) -> None:
    assert check_timeout(timeout) == sent


@pytest.mark.parametrize(
    ("timeout", "reason"),
    [
        (0, "above zero"),
        (-1, "above zero"),
        (float("nan"), "above zero"),
        (float("inf"), "at most ten years"),
        (1e300, "at most ten years"),
        (True, "is invalid; give a timedelta"),
        (None, "is invalid; give a timedelta"),
        ("3600", "not a valid cron expression"),
        ("", "not a valid cron expression"),
        ("0 6 * *", "not a valid cron expression"),
        ("0 0 31 2 *", "not a valid cron expression"),
        ("61 * * * *", "not a valid cron expression"),
        ("@reboot", "not a valid cron expression"),
        ("* * * * * *", "five fields"),
        ("R R * * *", "must not contain R or H"),
        ("H * * * *", "cron expression"),
    ],
)
def test_invalid_timeout_is_refused(timeout: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_timeout(timeout)


@given(st.text() | st.lists(st.sampled_from("0159*/-,#LWRH? @"), max_size=14).map("".join))
@settings(deadline=None)
def test_any_text_is_a_cron_expression_or_is_refused(text: str) -> None:
    try:
        check_cron("timeout", text)
    except InputError:
        pass
    else:
        after = utc("2026-05-05T00:00:00+00:00")
        assert next_occurrence(text, after, BERLIN) > after


@pytest.mark.parametrize(
    ("expression", "after", "moment"),
    [
        ("0 6 * * *", "2026-05-05T05:59:59+02:00", "2026-05-05T06:00:00+02:00"),
        ("0 6 * * *", "2026-05-05T06:00:00+02:00", "2026-05-06T06:00:00+02:00"),
        ("@daily", "2026-05-05T06:00:00+02:00", "2026-05-06T00:00:00+02:00"),
        ("@quarterly", "2026-05-05T06:00:00+02:00", "2026-07-01T00:00:00+02:00"),
        ("0 6 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T06:00:00+02:00"),
        # 2:30 does not exist on 29 March, and exists twice on 25 October.
        ("30 2 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00"),
        ("30 2 * * *", "2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"),
        ("30 2 * * *", "2026-10-25T01:00:00+02:00", "2026-10-25T02:30:00+01:00"),
        ("30 2 * * *", "2026-10-25T02:30:00+01:00", "2026-10-26T02:30:00+01:00"),
        ("30 2 * * *", "2026-10-25T02:45:00+02:00", "2026-10-25T02:30:00+01:00"),
        ("30 * * * *", "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"),
        ("30 * * * *", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"),
        ("*/30 * * * *", "2026-03-29T01:45:00+01:00", "2026-03-29T03:00:00+02:00"),
        ("0 * 1 * *", "2026-10-15T12:00:00+02:00", "2026-11-01T00:00:00+01:00"),
    ],
)
def test_cron_where_clocks_change(expression: str, after: str, moment: str) -> None:
    assert next_occurrence(expression, utc(after), BERLIN) == utc(moment)


@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0 * * * *", "*/15 * * * *", "0 6 * * 1", "0 0 1 * *", "@weekly"]
)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Santiago", "UTC"])
def test_cron_occurs_when_airflow_schedules_it(expression: str, zone: str) -> None:
    timetable = CronTriggerTimetable(expression, timezone=zone)
    for around in ("2026-03-28", "2026-10-24", "2026-09-05", "2026-04-04"):
        moment = next_occurrence(expression, utc(f"{around}T00:00:00+00:00"), ZoneInfo(zone))
        for _ in range(30):
            before = pendulum.instance(moment)
            scheduled = timetable.next_dagrun_info(
                last_automated_data_interval=DataInterval(before, before),
                restriction=TimeRestriction(earliest=None, latest=None, catchup=True),
            )
            moment = next_occurrence(expression, moment, ZoneInfo(zone))
            assert scheduled is not None
            assert moment == scheduled.run_after


def test_a_skipped_hour_is_not_replaced_by_the_one_before() -> None:
    # Santiago skips the first hour of 6 September: not at 23:30 on the day before.
    after = utc("2026-09-05T12:00:00-04:00")
    assert next_occurrence("30 * 6 9 *", after, SANTIAGO) == utc("2026-09-06T01:30:00-03:00")


def test_a_deadline_is_seconds_from_the_start_or_the_next_occurrence() -> None:
    start = utc("2026-03-29T01:30:00+01:00")
    assert deadline(7200.0, start=start, timezone=BERLIN) == utc("2026-03-29T04:30:00+02:00")
    assert deadline("0 6 * * *", start=start, timezone=BERLIN) == utc("2026-03-29T06:00:00+02:00")


def test_a_deadline_is_never_past_the_next_data_interval() -> None:
    start, end = utc("2026-05-05T00:00:00+00:00"), utc("2026-05-06T00:00:00+00:00")
    assert deadline(999_999.0, start=start, timezone=UTC, next_interval_end=end) == end
    assert deadline("0 6 * * *", start=start, timezone=UTC, next_interval_end=end) == utc(
        "2026-05-05T06:00:00+00:00"
    )


@pytest.mark.parametrize(
    ("schedule", "start", "end", "moment"),
    [
        # With a data interval of one day, and with an empty one, the default in Airflow 3.
        ("0 0 * * *", "2026-03-28T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        ("@daily", "2026-03-29T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
        (
            timedelta(hours=6),
            "2026-05-05T00:00:00+00:00",
            "2026-05-05T06:00:00+00:00",
            "2026-05-05T12:00:00+00:00",
        ),
        (None, "2026-05-05T00:00:00+00:00", "2026-05-05T01:00:00+00:00", "2026-05-05T02:00:00+00:00"),
        (
            "@continuous",
            "2026-05-05T00:00:00+00:00",
            "2026-05-05T01:00:00+00:00",
            "2026-05-05T02:00:00+00:00",
        ),
        (None, "2026-05-05T00:00:00+00:00", "2026-05-05T00:00:00+00:00", None),
        ("@once", "2026-05-05T00:00:00+00:00", "2026-05-05T00:00:00+00:00", None),
    ],
)
def test_end_of_the_next_data_interval(schedule: Any, start: str, end: str, moment: str | None) -> None:
    found = next_interval_end(schedule, interval_start=utc(start), interval_end=utc(end), timezone=BERLIN)
    assert found == (None if moment is None else utc(moment))


def test_timezones_have_airflows_names() -> None:
    assert timezone_named("Europe/Berlin") == BERLIN
    assert timezone_named("+02:00") == timezone(timedelta(hours=2))
    assert timezone_named(pendulum.timezone("UTC").name).utcoffset(None) in (timedelta(0), None)
    for wrong in ("Europe/Nowhere", "", "../etc/passwd", "+99:00"):
        with pytest.raises(InputError, match="unknown timezone"):
            timezone_named(wrong)
