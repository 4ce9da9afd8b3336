"""The fake Dataflow itself, also in a separate process."""

from __future__ import annotations

import os
import time

import pytest

from deferrable_ops.exceptions import DataflowRefused
from deferrable_ops.testing.dataflow import FakeDataflow, Step, dataflow_process, fake_dataflow
from deferrable_ops.upstreams.dataflow.client import DataflowTarget, use_dataflow
from deferrable_ops.upstreams.dataflow.jobs import DONE, QUEUED, RUNNING

SETTING = "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST"


async def free_to_send() -> float:
    return time.monotonic() + 20


async def test_fake_in_another_process_is_scripted_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with dataflow_process() as control:
        monkeypatch.setenv(SETTING, control.host)
        control.tell(
            "script", "etl", {"state": "RUNNING"}, {"state": "FAILED", "message": "broken"}, streaming=True
        )
        control.tell("fail", "GetJob", "UNAVAILABLE", times=1)
        control.set(second_launch="return")
        async with use_dataflow(DataflowTarget("p", "r")) as dataflow:
            job = await dataflow.launch("flex", {"launchParameter": {"jobName": "etl"}}, free_to_send)
            assert (await dataflow.get(job.id)).state_name == "JOB_STATE_FAILED"
            assert [message.text for message in await dataflow.messages(job.id)] == ["broken"]
        report = control.report()
    assert report["calls"] == {"LaunchFlexTemplate": 1, "GetJob": 2, "ListJobMessages": 1}
    assert [(job["name"], job["state"], job["streaming"]) for job in report["jobs"]] == [
        ("etl", "FAILED", True)
    ]


async def test_fake_in_another_process_disconnects_and_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    with dataflow_process() as control:
        monkeypatch.setenv(SETTING, control.host)
        async with use_dataflow(DataflowTarget("p", "r")) as dataflow:
            assert await dataflow.find("etl") == []
            control.tell("disconnect")
            control.tell("connect")
            assert await dataflow.find("etl") == []


def test_unknown_commands_and_settings_of_the_fake_are_errors() -> None:
    with dataflow_process() as control:
        with pytest.raises(ValueError, match="has no method explode"):
            control.tell("explode")
        with pytest.raises(ValueError, match="give one of LaunchFlexTemplate"):
            control.tell("fail", "NoSuchMethod")
        with pytest.raises(ValueError, match="there is no setting color"):
            control.set(color="blue")


async def test_setting_refers_to_the_fake_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "of.the.user:1")
    async with fake_dataflow() as fake:
        assert os.environ[SETTING] == fake.host
    assert os.environ[SETTING] == "of.the.user:1"


async def test_steps_of_a_job_are_taken_when_they_are_due(fake: FakeDataflow) -> None:
    fake.script("etl", Step("RUNNING", after=60), Step("DONE", after=60))
    job = fake.create("etl", "p", "r", {}, {})

    def later(seconds: float) -> int:
        job.since -= seconds
        job.advance()
        return job.state

    assert [later(0), later(61), later(30), later(31)] == [QUEUED, RUNNING, RUNNING, DONE]


async def test_new_jobs_are_missing_from_lists_for_the_configured_time(
    fake: FakeDataflow,
) -> None:
    fake.list_lag = 60
    fake.script("prompt", list_lag=0)
    for name in ("prompt", "late"):
        fake.create(name, "p", "r", {}, {})
    assert [job.name for job in fake.listed_jobs()] == ["prompt"]
    fake.list_lag = 0
    assert len(fake.listed_jobs()) == 2


@pytest.mark.parametrize("name", ["Etl", "1etl", "etl-", "e" * 64, "etl_1"])
async def test_invalid_job_name_is_refused_as_by_dataflow(name: str, fake: FakeDataflow) -> None:
    async with use_dataflow(DataflowTarget("p", "r")) as dataflow:
        with pytest.raises(DataflowRefused, match="invalid job name"):
            await dataflow.launch("flex", {"launchParameter": {"jobName": name}}, free_to_send)
    assert fake.jobs() == []
