"""A webhook task on a real Airflow: how it ends, what its XCom is, and that no worker process ran."""

from __future__ import annotations

import pytest

from real_airflow import Answer, OutsideService, RealAirflow, Run, wait_until


def launch(airflow: RealAirflow, outside: OutsideService, dag_id: str) -> Run:
    return airflow.trigger(dag_id, {"service": outside.url})


@pytest.mark.both_databases
def test_task_is_launched_called_back_and_ended_without_a_worker(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = launch(airflow, outside, "webhook_plain")
    [request] = outside.wait_for_requests("/job")
    assert request.body == {"date": run.run_id.split("__")[1][:10], "notify": request.callback_url}
    assert "callback-url" not in request.headers

    assert outside.call_back(request, {"rows": [1, 2.5, None], "ok": True}).status_code == 200

    run.wait_for("success")
    assert run.task("job").xcom() == {"rows": [1, 2.5, None], "ok": True}
    assert run.worker_processes() == 0


def test_expressions_distinguish_progress_from_success_and_select_the_result(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = launch(airflow, outside, "webhook_expressions")
    [request] = outside.wait_for_requests("/job")
    assert request.headers["callback-url"] == request.callback_url

    assert outside.call_back(request, {"progress": 0.4, "message": "epoch 2"}, "heartbeat").status_code == 200
    task = run.task("job")
    wait_until(lambda: "progress" in task.xcom_keys(), "the progress to be shown")
    assert task.xcom("progress") == {"progress": 0.4, "message": "epoch 2"}
    assert outside.call_back(request, {"state": "running"}).status_code == 202
    assert outside.call_back(request, {"state": "done", "metrics": {"auc": 0.9}}).status_code == 200

    run.wait_for("success")
    assert task.xcom() == {"auc": 0.9}
    assert run.worker_processes() == 0


@pytest.mark.both_databases
def test_failure_is_retried_in_a_new_wait(airflow: RealAirflow, outside: OutsideService) -> None:
    run = launch(airflow, outside, "webhook_retries")
    [first] = outside.wait_for_requests("/job")
    assert outside.call_back(first, {"reason": "no GPU"}, "failure").status_code == 200

    _, second = outside.wait_for_requests("/job", 2)
    assert second.idempotency_key != first.idempotency_key
    assert outside.call_back(first, {"late": True}).status_code == 409
    assert outside.call_back(second, {"answer": 42}).status_code == 200

    run.wait_for("success")
    assert run.task("job").xcom() == {"answer": 42}
    assert run.worker_processes() == 0
    assert "no GPU" in run.task("job").log(1)


@pytest.mark.both_databases
def test_failure_that_must_not_be_retried_ends_on_a_worker(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = launch(airflow, outside, "webhook_retries")
    [request] = outside.wait_for_requests("/job")
    outside.call_back(request, {"reason": "bad input", "retryable": False}, "failure")

    run.wait_for("failed")
    assert run.task("job").try_number == 1
    assert run.worker_processes() == 1
    assert "bad input" in run.task("job").log()


def test_large_value_stays_in_the_inbox_and_is_fetched_in_a_task(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    run = launch(airflow, outside, "webhook_large_value")
    [request] = outside.wait_for_requests("/job")
    outside.call_back(request, {"text": "x" * 100_000})

    run.wait_for("success")
    assert set(run.task("job").xcom()) == {"deferrable_ops_value_of_wait", "bytes"}
    assert run.task("measure").xcom() == 100_000
    assert run.task("job").worker_processes() == 0


def test_skip_skips_the_task(airflow: RealAirflow, outside: OutsideService) -> None:
    run = launch(airflow, outside, "webhook_plain")
    [request] = outside.wait_for_requests("/job")
    outside.call_back(request, {"reason": "nothing new"}, "skip")

    run.task("job").wait_for("skipped")
    assert run.worker_processes() == 0


def test_deadline_fails_the_task_and_cancels_the_work(airflow: RealAirflow, outside: OutsideService) -> None:
    runs = [launch(airflow, outside, dag_id) for dag_id in ("webhook_timeout", "webhook_execution_timeout")]
    requests = outside.wait_for_requests("/job", 2)

    for run in runs:
        run.wait_for("failed")
        assert run.worker_processes() == 0
        assert "timeout" in run.task("job").log()
    for request in requests:
        [cancelled] = outside.wait_for_requests(f"/cancel/{request.idempotency_key}")
        assert cancelled.method == "DELETE"
        assert outside.call_back(request, {"late": True}).status_code == 410


def test_missing_heartbeats_fail_the_task(airflow: RealAirflow, outside: OutsideService) -> None:
    run = launch(airflow, outside, "webhook_heartbeat")
    [request] = outside.wait_for_requests("/job")
    assert outside.call_back(request, {}, "heartbeat").status_code == 200

    run.wait_for("failed")
    assert "heartbeat" in run.task("job").log()
    assert run.worker_processes() == 0
    outside.wait_for_requests(f"/cancel/{request.idempotency_key}")


def test_rejected_launch_fails_the_task_and_logs_the_answer_without_the_token(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    outside.script("/job", Answer(503), Answer(422, {"error": "no such model"}))
    run = launch(airflow, outside, "webhook_launch_fails")

    run.wait_for("failed")
    first, second = outside.requests("/job")
    assert first.idempotency_key == second.idempotency_key
    assert "no such model" in run.task("job").log()
    assert first.callback_url.rpartition("/")[2] not in run.task("job").log()
    assert run.worker_processes() == 0


def test_unanswered_launch_fails_after_launch_timeout(airflow: RealAirflow, outside: OutsideService) -> None:
    outside.script("/job", Answer(drop=True))
    run = launch(airflow, outside, "webhook_launch_fails")

    run.wait_for("failed")
    assert "launch_timeout" in run.task("job").log()
    assert len({request.idempotency_key for request in outside.requests("/job")}) == 1


def test_wrong_rendered_argument_fails_the_task_with_the_reason(airflow: RealAirflow) -> None:
    run = airflow.trigger("webhook_bad_template", {"service": "ftp://example.com"}).wait_for("failed")
    assert "url= must be a full http:// or https:// URL" in run.task("job").log()

    run = airflow.trigger("webhook_bad_template", {"service": "http://127.0.0.1:1"}).wait_for("failed")
    assert "success_when='a =' is not JMESPath" in run.task("job").log()
    assert run.worker_processes() == 0


def test_undefined_name_in_a_template_fails_the_task_and_sends_nothing(airflow: RealAirflow) -> None:
    run = airflow.trigger("webhook_bad_template", {"servcie": "http://127.0.0.1:1"}).wait_for("failed")
    assert "a template could not be rendered" in run.task("job").log()
    assert run.worker_processes() == 0


@pytest.mark.both_databases
def test_two_dozen_at_once(airflow: RealAirflow, outside: OutsideService) -> None:
    outside.script("/job", Answer(callback={"done": True}))
    run = launch(airflow, outside, "webhook_two_dozen").wait_for("success")

    assert {run.task(f"job_{number}").xcom()["done"] for number in range(24)} == {True}
    assert len(outside.requests("/job")) == 24
    assert run.worker_processes() == 0


def test_sensor_publishes_its_url(airflow: RealAirflow, outside: OutsideService) -> None:
    run = airflow.trigger("webhook_sensor")
    task = run.task("wait").wait_for("deferred")
    wait_until(lambda: "callback_url" in task.xcom_keys(), "the URL to be published")
    url = task.xcom("callback_url")
    wait_until(lambda: task.links() == {"Callback": url}, "the link to be published")

    import httpx

    assert httpx.post(url, json="go", trust_env=False).status_code == 200
    run.wait_for("success")
    assert task.xcom() == "go"
    assert run.worker_processes() == 0
