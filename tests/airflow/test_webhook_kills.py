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


@pytest.mark.long
def test_restarted_triggerer_goes_on_waiting_and_learns_of_what_happened_meanwhile(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    runs = {
        what: airflow.trigger("webhook_cancel", {"service": f"{outside.url}/{what}"})
        for what in ("waiting", "marked_failed", "called_back")
    }
    requests = {what: outside.wait_for_requests(f"/{what}/job")[0] for what in runs}
    for run in runs.values():
        run.task("job").wait_for("deferred")

    airflow.triggerer.stop()
    runs["marked_failed"].task("job").mark("failed")
    assert outside.call_back(requests["called_back"], {"kept": True}).status_code == 200
    airflow.start_component(airflow.triggerer)

    runs["called_back"].wait_for("success")
    assert runs["called_back"].task("job").xcom() == {"kept": True}
    unneeded = requests["marked_failed"]
    outside.wait_for_requests(f"/marked_failed/cancel/{unneeded.idempotency_key}", timeout=90)
    assert outside.call_back(unneeded, {}).status_code == 410
    assert outside.call_back(requests["waiting"], {"after": "restart"}).status_code == 200
    runs["waiting"].wait_for("success")
    # Each was launched once, and only one was cancelled.
    assert len(outside.requests()) == len(runs) + 1
    assert runs["called_back"].worker_processes() == runs["waiting"].worker_processes() == 0


def test_callback_before_the_launch_is_answered_is_kept(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    outside.script("/job", Answer(callback={"early": True}, callback_after=None, delay=0.5))
    run = airflow.trigger("webhook_plain", {"service": outside.url}).wait_for("success")

    wait_until(lambda: outside.callback_answers, "the callback to be answered")
    assert outside.callback_answers[0][0] == 200
    assert run.task("job").xcom() == {"early": True}
