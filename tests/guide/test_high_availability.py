"""A check that runs again and again, in ten examples. PASS or FAIL is the result; an action says what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk import DAG

from deferrable_ops import Skip, Success
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import (
    Action,
    FileCheck,
    HighAvailabilityOperator,
    HttpCheck,
    Result,
    TcpCheck,
)
from deferrable_ops.testing import outside_service, running


@pytest.fixture
def dag() -> Iterator[DAG]:
    """Make a DAG for the tasks of a test: the operator adds its gates to it."""
    with DAG("service", schedule=None) as dag:
        yield dag


async def test_operator_makes_a_branch_for_each_decision(dag: DAG) -> None:
    """Chain what follows behind a branch, for example ``watch.retrigger_fail >> restart()``."""
    watch = HighAvailabilityOperator(task_id="watch", python_callable=TcpCheck("localhost", 5432))
    assert set(dag.task_ids) == {
        "watch",
        "watch-stop-pass",
        "watch-stop-fail",
        "watch-retrigger-pass",
        "watch-retrigger-fail",
        "watch-force-dag-fail",
    }
    assert watch.retrigger_fail.task_id == "watch-retrigger-fail"


async def test_healthy_service_is_checked_until_the_runtime_ends(dag: DAG) -> None:
    """The end of `runtime` or `endtime` is PASS/STOP."""
    async with outside_service() as service:
        service.answers = [(200, {})] * 100
        watch = HighAvailabilityOperator(
            task_id="watch",
            python_callable=HttpCheck(service.url),
            poke_interval=0.1,
            runtime=1,
            reference_date="start_date",
        )
        async with running(watch) as task:
            assert await task.outcome() == Success(["pass", "stop"])
        assert len(service.requests) > 1


async def test_failing_service_retriggers_the_dag(dag: DAG) -> None:
    """A ready check that fails is FAIL/RETRIGGER: this run fails, and the DAG starts again."""
    async with outside_service() as service:
        service.answers = [(500, {})]
        watch = HighAvailabilityOperator(task_id="watch", python_callable=HttpCheck(service.url))
        async with running(watch) as task:
            assert await task.outcome() == Success(["fail", "retrigger"])


async def test_failure_threshold_waits_for_several_failures_in_a_row(dag: DAG) -> None:
    """A success in between starts the count again."""
    async with outside_service() as service:
        service.answers = [(500, {}), (200, {}), (500, {}), (500, {})]
        watch = HighAvailabilityOperator(
            task_id="watch", python_callable=HttpCheck(service.url), poke_interval=0.05, failure_threshold=2
        )
        async with running(watch) as task:
            assert await task.outcome() == Success(["fail", "retrigger"])
        assert len(service.requests) == 4


async def test_maxretrigger_limits_how_often_the_dag_starts_again(dag: DAG) -> None:
    """Once it is used up, RETRIGGER becomes STOP with the same result."""
    async with outside_service() as service:
        service.answers = [(500, {})]
        watch = HighAvailabilityOperator(
            task_id="watch", python_callable=HttpCheck(service.url), maxretrigger=0
        )
        async with running(watch) as task:
            assert await task.outcome() == Success(["fail", "stop"])


async def test_tcp_check_needs_an_open_port(dag: DAG) -> None:
    """It connects and closes."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await TcpCheck("127.0.0.1", port)())[0] is Result.PASS
    server.close()
    await server.wait_closed()
    assert (await TcpCheck("127.0.0.1", port)())[0] is Result.FAIL


async def test_file_check_needs_a_young_file(dag: DAG, tmp_path: Path) -> None:
    """`max_age` is in seconds."""
    file = tmp_path / "beat"
    assert (await FileCheck(str(file), max_age=60)())[0] is Result.FAIL
    file.touch()
    assert await FileCheck(str(file), max_age=60)() == (Result.PASS, Action.CONTINUE)


async def test_timeout_retriggers_with_the_last_result(dag: DAG) -> None:
    """The DAG starts again, so that a run does not grow without end."""
    async with outside_service() as service:
        service.answers = [(200, {})] * 100
        watch = HighAvailabilityOperator(
            task_id="watch", python_callable=HttpCheck(service.url), poke_interval=0.1, timeout=1
        )
        async with running(watch) as task:
            assert await task.outcome() == Success(["pass", "retrigger"])


async def test_soft_fail_skips_at_the_timeout(dag: DAG) -> None:
    """As in Airflow's own sensors."""
    async with outside_service() as service:
        service.answers = [(200, {})] * 100
        watch = HighAvailabilityOperator(
            task_id="watch",
            python_callable=HttpCheck(service.url),
            poke_interval=0.1,
            timeout=1,
            soft_fail=True,
        )
        async with running(watch) as task:
            assert isinstance(await task.outcome(), Skip)


def test_function_of_the_dag_file_runs_on_a_worker(dag: DAG) -> None:
    """A triggerer imports packages and plugins only. The reason is an attribute of the task."""
    watch = HighAvailabilityOperator(task_id="watch", python_callable=lambda: (Result.PASS, Action.STOP))
    assert watch.worker_start_reason == "python_callable is a lambda"
    with pytest.raises(InputError, match="maxretrigger"):
        HighAvailabilityOperator(task_id="other", python_callable=TcpCheck("localhost", 80), maxretrigger=-1)
