"""A triggerer restarts while jobs run and credentials or reads fail: no task fails, and no job is cancelled.

google-auth's own code gets its tokens from fake servers, and sends them to a fake Dataflow that verifies them.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.dataflow.secure_dataflow import behind_credentials
from unit.triggers.dataflow.support import launch
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.outages import outages
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, Step
from deferrable_ops.testing.google import PERMISSION_DENIED, FakeGoogle, fake_google
from deferrable_ops.triggers.dataflow import follow
from deferrable_ops.triggers.dataflow.follow import DataflowTrigger

TARGET = "loader@my-project.iam.gserviceaccount.com"
COUNT = 5
AWAY = 0
SPEED = 50


@pytest.fixture(autouse=True)
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let google-auth repeat its requests at once, and let a minute of an outage pass in about a second."""
    import google.auth._exponential_backoff

    without_sleep = types.SimpleNamespace(sleep=lambda _seconds: None)
    monkeypatch.setattr(google.auth._exponential_backoff, "time", without_sleep)
    monkeypatch.setattr(outages, "_clock", lambda: time.monotonic() * SPEED)
    monkeypatch.setattr(outages, "_active", {})
    monkeypatch.setattr(outages, "_ended", {})


@pytest.fixture
async def google(
    fake: FakeDataflow, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[FakeGoogle]:
    """The servers of Google; by default the machine has a key, with `metadata` a metadata server."""
    with ExitStack() as stack:
        google = stack.enter_context(fake_google(tmp_path, getattr(request, "param", "key")))
        # So short that each API call requests a new token.
        google.token_seconds = 60
        async with behind_credentials(fake, google):
            yield google


async def running(fake: FakeDataflow, runs: Runs, **arguments: Any) -> list[Run]:
    """Return the runs of five triggers whose jobs run."""
    fake.script("load", Step("RUNNING"))
    started = [launch(runs, **arguments) for _ in range(COUNT)]
    await eventually(lambda: len(fake.jobs()) == COUNT, "the jobs")
    for run in started:
        while ((await run.wait()).progress or {}).get("state") != "JOB_STATE_RUNNING":
            await asyncio.sleep(0.01)
    return started


async def restarted(runs: Runs, before: list[Run], **arguments: Any) -> list[Run]:
    """Kill the process of the triggerer, and run its triggers again."""
    for run in before:
        await run.kill_process()
    return [launch(runs, run.attempt, **arguments) for run in before]


async def assert_undisturbed(fake: FakeDataflow, after: list[Run]) -> None:
    """End the jobs, and check that each task succeeds with its job, and that no job was cancelled."""
    assert not [run for run in after if run.task.done()]
    for job in fake.jobs():
        job.move("DONE")
    for run in after:
        assert isinstance(await run.outcome(), Success)
    assert [job.stops_asked for job in fake.jobs()] == [[]] * COUNT


def lines_with(caplog: pytest.LogCaptureFixture, cause: str) -> list[str]:
    """Return the lines of the tasks' logs about an outage with this cause."""
    outages.write_due_lines()
    messages = [record.getMessage() for record in caplog.records]
    return [line for line in messages if "unreachable for" in line and cause in line]


async def test_one_502_of_iam(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    before = await running(fake, runs, impersonation_chain=TARGET)
    for run in before:
        await run.kill_process()
    calls = google.calls["iam"]
    google.fail("iam", 502)
    after = [launch(runs, run.attempt, impersonation_chain=TARGET) for run in before]
    lists = fake.trouble.calls["ListJobs"]
    await eventually(lambda: fake.trouble.calls["ListJobs"] > lists, "the jobs to be watched again")
    assert google.calls["iam"] > calls + 1
    await assert_undisturbed(fake, after)


@pytest.mark.parametrize("google", ["metadata"], indirect=True)
async def test_metadata_server_that_is_away_when_the_triggerer_starts(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    before = await running(fake, runs)
    google.fail("metadata", AWAY, times=None)
    after = await restarted(runs, before)
    new = launch(runs)
    await eventually(lambda: lines_with(caplog, "credentials"), "the cause in the tasks' logs")
    assert not [run for run in [*after, new] if run.task.done()]
    google.mend()
    await eventually(lambda: len(fake.jobs()) == COUNT + 1, "the launch of the new task")
    lists = fake.trouble.calls["ListJobs"]
    await eventually(lambda: fake.trouble.calls["ListJobs"] > lists + 1, "the jobs to be watched again")
    for job in fake.jobs():
        job.move("DONE")
    for run in [*after, new]:
        assert isinstance(await run.outcome(), Success)
    assert [job.stops_asked for job in fake.jobs()] == [[]] * (COUNT + 1)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "NOT_FOUND"])
@pytest.mark.parametrize("method", ["ListJobs", "GetJob"])
async def test_one_refused_read(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, method: str, code: str
) -> None:
    before = await running(fake, runs)
    for job in fake.jobs():
        job.move("STOPPED")  # so that each job is read with GetJob
    fake.trouble.fail(method, code)
    after = await restarted(runs, before)
    lists = fake.trouble.calls["ListJobs"]
    await eventually(lambda: fake.trouble.calls["ListJobs"] > lists + 2, "the jobs to be watched again")
    await assert_undisturbed(fake, after)


async def test_key_that_is_revoked_while_tasks_wait(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await running(fake, runs)
    google.revoke()
    began = outages.now()
    await eventually(lambda: len(lines_with(caplog, "invalid_grant")) >= COUNT, "the cause in each log")
    assert outages.now() - began < 60 + SPEED
    after = await restarted(runs, waiting)
    caplog.clear()
    await eventually(lambda: len(lines_with(caplog, "invalid_grant")) >= COUNT, "the cause after a restart")
    google.mend()
    lists = fake.trouble.calls["ListJobs"]
    await eventually(lambda: fake.trouble.calls["ListJobs"] > lists + 1, "the jobs to be watched again")
    await assert_undisturbed(fake, after)


@pytest.mark.parametrize(
    "server, status, body", [("token", 400, '{"error": "invalid_grant"}'), ("iam", 403, PERMISSION_DENIED)]
)
async def test_credentials_that_are_refused_once_before_the_launch(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, server: Any, status: int, body: str
) -> None:
    google.fail(server, status, body)
    assert isinstance(await launch(runs, impersonation_chain=TARGET).outcome(), Success)
    assert len(fake.jobs()) == 1


async def test_credentials_that_are_refused_again_before_the_launch_fail_the_task_without_a_retry(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs
) -> None:
    google.revoke()
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert "invalid_grant" in outcome.reason
    assert not outcome.retryable
    assert google.calls["token"] >= 3
    assert fake.jobs() == []


async def test_machine_without_credentials_fails_the_task(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setattr(DataflowTrigger, "read_refused_for", 0.3)
    google.fail("metadata", 404, times=None)
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert "no application default credentials" in outcome.reason
    assert not outcome.retryable


async def test_retry_with_refused_credentials_adopts_the_job_of_its_predecessor_later(
    fake: FakeDataflow, google: FakeGoogle, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_others] = await running(fake, runs)
    await first.kill_process()
    with monkeypatch.context() as broken:
        broken.delattr(follow, "interpret_state")
        assert isinstance(await launch(runs, first.attempt).outcome(), Failure)
    await runs.stop()
    google.revoke()
    second = launch(runs, new_attempt(2, of=first.attempt), expected_state="running")
    calls = google.calls["token"]
    await eventually(
        lambda: google.calls["token"] > calls + 6, "more refusals than fail a task before its launch"
    )
    assert not second.task.done()
    google.mend()
    outcome = await second.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == (await first.wait()).launch_answer["job_id"]
    assert [job.stops_asked for job in fake.jobs()] == [[]] * COUNT
