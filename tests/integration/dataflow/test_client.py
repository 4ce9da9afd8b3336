"""The client, over gRPC: launching once, finding, stopping, and its error messages."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from deferrable_ops.error_table import CODES
from deferrable_ops.exceptions import DataflowRefused, InputError, LaunchUncertain
from deferrable_ops.testing.dataflow import FakeDataflow, Step, dataflow_process
from deferrable_ops.upstreams.dataflow.client import Dataflow, DataflowTarget, Job, use_dataflow
from deferrable_ops.upstreams.dataflow.credentials import LoadedCredentials
from deferrable_ops.upstreams.dataflow.jobs import CANCELLED, CANCELLING, DONE, DRAINING, QUEUED, UPDATED

TRANSIENT = next(row.codes for row in CODES if row.system == "google")

PERMANENT = ("PERMISSION_DENIED", "NOT_FOUND", "UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


async def free_to_send() -> float:
    return time.monotonic() + 20


def flex(name: str = "etl", **environment: Any) -> dict[str, Any]:
    return {"launchParameter": {"jobName": name, "environment": environment}}


async def launch(dataflow: Dataflow, name: str = "etl") -> Job:
    return await dataflow.launch("flex", flex(name), free_to_send)


async def test_flex_template_is_launched_in_camel_case(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl", streaming=True)
    job = await dataflow.launch(
        "flex", flex(numWorkers="3", additionalUserLabels={"team": "a"}), free_to_send
    )
    assert (job.name, job.project_id, job.region, job.state) == ("etl", "p", "r", QUEUED)
    assert (job.is_streaming, job.labels) == (True, {"team": "a"})
    assert fake.job(job.id).request["launchParameter"]["environment"]["numWorkers"] == 3


async def test_classic_template_is_launched_in_snake_case(fake: FakeDataflow, dataflow: Dataflow) -> None:
    request = {"gcs_path": "gs://b/t", "launch_parameters": {"job_name": "etl", "parameters": {"in": "x"}}}
    job = await dataflow.launch("classic", request, free_to_send)
    assert fake.job(job.id).request["gcsPath"] == "gs://b/t"
    assert fake.trouble.calls["LaunchTemplate"] == 1


@pytest.mark.parametrize(
    "request_", [{"launchParameters": {}}, {"launchParameter": {"jobName": 1}}, {"launchParameter": {"x": 1}}]
)
async def test_malformed_request_is_not_sent(
    fake: FakeDataflow, dataflow: Dataflow, request_: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="body= is not a valid LaunchFlexTemplateRequest"):
        await dataflow.launch("flex", request_, free_to_send)
    assert not fake.trouble.calls


@pytest.mark.parametrize("code", sorted(TRANSIENT))
async def test_launch_with_an_uncertain_result_is_not_retried(
    fake: FakeDataflow, dataflow: Dataflow, code: str
) -> None:
    fake.trouble.fail("LaunchFlexTemplate", code)
    with pytest.raises(LaunchUncertain, match=code) as uncertain:
        await launch(dataflow)
    assert not uncertain.value.already_exists
    assert fake.trouble.calls["LaunchFlexTemplate"] == 1


@pytest.mark.parametrize("code", PERMANENT)
async def test_launch_is_refused_permanently(fake: FakeDataflow, dataflow: Dataflow, code: str) -> None:
    fake.trouble.fail("LaunchFlexTemplate", code, "because")
    with pytest.raises(DataflowRefused, match="because") as refused:
        await launch(dataflow)
    assert refused.value.code == code


async def test_second_launch_with_the_name_of_an_active_job_reports_that_the_job_exists(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.script("etl")
    await launch(dataflow)
    with pytest.raises(LaunchUncertain, match="already an active job") as uncertain:
        await launch(dataflow)
    assert uncertain.value.already_exists


async def test_second_launch_with_the_name_of_an_active_job_may_return_that_job(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.script("etl")
    fake.second_launch = "return"
    assert (await launch(dataflow)).id == (await launch(dataflow)).id
    assert len(fake.jobs()) == 1


@pytest.mark.parametrize("code", ["", "UNAVAILABLE"])
async def test_job_whose_reply_was_lost_is_found(fake: FakeDataflow, dataflow: Dataflow, code: str) -> None:
    fake.trouble.lose_replies("LaunchFlexTemplate", code=code)

    async def soon() -> float:
        return time.monotonic() + 1

    with pytest.raises(LaunchUncertain):
        await dataflow.launch("flex", flex(), soon)
    assert [job.id for job in await dataflow.find("etl")] == [fake.job("etl").id]


async def test_launch_is_not_sent_if_the_check_fails(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async def forbidden() -> float:
        raise RuntimeError("the claim is lost")

    with pytest.raises(RuntimeError, match="the claim is lost"):
        await dataflow.launch("flex", flex(), forbidden)
    assert not fake.trouble.calls


async def test_launch_is_not_sent_by_a_process_that_was_paused_for_too_long(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    async def stopped_after_the_check() -> float:
        asyncio.get_running_loop().call_soon(time.sleep, 0.2)
        return time.monotonic() + 0.1

    with pytest.raises(LaunchUncertain, match="the launch request was not sent"):
        await dataflow.launch("flex", flex(), stopped_after_the_check)
    assert not fake.trouble.calls


async def test_launch_whose_deadline_passes_on_the_way_is_not_carried_out(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.trouble.delay("LaunchFlexTemplate", before=0.3)

    async def soon() -> float:
        return time.monotonic() + 0.1

    with pytest.raises(LaunchUncertain, match="DEADLINE_EXCEEDED"):
        await dataflow.launch("flex", flex("late"), soon)
    await launch(dataflow, "later")  # its answer comes after the first one's would have
    assert [job.name for job in fake.jobs()] == ["later"]


async def test_only_some_launches_are_under_way_at_once(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.trouble.lose_replies("LaunchFlexTemplate", times=None)
    launches = [asyncio.create_task(launch(dataflow, f"etl-{number}")) for number in range(30)]
    while len(fake.jobs()) < 10:
        await asyncio.sleep(0.005)
    await dataflow.find("etl-0")  # goes and comes back: an eleventh would have been sent by now
    assert fake.trouble.calls["LaunchFlexTemplate"] == 10
    for number in range(10):
        launches[number].cancel()
    while len(fake.jobs()) < 20:
        await asyncio.sleep(0.005)
    for under_way in launches:
        under_way.cancel()
    await asyncio.gather(*launches, return_exceptions=True)


async def test_find_returns_all_jobs_with_exactly_this_name_the_newest_first(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.page_limit = 2
    ids = []
    for _ in range(5):
        ids.append((await launch(dataflow)).id)
        assert fake.job(ids[-1]).is_finished
    await launch(dataflow, "etl-2")
    found = await dataflow.find("etl")
    assert [job.id for job in found] == ids[::-1]
    assert {job.state for job in found} == {DONE}
    assert await dataflow.find("nothing") == []


async def test_get_returns_labels_and_lists_do_not(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl")
    job = await dataflow.launch("flex", flex(additionalUserLabels={"team": "a"}), free_to_send)
    assert (await dataflow.find("etl"))[0].labels == {}
    assert (await dataflow.unfinished())[0].labels == {}
    assert (await dataflow.get(job.id)).labels == {"team": "a"}


async def test_active_jobs_are_listed_over_all_pages(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl")
    fake.page_limit = 3
    for number in range(8):
        await launch(dataflow, f"etl-{number}")
    await launch(dataflow, "finished")
    assert {job.name for job in await dataflow.unfinished()} == {f"etl-{number}" for number in range(8)}
    assert fake.trouble.calls["ListJobs"] == 3


async def test_incomplete_list_is_requested_again(fake: FakeDataflow, dataflow: Dataflow) -> None:
    await launch(dataflow)
    fake.failed_location = True
    finding = asyncio.create_task(dataflow.find("etl"))
    while fake.trouble.calls["ListJobs"] < 3:
        await asyncio.sleep(0)
    fake.failed_location = False
    assert len(await finding) == 1


@pytest.mark.parametrize("code", sorted(TRANSIENT))
async def test_calls_are_retried_after_transient_errors(
    fake: FakeDataflow, dataflow: Dataflow, code: str
) -> None:
    job = await launch(dataflow)
    fake.trouble.fail("GetJob", code, times=3)
    fake.trouble.fail("ListJobs", code, times=3)
    fake.trouble.fail("ListJobMessages", code, times=3)
    assert (await dataflow.get(job.id)).id == job.id
    assert len(await dataflow.find("etl")) == 1
    assert await dataflow.messages(job.id) == []


async def test_calls_are_retried_while_the_server_is_down(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = await launch(dataflow)
    await fake.disconnect()
    with pytest.raises(LaunchUncertain):
        await launch(dataflow, "another")
    getting = asyncio.create_task(dataflow.get(job.id))
    await fake.connect()
    assert (await getting).id == job.id


@pytest.mark.parametrize(
    "method, permission",
    [
        ("LaunchFlexTemplate", "dataflow.jobs.create"),
        ("GetJob", "dataflow.jobs.get"),
        ("ListJobs", "dataflow.jobs.list"),
        ("UpdateJob", "dataflow.jobs.cancel"),
        ("ListJobMessages", "dataflow.messages.list"),
    ],
)
async def test_missing_permission_is_named(
    fake: FakeDataflow, dataflow: Dataflow, method: str, permission: str
) -> None:
    fake.script("etl")
    job = await launch(dataflow)
    fake.trouble.fail(method, "PERMISSION_DENIED", "no")
    call = {
        "LaunchFlexTemplate": lambda: launch(dataflow, "another"),
        "GetJob": lambda: dataflow.get(job.id),
        "ListJobs": lambda: dataflow.find("etl"),
        "UpdateJob": lambda: dataflow.stop(job.id, "cancel"),
        "ListJobMessages": lambda: dataflow.messages(job.id),
    }[method]
    with pytest.raises(DataflowRefused) as refused:
        await call()
    assert f"the permission {permission} on project p" in str(refused.value)
    assert "the application default credentials" in str(refused.value)


async def test_missing_job_is_named(dataflow: Dataflow) -> None:
    with pytest.raises(DataflowRefused, match=r"read the job no-such-job \(NOT_FOUND, project p, region r\)"):
        await dataflow.get("no-such-job")


async def test_invalid_parameters_of_a_template_are_named(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.trouble.fail(
        "LaunchFlexTemplate",
        "INVALID_ARGUMENT",
        "The template parameters are invalid.",
        parameters={"in": "missing"},
    )
    with pytest.raises(DataflowRefused, match=r"are invalid.*; in: missing"):
        await launch(dataflow)


async def test_stop_does_not_wait_for_the_end_of_the_job(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl", stop_seconds=3600)
    fake.script("stream", Step("RUNNING"), streaming=True, stop_seconds=3600)
    assert (await dataflow.stop((await launch(dataflow)).id, "cancel")).state == CANCELLING
    assert (await dataflow.stop((await launch(dataflow, "stream")).id, "drain")).state == DRAINING


async def test_stop_is_idempotent(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl")
    job = await launch(dataflow)
    await dataflow.stop(job.id, "cancel")
    assert (await dataflow.stop(job.id, "cancel")).state == CANCELLED
    fake.move(job.id, "UPDATED")
    assert (await dataflow.stop(job.id, "drain")).state == UPDATED


async def test_drain_of_a_batch_job_is_refused(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.script("etl", Step("RUNNING"))
    job = await launch(dataflow)
    with pytest.raises(DataflowRefused, match="only streaming jobs can be drained"):
        await dataflow.stop(job.id, "drain")


async def test_messages_are_selected_by_importance_and_time_over_all_pages(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.script("etl")
    fake.page_limit = 2
    job = await launch(dataflow)
    for importance in ("ERROR", "WARNING", "BASIC", "DETAILED", "DEBUG"):
        fake.say(job.id, importance.lower(), importance)
    said = await dataflow.messages(job.id, least="BASIC")
    assert [(message.importance, message.text) for message in said] == [
        ("ERROR", "error"),
        ("WARNING", "warning"),
        ("BASIC", "basic"),
    ]
    assert len(await dataflow.messages(job.id, least="DEBUG")) == 5
    later = await dataflow.messages(job.id, least="DEBUG", since=said[1].time)
    assert [message.text for message in later] == ["warning", "basic", "detailed", "debug"]


async def test_target_has_one_client(fake: FakeDataflow) -> None:
    async with (
        use_dataflow(DataflowTarget("p", "r")) as dataflow,
        use_dataflow(DataflowTarget("p", "r")) as same,
        use_dataflow(DataflowTarget("p", "elsewhere")) as other,
    ):
        assert same is dataflow
        assert other is not dataflow


async def test_error_for_the_missing_extra_names_the_package(
    fake: FakeDataflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deferrable_ops.exceptions import ConfigurationError

    monkeypatch.setitem(sys.modules, "google.cloud.dataflow_v1beta3", None)
    with pytest.raises(ConfigurationError, match=r'pip install "airflow-deferrable-ops\[dataflow\]"'):
        async with use_dataflow(DataflowTarget("p", "not opened before")):
            pass


def test_nothing_heavy_is_imported_on_the_event_loop() -> None:
    program = """
import asyncio, sys, threading
imported = []

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("grpc", "google", "requests"):
            imported.append((name, threading.current_thread() is threading.main_thread()))

sys.meta_path.insert(0, Watcher())
from deferrable_ops.upstreams.dataflow.client import DataflowTarget, use_dataflow
assert not imported, imported

async def main():
    async with use_dataflow(DataflowTarget("p", "r")) as dataflow:
        assert await dataflow.find("etl") == []

asyncio.run(main())
on_the_loop = [name for name, main in imported if main]
assert imported and not on_the_loop, on_the_loop
"""
    with dataflow_process() as control:
        environment = {**os.environ, "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST": control.host}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr


async def test_credentials_are_loaded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    loaded_in: list[threading.Thread] = []

    def load(*_: object) -> Any:
        from google.auth.credentials import AnonymousCredentials

        loaded_in.append(threading.current_thread())
        return LoadedCredentials(AnonymousCredentials(), None)

    monkeypatch.setattr("deferrable_ops.upstreams.dataflow.api.load_credentials", load)
    async with use_dataflow(DataflowTarget("p", "with credentials")):
        pass
    assert loaded_in
    assert threading.main_thread() not in loaded_in


async def test_retried_errors_are_logged(
    fake: FakeDataflow, dataflow: Dataflow, caplog: pytest.LogCaptureFixture
) -> None:
    job = await launch(dataflow)
    fake.trouble.fail("GetJob", "RESOURCE_EXHAUSTED", "quota")
    with caplog.at_level(logging.WARNING):
        await dataflow.get(job.id)
    assert "RESOURCE_EXHAUSTED" in caplog.text
    assert "quota" in caplog.text
