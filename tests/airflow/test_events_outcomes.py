"""Waits for events of a channel on a real Airflow: outcomes, progress, and no worker process."""

from __future__ import annotations

import re

import pytest

from real_airflow import GitHubChannel, RealAirflow, Run, wait_until


@pytest.fixture
def channel(airflow: RealAirflow) -> GitHubChannel:
    return GitHubChannel.add(airflow)


def start(airflow: RealAirflow, channel: GitHubChannel, dag_id: str) -> Run:
    return airflow.trigger(dag_id, {"channel": channel.name})


@pytest.mark.both_databases
def test_signed_event_that_matches_ends_the_wait_without_a_worker(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    run = start(airflow, channel, "events_one")
    task = run.task("wait").wait_for("deferred")

    forged = channel.post({"table": "orders", "rows": 99}, secret="guessed")
    assert (forged.status_code, "signature" in forged.text) == (401, True)
    assert channel.post({"table": "orders", "rows": 10}).status_code == 200
    assert channel.post({"table": "payments", "rows": 50}).status_code == 200
    matching = channel.post({"table": "orders", "rows": 11, "by": "the vendor"})
    assert matching.status_code == 200
    assert channel.post({"table": "orders", "rows": 12}).status_code == 200

    run.wait_for("success")
    event = task.xcom()
    assert event["payload"] == {"table": "orders", "rows": 11, "by": "the vendor"}
    assert event["source"] == f"channel:{channel.name}"
    assert event["time"] == matching.json()["received_at"]
    assert event["attributes"]["headers"]["x-github-event"] == "deployment"
    assert "x-hub-signature-256" not in event["attributes"]["headers"]
    assert run.worker_processes() == 0
    assert channel.secret not in task.log()


def test_wait_for_several_shows_progress_and_ends_when_its_condition_is_true(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    run = start(airflow, channel, "events_several")
    task = run.task("wait").wait_for("deferred")
    assert channel.post({"table": "stock", "rows": 7}).status_code == 200

    wait_until(
        lambda: "progress" in task.xcom_keys() and task.xcom("progress")["come"], "progress to be shown"
    )
    assert task.xcom("progress") == {"come": {"stock": 1}, "missing": "orders"}
    assert task.state == "deferred"
    assert "Received: stock. Still waiting for: orders" in task.log()
    assert channel.post({"table": "orders", "rows": 1}).status_code == 200

    run.wait_for("success")
    assert {name: came and came["payload"]["rows"] for name, came in task.xcom().items()} == {
        "orders": 1,
        "payments": None,
        "stock": 7,
    }
    assert task.xcom("progress")["missing"] == "nothing"
    assert run.worker_processes() == 0


def test_late_event_fails_only_its_task_which_succeeds_after_a_clear(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    hard, soft, several = runs = [
        start(airflow, channel, dag_id) for dag_id in ("events_gate", "events_gate_soft", "events_timeout")
    ]
    for table in ("orders", "stock"):
        assert channel.post({"table": table}).status_code == 200

    in_time = {"inputs.orders": "success", "inputs.stock": "success"}
    hard.wait_for("failed")
    assert hard.task_states() == {
        **in_time,
        "inputs.payments": "failed",
        **dict.fromkeys(["inputs.join", "inputs.merge", "transform"], "upstream_failed"),
    }
    assert "missing: payments; received: nothing" in hard.task("inputs.payments").log()
    soft.wait_for("success")
    assert soft.task_states() == {
        **in_time,
        **dict.fromkeys(["inputs.payments", "inputs.join", "inputs.merge", "transform"], "skipped"),
    }
    several.wait_for("failed")
    # Postgres stores the keys of a serialized DAG in another order.
    assert re.search("missing: payments; received: (orders, stock|stock, orders)", several.task("wait").log())

    assert channel.post({"table": "payments", "late": True}).status_code == 200
    late = hard.task("inputs.payments")
    late.clear(downstream=True)
    hard.wait_for("success")
    assert late.xcom()["payload"] == {"table": "payments", "late": True}
    assert hard.task("inputs.orders").try_number == 1
    assert [run.worker_processes() for run in runs] == [0, 0, 0]


def test_event_of_one_dag_releases_another(airflow: RealAirflow, channel: GitHubChannel) -> None:
    waiting = start(airflow, channel, "events_one")
    waiting.task("wait").wait_for("deferred")

    publishing = start(airflow, channel, "events_publisher").wait_for("success")

    waiting.wait_for("success")
    event = waiting.task("wait").xcom()
    assert event["payload"] == {"table": "orders", "rows": 11, "by": [publishing.run_id]}
    assert event["attributes"]["metadata"] == {
        "verified_by": "airflow",
        "dag_id": "events_publisher",
        "run_id": publishing.run_id,
        "task_id": "publish",
        "map_index": -1,
    }
    receipt = publishing.task("publish").xcom()
    assert (receipt["channel"], receipt["received_at"]) == (channel.name, event["time"])
    assert waiting.worker_processes() == publishing.worker_processes() == 0


def test_mapped_waits_defer_from_a_worker_and_each_gets_its_event(
    airflow: RealAirflow, channel: GitHubChannel
) -> None:
    run = start(airflow, channel, "events_mapped")
    for index in range(2):
        run.task("wait", index).wait_for("deferred")
    for table in ("payments", "orders"):
        assert channel.post({"table": table}).status_code == 200

    run.wait_for("success")
    assert run.task("tables").xcom() == ["orders", "payments"]
    assert [run.task("wait", index).worker_processes() for index in range(2)] == [1, 1]


def test_example_is_released_by_the_example_that_publishes(airflow: RealAirflow) -> None:
    waiting = airflow.trigger("example_events")
    for table in ("orders", "payments"):
        waiting.task(f"tables.{table}").wait_for("deferred")

    publishing = airflow.trigger("example_events_publish").wait_for("success")

    waiting.wait_for("success")
    for table in ("orders", "payments"):
        payload = waiting.task(f"tables.{table}").xcom()["payload"]
        assert payload == {"table": table, "date": publishing.run_id.split("__")[1][:10]}
    assert publishing.worker_processes() == 0
    assert waiting.worker_starts() == [("report", 1)]
