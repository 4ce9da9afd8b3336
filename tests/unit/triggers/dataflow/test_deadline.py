"""What becomes of the job when the deadline of its task passes."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from unit.triggers.dataflow.support import BODY, PLACE, launch
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, Step
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

RUNNING = Step("RUNNING")


async def expire(run: Run) -> None:
    """Let the deadline of a wait pass while no triggerer runs."""
    await run.kill_process()
    async with run.inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.id == run.attempt.wait_id).values(deadline=1.0))
    await run.inbox.waits.expire(None)


@pytest.mark.parametrize("on_kill, asked", [("cancel", ["cancel"]), ("leave", [])])
async def test_deadline_stops_the_job_and_fails(
    fake: FakeDataflow, runs: Runs, on_kill: str, asked: list[str]
) -> None:
    fake.script("load", RUNNING)
    run = launch(runs, timeout=1.0, when_killed=on_kill)
    outcome = await run.outcome()
    job = fake.job("load")
    assert isinstance(outcome, Failure)
    assert job.id in outcome.reason
    assert "within the timeout of 1 s" in outcome.reason
    await cancel_due_work(runs.inbox)
    await eventually(lambda: job.stops_asked == asked, "the job to be stopped")


@pytest.mark.parametrize(
    "streaming, arguments, asked",
    [
        (True, {}, []),
        (True, {"when_killed": "drain"}, []),
        (True, {"on_timeout": "drain"}, ["drain"]),
        (True, {"on_timeout": "cancel", "when_killed": "leave"}, ["cancel"]),
        (False, {"on_timeout": "leave"}, []),
        (False, {"on_timeout": "drain"}, ["cancel"]),
    ],
)
async def test_deadline_stops_a_stream_only_as_on_timeout_requires(
    fake: FakeDataflow, runs: Runs, streaming: bool, arguments: dict[str, Any], asked: list[str]
) -> None:
    fake.script("load", RUNNING, streaming=streaming)
    run = launch(runs, expected_state="drained", **arguments)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await expire(run)
    await cancel_due_work(runs.inbox)
    assert fake.job("load").stops_asked == asked
    assert (await run.wait()).cancel in ("done", None)


@pytest.mark.parametrize(
    "streaming, arguments, reason",
    [
        (True, {}, "it is a streaming job and keeps running; set on_timeout= to stop it"),
        (False, {}, "it is stopped (on_kill='cancel')"),
        (None, {}, "it is stopped (on_kill='cancel'), unless it is a streaming job"),
        (None, {"expected_state": "drained"}, "it is a streaming job and keeps running"),
        (True, {"on_timeout": "drain"}, "it is stopped (on_timeout='drain')"),
        (True, {"on_timeout": "leave"}, "it keeps running"),
        (False, {"when_killed": "leave"}, "it keeps running"),
    ],
)
async def test_reason_of_a_timeout_names_what_becomes_of_the_job(
    streaming: bool | None, arguments: dict[str, Any], reason: str
) -> None:
    trigger = DataflowLaunchTrigger(**PLACE, body=BODY, timeout=60, **arguments)
    trigger._is_streaming = streaming
    outcome = await trigger.expired()
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith(f"the job did not finish within the timeout of 60 s; {reason}")


async def test_user_who_ends_the_task_stops_its_stream_although_a_deadline_would_not(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING, streaming=True)
    run = launch(runs, expected_state="drained", on_timeout="leave")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await run.kill_process()
    await runs.inbox.waits.kill([run.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert fake.job("load").stops_asked == ["cancel"]


async def test_retry_waits_for_the_stream_that_the_deadline_left_running(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING, streaming=True)
    first = launch(runs, expected_state="drained")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await expire(first)
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    outcome = await second.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == fake.job("load").id
    assert len(fake.jobs()) == 1
