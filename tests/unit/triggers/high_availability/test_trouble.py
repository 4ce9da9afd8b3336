"""Checks that raise, hang or block: the task ends as documented, and other checks continue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from unit.triggers.high_availability import support as checks
from unit.triggers.high_availability.support import trigger
from unit.triggers.support import Runs, eventually

from deferrable_ops.high_availability.thresholds import Thresholds
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.triggers.high_availability import threads
from deferrable_ops.triggers.high_availability.check import CheckRunner
from deferrable_ops.triggers.high_availability.threads import TooManyHangingChecks, call_in_thread
from real_airflow import wait_until


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    checks.forget()
    yield
    checks.go_on.set()
    wait_until(lambda: not threads._hanging, "the hanging checks to return")


@pytest.mark.parametrize(
    "check, logged",
    [
        ("raises", "no such host"),
        ("raises_on_the_loop", "no such host"),
        ("exits", "that is all"),
        ("exits_on_the_loop", "that is all"),
        ("stops_iterating", "next() of nothing"),
        ("hangs", "check_timeout=0.3 s"),
        ("hangs_on_the_loop", "check_timeout=0.3 s"),
        ("will_not_be_cancelled", "check_timeout=0.3 s"),
        ("cancels_itself", "raised CancelledError itself"),
    ],
)
async def test_check_without_a_result_counts_as_failed_and_logs_why(
    runs: Runs, caplog: pytest.LogCaptureFixture, check: str, logged: str
) -> None:
    outcome = await runs.start(trigger(check, check_timeout=0.3)).outcome()
    assert outcome == Success(["fail", "retrigger"])
    assert logged in caplog.text
    # The event loop waits for all its tasks when it closes.
    checks.go_on.set()


async def test_invalid_return_value_fails_and_stops(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    assert await runs.start(trigger("returns_nonsense")).outcome() == Success(["fail", "stop"])
    assert "returned a MagicMock" in caplog.text


async def test_check_that_raises_counts_for_the_threshold(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = await runs.start(trigger("raises", thresholds=Thresholds.of(1, 3))).outcome()
    assert outcome == Success(["fail", "retrigger"])
    assert caplog.text.count("The check failed") == 3


@pytest.mark.parametrize(
    "check, named",
    [
        ("takes_url", "required parameter 'url'"),
        ("takes_dag", "required parameter 'dag'"),
        ("pushes_an_xcom", "uses ti.xcom_push"),
        ("pushes_an_xcom_on_the_loop", "uses ti.xcom_push"),
        ("reads_the_end_of_the_run", "uses dag_run.end_date"),
        ("looks_up_the_dag", "uses the name 'dag'"),
    ],
)
async def test_check_that_needs_a_worker_or_an_argument_fails_and_does_not_retrigger(
    runs: Runs, check: str, named: str
) -> None:
    outcome = await runs.start(trigger(check)).outcome()
    assert isinstance(outcome, Failure)
    assert named in outcome.reason
    assert not outcome.retryable


async def test_error_in_a_lookup_of_the_check_itself_still_counts_as_failed(runs: Runs) -> None:
    assert await runs.start(trigger("looks_up_a_price")).outcome() == Success(["fail", "retrigger"])


async def test_coroutine_may_call_functions_of_the_sdk_that_are_not_coroutines(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    assert await runs.start(trigger("waits_like_variable_get")).outcome() == Success(["pass", "stop"])
    assert "blocked the triggerer" not in caplog.text


async def test_coroutine_that_blocks_the_loop_is_logged(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "task")
    assert await runs.start(trigger("blocks")).outcome() == Success(["pass", "stop"])
    assert "blocked the triggerer" in caplog.text


async def test_other_checks_run_while_some_hang(runs: Runs) -> None:
    hanging = [runs.start(trigger("hangs", check_timeout=30)) for _ in range(20)]
    checks.results[:] = [("pass", "stop")]
    assert await runs.start(trigger()).outcome() == Success(["pass", "stop"])
    assert not any(run.task.done() for run in hanging)


async def test_running_threads_are_limited() -> None:
    running: set[int] = set()
    most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal most
        with lock:
            running.add(threading.get_ident())
            most = max(most, len(running))
        time.sleep(0.02)
        with lock:
            running.discard(threading.get_ident())

    await asyncio.gather(*(call_in_thread(work, 5) for _ in range(200)))
    assert 1 < most <= threads.MAX_RUNNING


async def test_waiting_for_a_slot_does_not_count_towards_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_slots", {asyncio.get_running_loop(): asyncio.Semaphore(1)})
    await asyncio.gather(*(call_in_thread(partial(time.sleep, 0.1), 0.5) for _ in range(10)))


async def test_hanging_check_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_slots", {asyncio.get_running_loop(): asyncio.Semaphore(1)})
    with pytest.raises(TimeoutError):
        await call_in_thread(checks.hangs, 0.05)
    assert await call_in_thread(lambda: 1, 5) == 1


async def test_no_checks_start_when_too_many_hang(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    monkeypatch.setattr(CheckRunner, "max_hanging", 2)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await call_in_thread(checks.hangs, 0.05)
    with pytest.raises(TooManyHangingChecks, match="restart this triggerer"):
        await call_in_thread(lambda: 1, 5, max_hanging=2)
    checks.results[:] = [("pass", "stop")]
    assert await runs.start(trigger()).outcome() == Success(["fail", "retrigger"])
    checks.go_on.set()
    await eventually(lambda: not threads._hanging, "the hanging checks to return")
    assert await call_in_thread(lambda: 1, 5) == 1


async def test_check_threads_are_daemons() -> None:
    found: list[Any] = []
    await call_in_thread(lambda: found.append(threading.current_thread().daemon), 5)
    assert found == [True]


async def test_threads_are_reused() -> None:
    def thread() -> int:
        return threading.get_ident()

    await call_in_thread(thread, 5)
    await eventually(lambda: threads._idle._value > 0, "the thread to be idle")  # type: ignore[attr-defined]
    before = threading.active_count()
    for _ in range(50):
        await call_in_thread(thread, 5)
        await eventually(lambda: threads._idle._value > 0, "the thread to be idle")  # type: ignore[attr-defined]
    assert threading.active_count() <= before
