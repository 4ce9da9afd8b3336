"""The base of all triggers: outcomes, ends of tasks, kills and background work."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import pytest
from airflow.sdk.execution_time.comms import DeleteXCom, SetXCom
from airflow.triggers.base import TaskFailedEvent, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent
from structlog.contextvars import bound_contextvars, get_contextvars
from unit.triggers.base.support import Scripted, Working, event_of, in_triggerer, register
from unit.triggers.support import AirflowComms, eventually

from deferrable_ops import Failure, Outcome, Skip, Success
from deferrable_ops.deployment import Deployment
from deferrable_ops.exceptions import (
    ConfigurationError,
    InputError,
)
from deferrable_ops.inbox import Inbox, NewWait, Wait, WaitState
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle import background, cancellation, delivery
from deferrable_ops.triggers.lifecycle.background import start as start_background


async def test_success_sets_the_xcom_and_then_sends_an_event_without_one(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    event = await event_of(in_triggerer(Scripted(Success({"a": 1}))))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None  # Airflow would encode them twice
    [xcom] = airflow_comms.sent
    assert isinstance(xcom, SetXCom)
    assert (xcom.key, xcom.value) == ("return_value", {"a": 1})


async def test_no_xcom_is_set_without_do_xcom_push_or_without_a_value(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    assert isinstance(
        await event_of(in_triggerer(Scripted(Success(1), do_xcom_push=False))), TaskSuccessEvent
    )
    assert isinstance(await event_of(in_triggerer(Scripted(Success(None)))), TaskSuccessEvent)
    assert airflow_comms.sent == []


@pytest.mark.parametrize("template", ["{{ params.typo }}", "{{ ds }}", "{{ params.a.b.c }}"])
async def test_template_that_a_worker_could_not_render_fails_the_task(
    airflow_comms: AirflowComms, inbox: Inbox, template: str
) -> None:
    trigger = in_triggerer(Scripted(Success(1)))
    trigger.does, trigger.template_fields = template, ("does",)  # type: ignore[attr-defined]
    trigger.render_template_fields({"params": {}})
    assert isinstance(await event_of(trigger), TaskFailedEvent)


async def test_failed_retry_leaves_no_xcom_of_an_earlier_attempt(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    class Refusing(Scripted):
        def validate(self) -> None:
            raise InputError("url= is missing")

    assert isinstance(await event_of(in_triggerer(Refusing(), try_number=2)), TaskFailedEvent)
    assert [type(message) for message in airflow_comms.sent] == [DeleteXCom]


async def test_failure_and_skip_end_in_the_triggerer(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    assert isinstance(await event_of(in_triggerer(Scripted(Failure("no")))), TaskFailedEvent)
    assert isinstance(await event_of(in_triggerer(Scripted(Skip("no")))), TaskSkippedEvent)


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1), ValueError()])
async def test_any_error_of_the_work_is_a_failure(
    airflow_comms: AirflowComms, inbox: Inbox, error: BaseException
) -> None:
    trigger = in_triggerer(Scripted(error))
    assert isinstance(await event_of(trigger), TaskFailedEvent)
    wait = await inbox.waits.get(trigger.identify().wait_id)
    assert isinstance(wait.outcome, Failure)
    assert type(error).__name__ in wait.outcome.reason


async def test_message_of_a_library_error_is_the_reason(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    trigger = in_triggerer(Scripted(ConfigurationError("set endpoint_url")))
    await event_of(trigger)
    assert (await inbox.waits.get(trigger.identify().wait_id)).outcome == Failure(
        "set endpoint_url", retryable=False
    )


async def test_cancelled_trigger_settles_nothing(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    trigger = in_triggerer(Scripted("wait"))
    run = asyncio.create_task(event_of(trigger))
    while not await inbox.waits.get_many([trigger.identify().wait_id]):
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert (await inbox.waits.get(trigger.identify().wait_id)).state is WaitState.WAITING


@pytest.mark.parametrize("does", [Success(1), RuntimeError("broken"), SystemExit(1)])
async def test_outcome_of_the_work_ends_the_wait(
    airflow_comms: AirflowComms, inbox: Inbox, does: Any
) -> None:
    trigger = in_triggerer(Working(does))
    event = await event_of(trigger)
    assert isinstance(event, TaskSuccessEvent if isinstance(does, Success) else TaskFailedEvent)


async def test_work_ends_when_the_inbox_ends_the_wait(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    trigger = Working("wait", timeout=0.2)
    assert isinstance(await event_of(in_triggerer(trigger)), TaskFailedEvent)
    assert trigger.ended


async def test_work_ends_with_its_trigger(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    trigger = Working("wait")
    run = asyncio.create_task(event_of(in_triggerer(trigger)))
    while not await inbox.waits.get_many([trigger.identify().wait_id]):
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert trigger.ended


async def test_work_that_still_runs_after_a_failure_is_cancelled(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    async def cancel_due(wait_id: str) -> None:
        stopped.append(wait_id)

    monkeypatch.setattr(background, "cancel_due", cancel_due)
    failed, succeeded = in_triggerer(Working(Failure("refused"))), in_triggerer(Working(Success(1)))
    await event_of(failed)
    await event_of(succeeded)
    await asyncio.sleep(0)
    assert stopped == [failed.identify().wait_id]


async def test_attempt_waits_until_the_work_of_an_earlier_one_is_cancelled(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Launching(Scripted):
        async def wait(self) -> Outcome:
            await self.stop_previous_attempts()
            return Success((await self.inbox.waits.get(first_id)).cancel)

    monkeypatch.setattr(cancellation, "decrypt", lambda _encrypted: first)
    first, second = in_triggerer(Scripted()), in_triggerer(Launching(), try_number=2)
    second.task_instance.id = first.task_instance.id  # type: ignore[union-attr]
    first_id = await register(inbox, first)
    await event_of(second)
    assert first.cancelled == [first_id]  # type: ignore[attr-defined]
    assert (await inbox.waits.get(second.identify().wait_id)).outcome == Success("done")


async def test_second_run_of_a_wait_has_the_same_outcome(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    first = in_triggerer(Scripted(Success("first")))
    await event_of(first)
    second = Scripted(Success("second"))
    second.task_instance = first.task_instance
    await event_of(second)
    assert [xcom.value for xcom in airflow_comms.sent] == ["first", "first"]


async def test_task_whose_xcom_cannot_be_set_ends_on_a_worker(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    airflow_comms.error = OSError("the supervisor is gone")
    trigger = in_triggerer(Scripted(Success(1)))
    event = await event_of(trigger)
    assert type(event) is TriggerEvent
    assert event.payload == {"wait": trigger.identify().wait_id}


@pytest.mark.parametrize(
    "ends_on_worker, does, by_worker",
    [
        ({"success": "it has outlets"}, Success(1), True),
        ({"success": "it has outlets"}, Failure("no"), False),
        ({"failure": "it sends an email"}, Failure("no"), True),
        ({"final_failure": "it has retries"}, Failure("no", retryable=False), True),
        ({"final_failure": "it has retries"}, Failure("no"), False),
        ({"skip": "it has on_skipped_callback"}, Skip("no"), True),
    ],
)
async def test_declared_reasons_apply_to_their_outcome(
    airflow_comms: AirflowComms, inbox: Inbox, ends_on_worker: dict[str, str], does: Outcome, by_worker: bool
) -> None:
    event = await event_of(in_triggerer(Scripted(does, ends_on_worker=ends_on_worker)))
    assert (type(event) is TriggerEvent) is by_worker


async def test_outcome_survives_a_setting_that_is_neither_auto_nor_never(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__END_FROM_TRIGGER", "nevr")
    delivery._deployment_reason.cache_clear()
    trigger = in_triggerer(Scripted(Success(1)))
    assert (await event_of(trigger)).payload == {"wait": trigger.identify().wait_id}


async def test_end_from_trigger_never_ends_every_task_on_a_worker(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__END_FROM_TRIGGER", "never")
    delivery._deployment_reason.cache_clear()
    try:
        assert type(await event_of(in_triggerer(Scripted(Skip("no"))))) is TriggerEvent
    finally:
        delivery._deployment_reason.cache_clear()


async def test_background_work_does_not_write_to_the_log_of_the_task_that_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def look() -> None:
        seen.set_result(get_contextvars())

    monkeypatch.setattr(background, "_run", look)
    monkeypatch.setattr(background, "this_process", Deployment())
    with bound_contextvars(trigger_id=7):
        start_background()
        assert await seen == {}


async def test_second_try_deletes_the_xcoms_of_the_first(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    await event_of(in_triggerer(Scripted(Failure("again")), try_number=2))
    assert [(type(message), message.key) for message in airflow_comms.sent] == [(DeleteXCom, "return_value")]


async def test_large_value_stays_in_the_inbox(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__MAX_XCOM_BYTES", "10")
    trigger = in_triggerer(Scripted(Success("longer than ten bytes")))
    await event_of(trigger)
    reference = airflow_comms.sent[0].value
    assert reference == {"deferrable_ops_value_of_wait": trigger.identify().wait_id, "bytes": 23}


async def states(state: str | None, inbox: Inbox, trigger: TaskTrigger, monkeypatch: Any) -> list[str]:
    async def source(dag_id: str, run_ids: list[str], task_ids: list[str]) -> dict[str, dict[str, Any]]:
        return {} if state is None else {"run": {"task": state}}

    stopped: list[str] = []

    async def stop(_inbox: Inbox, wait_id: str | None = None) -> None:
        stopped.append(str(wait_id))

    monkeypatch.setattr(cancellation, "states_from_supervisor", source)
    monkeypatch.setattr(cancellation, "cancel_due_work", stop)
    await cancellation.end_if_killed(trigger.identify(), check_for=0.05, check_every=0.01)
    return stopped


@pytest.mark.parametrize("state", ["failed", "success", None])
async def test_wait_of_a_killed_task_is_settled_and_its_work_cancelled(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    trigger = in_triggerer(Scripted())
    wait_id = await register(inbox, trigger)
    assert await states(state, inbox, trigger, monkeypatch) == [wait_id]
    assert (await inbox.waits.get(wait_id)).state is WaitState.KILLED


async def test_trigger_whose_task_was_ended_sends_no_event_and_waits_for_airflow_to_cancel_it(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    trigger = in_triggerer(Scripted("wait"))
    wait_id = await register(inbox, trigger)
    running = asyncio.create_task(event_of(trigger))
    await eventually(lambda: wait_id in inbox.watcher.watched, "the trigger to wait")
    await inbox.waits.kill([wait_id])
    await eventually(lambda: trigger.current.state is WaitState.KILLED, "the trigger to learn of it")
    done, _ = await asyncio.wait([running], timeout=0.2)
    assert not done
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_trigger_whose_wait_was_ended_and_that_airflow_does_not_cancel_fails_the_task(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "airflow_cancels_within", 0.01)
    trigger = in_triggerer(Scripted("wait"))
    wait_id = await register(inbox, trigger)
    await inbox.waits.kill([wait_id])
    assert isinstance(await event_of(trigger), TaskFailedEvent)


@pytest.mark.parametrize(("ends_on_worker", "seconds"), [(None, 2), ({"success": "it has outlets"}, 8)])
async def test_deferred_task_is_not_resumed_before_its_worker_process_has_exited(
    airflow_comms: AirflowComms,
    inbox: Inbox,
    monkeypatch: pytest.MonkeyPatch,
    ends_on_worker: dict[str, str] | None,
    seconds: float,
) -> None:
    slept: list[float] = []

    async def sleep(pause: float) -> None:
        slept.append(pause)

    trigger = in_triggerer(Scripted(Success(1), ends_on_worker=ends_on_worker))
    trigger.attempt = asdict(trigger.identify())
    monkeypatch.setattr("deferrable_ops.triggers.base.asyncio.sleep", sleep)
    await event_of(trigger)
    assert slept[-1] == pytest.approx(seconds, abs=1)


async def test_wait_that_moved_to_another_triggerer_is_not_settled(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = in_triggerer(Scripted())
    wait_id = await register(inbox, trigger)
    assert await states("deferred", inbox, trigger, monkeypatch) == []
    assert (await inbox.waits.get(wait_id)).state is WaitState.WAITING


async def test_task_of_another_deployment_waits_and_names_the_command_that_adopts_the_inbox(
    airflow_comms: AirflowComms,
    inbox: Inbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Scripted, "log", logging.getLogger("task"))
    inbox.owner = inbox.waits._owner = Owner(
        inbox.database, deployment=Deployment("staging"), check_interval=0.01
    )
    await inbox.owner.adopt("production")
    trigger = in_triggerer(Scripted(Success(1)))
    running = asyncio.create_task(event_of(trigger))
    await eventually(lambda: "deferrable-ops inbox adopt staging" in caplog.text, "a line in the task's log")
    assert not running.done()
    assert await inbox.waits.find() == []
    await inbox.owner.adopt("staging")
    assert isinstance(await running, TaskSuccessEvent)


async def test_triggerer_reads_its_deployment_adopts_the_inbox_and_then_cancels_what_is_due(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, steps = Deployment(), asyncio.Queue[str | None]()

    async def read(interval: float) -> str:
        deployment.learn("production")
        return "production"

    async def cancel(inbox: Inbox) -> None:
        owner = await inbox.owner.current()
        await steps.put(owner and owner.deployment)

    monkeypatch.setattr(background, "cancel_due_work", cancel)
    monkeypatch.setattr(background, "this_process", deployment)
    monkeypatch.setattr(deployment, "_read_until_known", read)
    inbox.owner = Owner(inbox.database, deployment=deployment)
    running = asyncio.create_task(background._run())
    assert await steps.get() == "production"
    running.cancel()
    await asyncio.wait([running])


async def test_many_triggers_that_start_together_register_a_limited_number_at_a_time(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = 0, 0
    register = inbox.waits.register

    async def counted(new: NewWait) -> Wait:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await register(new)
        finally:
            under_way -= 1

    monkeypatch.setattr(inbox.waits, "register", counted)
    triggers = [in_triggerer(Scripted("wait")) for _ in range(300)]
    running = [asyncio.create_task(event_of(trigger)) for trigger in triggers]
    await eventually(lambda: all(trigger.current is not None for trigger in triggers), "all of them to wait")
    assert 1 < most <= 128
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_wait_in_a_sqlite_file_that_several_hosts_should_share_logs_this(
    airflow_comms: AirflowComms, inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox.hosts.problem = "the inbox is a SQLite file, but [core] executor has CeleryExecutor"
    assert isinstance(await event_of(in_triggerer(Scripted(Success(None)))), TaskSuccessEvent)
    assert "[core] executor has CeleryExecutor" in capsys.readouterr().out
