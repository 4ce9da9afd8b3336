"""Runtime, endtime and maxretrigger, declared and forced."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.limits import (
    Limits,
    check_reference_date,
    forced_limits,
    next_occurrence,
    timezone_by_name,
)

AT_22 = datetime(2026, 3, 1, 22, tzinfo=UTC)


@pytest.mark.parametrize("runtime, expected", [(1.5, 1.5), (2, 2.0), (timedelta(minutes=1), 60.0), (0, 0.0)])
def test_runtime_is_a_number_or_a_timedelta(runtime: Any, expected: float) -> None:
    assert Limits.of(runtime, None, None).runtime == expected
    end = Limits.of(runtime, None, None).end(AT_22, "UTC")
    assert end is not None
    assert end[0] == AT_22 + timedelta(seconds=expected)


def test_overnight_endtime_is_on_the_next_day() -> None:
    end = Limits.of(None, "06:00", None).end(AT_22, "UTC")
    assert end == (datetime(2026, 3, 2, 6, tzinfo=UTC), "endtime=06:00:00")


def test_endtime_is_in_the_dags_timezone() -> None:
    # 22:00 in UTC is 17:00 in New York, and 07:00 of the next day in Tokyo.
    for zone, moment in (
        ("America/New_York", datetime(2026, 3, 1, 23, tzinfo=UTC)),
        ("Asia/Tokyo", datetime(2026, 3, 2, 9, tzinfo=UTC)),
        ("+02:00", datetime(2026, 3, 2, 16, tzinfo=UTC)),
    ):
        end = Limits.of(None, time(18), None).end(AT_22, zone)
        assert end is not None
        assert end[0] == moment


def test_endtime_equal_to_the_reference_is_on_the_next_day() -> None:
    assert next_occurrence(AT_22, time(22), UTC) == AT_22 + timedelta(days=1)
    assert next_occurrence(AT_22, time(22, 0, 1), UTC) == AT_22 + timedelta(seconds=1)


@pytest.mark.parametrize(
    "reference, expected",
    [
        # In Berlin, 02:30 is skipped on 29 March 2026 and occurs twice on 25 October.
        (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 1, 0, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)),
        (datetime(2026, 3, 29, 1, 30, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC)),
    ],
)
def test_endtime_when_daylight_saving_time_changes(reference: datetime, expected: datetime) -> None:
    assert next_occurrence(reference, time(2, 30), timezone_by_name("Europe/Berlin")) == expected


def test_earlier_of_runtime_and_endtime_ends() -> None:
    end = Limits.of(3600, "06:00", None).end(AT_22, "UTC")
    assert end == (AT_22 + timedelta(hours=1), "runtime=3600 s")
    assert Limits().end(AT_22, "UTC") is None


@pytest.mark.parametrize(
    "most, count, is_last", [(None, 99, False), (0, 0, True), (2, 1, False), (2, 2, True), (2, 3, True)]
)
def test_maxretrigger_zero_means_never_and_none_means_no_limit(
    most: int | None, count: int, is_last: bool
) -> None:
    assert Limits.of(None, None, most).is_last(count) is is_last


def test_forced_limits_override_declared_ones_even_as_zero() -> None:
    declared = Limits.of(60, "18:00", 3)
    forced = forced_limits(
        "ha", {"ha-force-runtime": 0, "ha-force-maxretrigger": 0, "other-force-runtime": 9}
    )
    assert declared.overridden_by(forced) == Limits(0.0, "18:00:00", 0)
    assert declared.overridden_by(forced_limits("ha", {})) == declared


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((-1, None, None), "runtime"),
        (("60", None, None), "runtime"),
        ((True, None, None), "runtime"),
        ((float("nan"), None, None), "runtime"),
        ((None, "25:00", None), "endtime"),
        ((None, 18, None), "endtime"),
        ((None, time(18, tzinfo=timezone_by_name("Europe/Berlin")), None), "endtime"),
        ((None, None, -1), "maxretrigger"),
        ((None, None, 1.5), "maxretrigger"),
        ((None, None, True), "maxretrigger"),
    ],
)
def test_invalid_limit_is_named(arguments: tuple[Any, Any, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}="):
        Limits.of(*arguments)


def test_invalid_forced_limit_is_named_by_its_param() -> None:
    with pytest.raises(InputError, match="ha-force-endtime='noon'"):
        forced_limits("ha", {"ha-force-endtime": "noon"})


def test_runtime_beyond_the_year_9999_is_refused() -> None:
    with pytest.raises(InputError, match="9999"):
        Limits.of(1e12, None, None).end(AT_22, "UTC")


def test_unknown_timezone_is_refused() -> None:
    with pytest.raises(InputError, match="Mars/Olympus"):
        timezone_by_name("Mars/Olympus")


def test_reference_date_is_one_of_three() -> None:
    assert check_reference_date("start_date") == "start_date"
    with pytest.raises(InputError, match="reference_date='end_date'"):
        check_reference_date("end_date")
