"""The harness itself: what it says about an Airflow is what that Airflow did."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from real_airflow import CompilerMissing, RealAirflow, Run, Task, shifted_clock, wait_until


def test_worker_processes_of_tasks_that_run_on_workers_are_counted_once_for_each_attempt(
    airflow: RealAirflow,
) -> None:
    run = airflow.trigger("harness_on_workers").wait_for("success")

    assert run.task("bash").worker_processes() == 1
    assert run.task("number", 0).worker_processes() == 1
    assert run.task("number", 1).worker_processes() == 1
    assert run.task("second_time_lucky").worker_processes(try_number=1) == 1
    assert run.task("second_time_lucky").worker_processes(try_number=2) == 1
    assert run.worker_processes() == 5
    assert_executor_agrees(airflow, run)


def test_task_that_starts_and_ends_in_the_triggerer_has_no_worker_process(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = run.task("wait").wait_for("deferred")
    (tmp_path / "go").touch()
    run.wait_for("success")

    assert run.worker_processes() == 0
    assert_executor_agrees(airflow, run)
    # A worker opens its own log before it asks whether it may begin: not even one that was sent away existed.
    logs = {file.name for file in airflow.written_files() if run.run_id in file.parts[-2] + file.parts[-3]}
    assert logs
    assert "attempt=1.log" not in logs
    assert [(attempt.number, attempt.pid, attempt.hostname) for attempt in task.tries()] == [(1, None, "")]


@pytest.mark.long
def test_worker_before_and_worker_after_a_deferral_are_two_of_one_attempt(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    run = airflow.trigger("harness_between_two_workers", {"file": str(tmp_path / "go")})
    task = run.task("wait").wait_for("deferred")
    assert task.worker_processes() == 1
    (tmp_path / "go").touch()
    run.wait_for("success")

    assert task.worker_processes() == task.worker_processes(try_number=1) == 2
    assert_executor_agrees(airflow, run)


@pytest.mark.long
def test_xcoms_come_back_as_the_types_that_went_in(airflow: RealAirflow, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    run = airflow.trigger("harness_on_workers").wait_for("success")
    other = airflow.trigger("harness_between_two_workers", {"file": str(tmp_path / "go")}).wait_for("success")

    assert run.task("bash").xcom() == "1"
    assert run.task("number", 1).xcom() == {"value": 20, "text": '"quoted"'}
    assert other.task("wait").xcom() == {"event": "found", "numbers": [1, 2.5, None, True]}
    with pytest.raises(AssertionError, match="no XCom 'other'"):
        run.task("bash").xcom("other")


@pytest.mark.long
def test_log_of_a_waiting_task_can_be_read(airflow: RealAirflow, tmp_path: Path) -> None:
    task = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")}).task("wait")
    task.wait_for("deferred")

    wait_until(lambda: f"waiting for {tmp_path}" in task.log(), "the trigger's own line in the task's log")
    task.mark("failed")


@pytest.mark.long
def test_run_that_ends_otherwise_than_awaited_fails_the_test_at_once(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = run.task("wait").wait_for("deferred")
    task.mark("failed")

    with pytest.raises(AssertionError, match="ended as 'failed', not 'success'"):
        run.wait_for("success")


@pytest.mark.long
def test_cleared_task_waits_again_in_a_second_attempt(airflow: RealAirflow, tmp_path: Path) -> None:
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = run.task("wait").wait_for("deferred")
    task.clear()
    task.wait_for("deferred", try_number=2)
    (tmp_path / "go").touch()
    run.wait_for("success")

    assert [attempt.number for attempt in task.tries()] == [1, 2]


@pytest.mark.long
def test_second_triggerer_takes_over_from_one_that_is_paused(airflow: RealAirflow, tmp_path: Path) -> None:
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = waiting_in_the_triggerer(run)
    airflow.pause(airflow.triggerer)
    airflow.add_triggerer()
    (tmp_path / "go").touch()
    run.wait_for("success")
    airflow.triggerer.resume()

    assert task.worker_processes() == 0


@pytest.mark.long
def test_wait_goes_on_after_its_triggerer_was_killed(airflow: RealAirflow, tmp_path: Path) -> None:
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = waiting_in_the_triggerer(run)
    airflow.triggerer.kill()
    assert not airflow.triggerer.running
    (tmp_path / "go").touch()
    airflow.start_component(airflow.triggerer)
    run.wait_for("success")

    assert task.worker_processes() == 0


@pytest.mark.long
def test_triggerer_runs_with_the_clock_of_another_machine(airflow: RealAirflow, tmp_path: Path) -> None:
    try:
        clock = shifted_clock(timedelta(hours=-1))
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    airflow.triggerer.kill()
    airflow.start_component(airflow.triggerer, clock)
    run = airflow.trigger("harness_in_the_triggerer", {"file": str(tmp_path / "go")})
    task = waiting_in_the_triggerer(run)
    (tmp_path / "go").touch()
    run.wait_for("success")

    # The triggerer wrote the end, the scheduler the start.
    assert task.attributes["end_date"] < task.attributes["start_date"]


def waiting_in_the_triggerer(run: Run) -> Task:
    task = run.task("wait").wait_for("deferred")
    wait_until(lambda: "waiting for" in task.log(), "the trigger to run")
    return task


def assert_executor_agrees(airflow: RealAirflow, run: Run) -> None:
    """Compare with Airflow's other record: the scheduler's line about each worker process that has ended."""
    ended = re.compile(
        rf"Received executor event with state \w+ for .*'{run.dag_id}'.*'{re.escape(run.run_id)}'"
    )
    wait_until(
        lambda: len(ended.findall(airflow.scheduler.output.read_text())) == run.worker_processes(),
        f"the scheduler to have heard of the end of {run.worker_processes()} worker processes of {run}",
    )
