"""Requests to stop a supervisord or to restart a program, carried out with a real supervisord."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest
from integration.supervisor.support import (
    BEGIN,
    SLEEP,
    Life,
    Place,
    answered,
    ask,
    on_host,
    owned_inbox,
    until_killed,
)
from sqlalchemy import update
from unit.high_availability.support import facts
from unit.triggers.support import eventually, new_attempt

from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.inbox import Attempt, Inbox, WaitState
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.requests import RequestKind, RequestState
from deferrable_ops.outcome import Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration

pytest.importorskip("supervisor.supervisord")


@pytest.fixture
def inbox(place: Place) -> Inbox:
    """The inbox, which belongs to the Airflow of this process."""
    return owned_inbox(place)


async def pids(place: Place, cfg: SupervisorAirflowConfiguration) -> dict[str, int]:
    found = await place.run_steps(cfg, "start-programs")
    return {name: process["pid"] for name, process in found["programs"].items()}


async def test_request_stops_supervisord_and_its_programs_and_removes_the_files(
    place: Place, inbox: Inbox
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    request = await answered(inbox, await ask(inbox, cfg, RequestKind.STOP))
    assert request.state is RequestState.DONE, request.answer
    assert "stopped supervisord (pid" in request.answer
    assert (place.daemons(), place.processes(), list(place.folder.iterdir())) == ([], [], [])
    assert await inbox.daemons.all() == []


async def test_request_for_a_run_stops_nothing_when_another_run_uses_the_supervisord(
    place: Place, inbox: Inbox
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    request = await ask(inbox, cfg, RequestKind.STOP)
    await place.run_steps(cfg, "configure-supervisor")
    done = await answered(inbox, request)
    assert done.state is RequestState.DONE
    assert "nothing was stopped, because the DAG run" in done.answer
    assert len(place.daemons()) == 1


async def test_triggerer_on_another_host_does_not_take_the_request(
    place: Place, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    with on_host(monkeypatch, "web-2"):
        await place.run_steps(cfg, *BEGIN)
    request = await ask(inbox, cfg, RequestKind.STOP)
    assert request.arguments["host"] == "web-2"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await answered(inbox, request)
    assert len(place.daemons()) == 1
    # Its own triggerer takes the request.
    monkeypatch.setattr("deferrable_ops.triggers.lifecycle.requests.reaches", lambda _: True)
    with on_host(monkeypatch, "web-2"):
        done = await answered(inbox, request)
    assert done.state is RequestState.DONE, done.answer
    assert place.daemons() == []


async def test_request_that_fails_is_retried(
    place: Place, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    request = await ask(inbox, cfg, RequestKind.STOP)
    with on_host(monkeypatch, "web-2"):
        failed = await answered(inbox, request)
    assert failed.state is RequestState.RETRYING
    assert "this triggerer runs on web-2" in failed.answer
    assert len(place.daemons()) == 1


async def test_restart_of_one_program_does_not_end_the_check(
    place: Place, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SupervisorCheckTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")
    cfg = place.cfg(check_interval=0.02)
    await place.run_steps(cfg, *BEGIN)
    before = await pids(place, cfg)
    check = place.runs.start(
        SupervisorCheckTrigger(
            configuration=serialize_configuration(cfg),
            rules=CheckRules().as_json(),
            run_facts=facts(start_date=datetime.now(UTC)).as_json(),
        )
    )
    await eventually(lambda: "a:a is RUNNING" in caplog.text, "the check")
    done = await answered(inbox, await ask(inbox, cfg, RequestKind.RESTART, program="a"))
    assert done.state is RequestState.DONE, done.answer
    after = await pids(place, cfg)
    assert after["a:a"] != before["a:a"]
    assert after["b:b"] == before["b:b"]
    assert f"a:a is RUNNING (pid {after['a:a']})" in done.answer
    await eventually(lambda: f"(pid {after['a:a']})" in caplog.text, "the check to see the new process")
    assert not check.task.done()


async def test_restart_that_is_not_possible_fails_with_the_reason(place: Place, inbox: Inbox) -> None:
    cfg = place.cfg(program={"a": {"command": SLEEP}})
    await place.run_steps(cfg, *BEGIN)
    unknown = await answered(inbox, await ask(inbox, cfg, RequestKind.RESTART, program="z"))
    assert (unknown.state, "no program 'z'; it has a" in unknown.answer) == (RequestState.FAILED, True)
    await place.run_steps(cfg, "stop-supervisor")
    gone = await answered(inbox, await ask(inbox, cfg, RequestKind.RESTART, program="a"))
    assert (gone.state, "supervisord does not run" in gone.answer) == (RequestState.FAILED, True)


async def away(inbox: Inbox, attempt: Attempt, seconds: float) -> None:
    """Pretend that no triggerer has run for some seconds, and let the API server check deadlines."""
    mine = waits.c.id == attempt.wait_id

    async def write(transaction: Transaction) -> None:
        earlier = {name: waits.c[name] - seconds for name in ("created_at", "deadline", "seen_at")}
        await transaction.connection.execute(update(waits).where(mine).values(**earlier))

    await inbox.database.write(write)
    await inbox.waits.expire(None)


@pytest.mark.parametrize("step", ["stop-programs", "stop-supervisor", "unconfigure-supervisor"])
async def test_step_continues_after_a_triggerer_was_away_longer_than_its_timeout(
    place: Place, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    if step == "unconfigure-supervisor":
        await place.run_steps(cfg, "stop-supervisor")
    attempt = new_attempt()
    with until_killed(monkeypatch, life := Life(3)):
        run = place.run(step, cfg, attempt, timeout=60.0)
        await life.is_over.wait()
        await run.kill_process()
    await away(inbox, attempt, 300.0)
    assert (await inbox.waits.get(attempt.wait_id)).state is WaitState.WAITING
    outcome = await place.run(step, cfg, attempt, timeout=60.0).outcome()
    assert isinstance(outcome, Success), outcome
