"""Limits that a function computes from the data of the run."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

import pytest
from unit.high_availability.support import START, facts

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.limit_functions import compute_limits
from deferrable_ops.high_availability.limits import Limits

HERE = f"{__name__}:"


def close_of_day(logical_date: datetime, params: dict[str, Any]) -> time:
    """Return the end of a half day or of a full day."""
    return time(13) if f"{logical_date:%m-%d}" == params.get("half_day") else time(16, 30)


def until_the_window(reference_date: datetime, **_: Any) -> timedelta:
    return timedelta(hours=23) - timedelta(hours=reference_date.hour)


def no_limit() -> None: ...


def breaks() -> None:
    raise LookupError("no calendar for 2026")


def returns_a_moment() -> datetime:
    return START


def compute(
    runtime: str | None = None, endtime: str | None = None, conf: Any = None, params: Any = None
) -> Limits:
    declared = Limits(
        maxretrigger=3,
        runtime_function=None if runtime is None else HERE + runtime,
        endtime_function=None if endtime is None else HERE + endtime,
    )
    return compute_limits("ha", facts(conf, params), declared, "start_date")


@pytest.mark.parametrize("half_day, expected", [("02-28", "13:00:00"), ("12-24", "16:30:00")])
def test_endtime_depends_on_the_run(half_day: str, expected: str) -> None:
    assert compute(endtime="close_of_day", params={"half_day": half_day}) == Limits(None, expected, 3)


def test_runtime_depends_on_the_reference_date_of_the_chain() -> None:
    assert compute("until_the_window") == Limits(11 * 3600, None, 3)
    first = START - timedelta(hours=2)
    assert compute("until_the_window", conf={"ha-referencedate": first.isoformat()}).runtime == 13 * 3600


def test_function_that_returns_none_sets_no_limit() -> None:
    assert compute("no_limit", "no_limit") == Limits(maxretrigger=3)


@pytest.mark.parametrize(
    "params", [{"ha-force-runtime": 60, "ha-force-endtime": "18:00"}, {"ha-force-run": True}]
)
def test_function_is_not_called_if_the_run_overrides_its_limit(params: dict[str, Any]) -> None:
    limits = facts(None, params).limits("ha", compute("breaks", "breaks", params=params))
    assert limits in (Limits(60.0, "18:00:00", 3), Limits())


def test_limits_without_functions_are_unchanged() -> None:
    declared = Limits.of(5, "18:00", 1)
    assert compute_limits("ha", facts(), declared, "start_date") is declared


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("breaks",), f"the function runtime='{HERE}breaks' failed .LookupError: no calendar for 2026"),
        ((None, "missing"), f"the function endtime='{HERE}missing' failed .AttributeError"),
        ((None, "returns_a_moment"), "returns_a_moment: endtime=.* is not a time of day"),
        (("close_of_day",), "close_of_day: runtime=.* is not a duration"),
    ],
)
def test_function_that_fails_or_returns_no_limit_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compute(*arguments, params={})
