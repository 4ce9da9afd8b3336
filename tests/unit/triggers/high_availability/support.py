"""Checks for the tests of the triggers; they record their calls."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import greenback
from airflow.sdk.exceptions import AirflowSkipException
from unit.high_availability.support import facts

from deferrable_ops.high_availability import Action, CheckResult, Result
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.high_availability.poll_schedule import PollSchedule
from deferrable_ops.high_availability.thresholds import Thresholds
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityTrigger

PATH = f"{__name__}:"
results: list[Any] = []
calls: list[dict[str, Any]] = []
go_on = threading.Event()


def scripted(**context: Any) -> Any:
    """Return the next of the scripted results; repeat the last one."""
    calls.append(context)
    return results.pop(0) if len(results) > 1 else results[0]


async def scripted_on_the_loop(**context: Any) -> Any:
    await asyncio.sleep(0)
    return scripted(**context)


def takes_url(url: str, ds: str, retries: int = 1) -> CheckResult:
    calls.append({"url": url, "ds": ds, "retries": retries})
    return Result.PASS, Action.STOP


def takes_dag(dag: Any) -> CheckResult:
    return Result.PASS, Action.STOP


def pushes_an_xcom(**context: Any) -> CheckResult:
    push(context["ti"])
    return Result.PASS, Action.STOP


async def pushes_an_xcom_on_the_loop(ti: Any) -> CheckResult:
    push(ti)
    return Result.PASS, Action.STOP


def push(ti: Any) -> None:
    ti.xcom_push(key="healthy", value=True)


def reads_the_end_of_the_run(dag_run: Any) -> CheckResult:
    return Result.PASS, Action.STOP if dag_run.end_date else Action.CONTINUE


def looks_up_the_dag(**context: Any) -> CheckResult:
    return Result.PASS, Action.STOP if context["dag"] else Action.CONTINUE


def looks_up_a_price() -> None:
    raise KeyError("AAPL")


async def waits_like_variable_get() -> CheckResult:
    """Wait as Airflow's SDK does if a function of it that is no coroutine is called on the event loop."""
    greenback.await_(asyncio.sleep(0.6))
    return Result.PASS, Action.STOP


def exits() -> None:
    sys.exit("that is all")


async def exits_on_the_loop() -> None:
    sys.exit("that is all")


def raises() -> None:
    raise ConnectionError("no such host")


async def raises_on_the_loop() -> None:
    raise ConnectionError("no such host")


def stops_iterating() -> None:
    raise StopIteration("next() of nothing")


def skips() -> None:
    raise AirflowSkipException("nothing to watch today")


def hangs() -> None:
    go_on.wait(60)


async def hangs_on_the_loop() -> None:
    await asyncio.Event().wait()


async def will_not_be_cancelled() -> None:
    while not go_on.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def blocks() -> CheckResult:
    time.sleep(0.6)  # noqa: ASYNC251
    return Result.PASS, Action.STOP


def returns_nonsense() -> Any:
    return MagicMock()


def returns_a_coroutine() -> Any:
    return scripted_on_the_loop()


class Queue:
    """A check that is a class."""

    made: list[str] = []  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name
        Queue.made.append(name)

    def __call__(self, ds: str) -> CheckResult:
        calls.append({"queue": self.name, "ds": ds})
        return results.pop(0)


class CannotBeMade:
    def __init__(self) -> None:
        raise RuntimeError("no such queue")


not_callable = SimpleNamespace()
nested = SimpleNamespace(check=scripted)


def forget() -> None:
    """Reset everything that is recorded."""
    results.clear()
    calls.clear()
    Queue.made.clear()
    go_on.clear()


def trigger(
    check: str = "scripted",
    conf: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    limits: Limits | None = None,
    thresholds: Thresholds | None = None,
    reference_date: str = "start_date",
    **arguments: Any,
) -> HighAvailabilityTrigger:
    """Return a trigger that checks every 50 ms, for a run that started now."""
    rules = CheckRules(
        limits or Limits(), reference_date, "UTC", thresholds or Thresholds(), PollSchedule(interval=0.05)
    )
    run = facts(conf, params, start_date=datetime.now(UTC))
    path = check if "." in check else PATH + check
    return HighAvailabilityTrigger(
        check=path, rules=rules.as_json(), run_facts=run.as_json(), **{"check_timeout": 5.0, **arguments}
    )
