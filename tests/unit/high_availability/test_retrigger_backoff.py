"""The pauses between the retriggers of a chain."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from unit.high_availability.support import START

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.retrigger_backoff import RecentRetriggers, RetriggerBackoff


def test_first_retrigger_is_immediate_and_the_pauses_double_up_to_ten_minutes() -> None:
    backoff = RetriggerBackoff()
    assert [backoff.pause(n) for n in range(9)] == [0, 10, 20, 40, 80, 160, 320, 600, 600]
    assert backoff.pause(10_000) == 600


def test_delay_of_zero_means_no_pauses_and_a_long_delay_is_not_shortened() -> None:
    assert RetriggerBackoff(delay=0).pause(50) == 0
    assert [RetriggerBackoff(delay=3600).pause(n) for n in (0, 1, 2)] == [0, 3600, 3600]


def test_program_that_crashes_each_21_seconds_is_in_a_crash_loop() -> None:
    count, pauses = 0, []
    for _ in range(5):
        count = RecentRetriggers(count, START).at(START + timedelta(seconds=21), 600)
        pauses.append(RetriggerBackoff().pause(count))
        count += 1
    assert pauses == [0, 10, 20, 40, 80]


def test_run_longer_than_reset_after_resets_the_count() -> None:
    recent = RecentRetriggers(7, START)
    assert recent.at(START + timedelta(minutes=10), 600) == 7
    assert recent.at(START + timedelta(minutes=10, seconds=1), 600) == 0
    assert recent.at(START + timedelta(microseconds=1), 0) == 0
    assert RecentRetriggers(7, None).at(START, 600) == 7


def test_backoff_round_trips_as_json_across_versions() -> None:
    backoff = RetriggerBackoff.of(timedelta(seconds=1), 2)
    assert backoff == RetriggerBackoff(1.0, 2.0)
    assert RetriggerBackoff().as_json() == {}
    assert RetriggerBackoff.from_json({}) == RetriggerBackoff()
    assert RetriggerBackoff.from_json(backoff.as_json() | {"of_the_future": 1}) == backoff


@pytest.mark.parametrize(
    "arguments, named", [((-1, 1), "retrigger_delay"), ((1, "10"), "retrigger_reset_after")]
)
def test_invalid_argument_is_named(arguments: tuple[Any, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}="):
        RetriggerBackoff.of(*arguments)
