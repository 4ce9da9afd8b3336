"""Webhook tasks that a user clears or marks, with and without a running triggerer."""

from __future__ import annotations

import pytest

from real_airflow import Answer, OutsideService, RealAirflow, wait_until


@pytest.mark.both_databases
def test_cleared_task_cancels_the_old_work_and_waits_again(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = airflow.trigger("webhook_cancel", {"service": outside.url})
    [old] = outside.wait_for_requests("/job")
    task = run.task("job").wait_for("deferred")

    task.clear()

    _, new = outside.wait_for_requests("/job", 2)
    outside.wait_for_requests(f"/cancel/{old.idempotency_key}")
    assert outside.call_back(old, {"from": "old"}).status_code == 410
    assert outside.call_back(new, {"from": "new"}).status_code == 200
    run.wait_for("success")
    assert task.xcom() == {"from": "new"}
    assert not outside.requests(f"/cancel/{new.idempotency_key}")
    assert run.worker_processes() == 0


def test_task_marked_failed_has_its_work_cancelled_once(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = airflow.trigger("webhook_cancel", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    task = run.task("job").wait_for("deferred")

    task.mark("failed")

    outside.wait_for_requests(f"/cancel/{request.idempotency_key}")
    assert outside.call_back(request, {}).status_code == 410
    run.wait_for("failed")
    assert len(outside.requests(f"/cancel/{request.idempotency_key}")) == 1


def test_task_marked_failed_without_a_triggerer_has_its_work_cancelled_later(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = airflow.trigger("webhook_cancel", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    task = run.task("job").wait_for("deferred")
    airflow.triggerer.kill()

    task.mark("failed")
    airflow.start_component(airflow.triggerer)

    outside.wait_for_requests(f"/cancel/{request.idempotency_key}", timeout=90)
    assert outside.call_back(request, {}).status_code == 410


def test_callback_without_a_running_triggerer_is_kept(airflow: RealAirflow, outside: OutsideService) -> None:
    run = airflow.trigger("webhook_plain", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    run.task("job").wait_for("deferred")
    airflow.triggerer.kill()

    assert outside.call_back(request, {"kept": True}).status_code == 200
    airflow.start_component(airflow.triggerer)

    run.wait_for("success")
    assert run.task("job").xcom() == {"kept": True}
    assert len(outside.requests("/job")) == 1
    assert run.worker_processes() == 0


def test_restarted_triggerer_goes_on_waiting_and_cancels_nothing(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = airflow.trigger("webhook_cancel", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    run.task("job").wait_for("deferred")

    airflow.triggerer.stop()
    airflow.start_component(airflow.triggerer)

    assert outside.call_back(request, {"after": "restart"}).status_code == 200
    run.wait_for("success")
    assert len(outside.requests("/job")) == 1
    assert not outside.requests(f"/cancel/{request.idempotency_key}")


def test_callback_before_the_launch_is_answered_is_kept(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    outside.script("/job", Answer(callback={"early": True}, callback_after=None, delay=0.5))
    run = airflow.trigger("webhook_plain", {"service": outside.url}).wait_for("success")

    wait_until(lambda: outside.callback_answers, "the callback to be answered")
    assert outside.callback_answers[0][0] == 200
    assert run.task("job").xcom() == {"early": True}
