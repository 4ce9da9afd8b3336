"""Waits for events that a user clears or marks, and triggerers that are killed between two events."""

from __future__ import annotations

import pytest

from real_airflow import GitHubChannel, RealAirflow, wait_until

KILLED = "Trigger cancelled by user action"


@pytest.fixture
def channel(airflow: RealAirflow) -> GitHubChannel:
    return GitHubChannel.add(airflow)


@pytest.mark.long
def test_triggerer_killed_between_two_events_loses_none_and_repeats_none(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    run = airflow.trigger("events_all_of_them", {"channel": channel.name})
    task = run.task("wait").wait_for("deferred")
    for number in (1, 2):
        assert channel.post({"table": "part", "n": number}).status_code == 200
    wait_until(
        lambda: "progress" in task.xcom_keys() and task.xcom("progress")["come"], "progress to be shown"
    )

    airflow.triggerer.kill()
    assert channel.post({"table": "part", "n": 3}).status_code == 200
    again = channel.post({"table": "part", "n": 2})
    assert again.status_code == 200
    airflow.start_component(airflow.triggerer)
    assert channel.post({"table": "part", "n": 4}).status_code == 200
    assert channel.post({"table": "end"}).status_code == 200
    assert channel.post({"table": "part", "n": 5}).status_code == 200

    run.wait_for("success")
    came = task.xcom()
    assert [part["payload"]["n"] for part in came["part"]] == [1, 2, 3, 4]
    assert [part["time"] for part in came["part"]][1] == again.json()["received_at"]
    assert len(came["end"]) == 1
    assert [attempt.number for attempt in task.tries()] == [1]
    assert run.worker_processes() == 0


@pytest.mark.both_databases
def test_cleared_wait_restarts_with_the_events_since_the_run_started(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    run = airflow.trigger("events_several", {"channel": channel.name})
    task = run.task("wait").wait_for("deferred")
    assert channel.post({"table": "orders", "n": 1}).status_code == 200
    wait_until(lambda: "Received: orders" in task.log(), "the event to be taken")

    task.clear()
    task.wait_for("deferred", try_number=2)
    assert channel.post({"table": "stock", "n": 2}).status_code == 200

    run.wait_for("success")
    assert {name: came and came["payload"]["n"] for name, came in task.xcom().items()} == {
        "orders": 1,
        "payments": None,
        "stock": 2,
    }
    assert run.worker_processes() == 0


def test_wait_marked_failed_stays_failed_when_events_arrive(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    marked, other = (airflow.trigger("events_one", {"channel": channel.name}) for _ in range(2))
    for run in (marked, other):
        task = run.task("wait").wait_for("deferred")
        wait_until(lambda task=task: "Waiting for" in task.log(), "the trigger to run")

    marked.task("wait").mark("failed")
    marked.wait_for("failed")
    wait_until(lambda: KILLED in marked.task("wait").log(), "the triggerer to be told")
    assert channel.post({"table": "orders", "rows": 11}).status_code == 200

    other.wait_for("success")
    assert marked.task("wait").state == "failed"
    assert "return_value" not in marked.task("wait").xcom_keys()
    assert marked.worker_processes() == other.worker_processes() == 0
