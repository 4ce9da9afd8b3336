"""Calls to Airflow's supervisor process: a few at once, ends first, and none before the first reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner

from deferrable_ops import supervisor_calls
from deferrable_ops.supervisor_calls import WARM_UP_VARIABLE, Rank, call_supervisor, send


class Supervisor:
    """Answers each message once its gate is open."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.gate = asyncio.Event()

    async def asend(self, message: Any) -> str:
        self.sent.append(message)
        await self.gate.wait()
        return "reply"


@pytest.fixture
async def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


def recorded(called: list[str], name: str, until: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        called.append(name)
        await until.wait()

    return call


async def passes() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_calls_wait_for_the_first_reply(supervisor: Supervisor) -> None:
    calls = [asyncio.create_task(send(f"message {n}", rank=Rank.READ, timeout=5)) for n in range(2)]
    await passes()
    assert [message.key for message in supervisor.sent] == [WARM_UP_VARIABLE]
    supervisor.gate.set()
    assert await asyncio.gather(*calls) == ["reply", "reply"]
    assert supervisor.sent[1:] == ["message 0", "message 1"]


async def test_caller_that_is_cancelled_does_not_cancel_the_first_call(supervisor: Supervisor) -> None:
    first = asyncio.create_task(send("message", rank=Rank.READ, timeout=5))
    await passes()
    first.cancel()
    await asyncio.wait([first])
    supervisor.gate.set()
    assert await send("other", rank=Rank.READ, timeout=5) == "reply"
    assert [getattr(message, "key", message) for message in supervisor.sent] == [WARM_UP_VARIABLE, "other"]


async def test_first_call_that_fails_stops_no_other(supervisor: Supervisor) -> None:
    async def refuse(message: Any) -> str:
        if getattr(message, "key", "") == WARM_UP_VARIABLE:
            raise RuntimeError("not known")
        return "reply"

    supervisor.asend = refuse  # type: ignore[method-assign]
    assert await send("message", rank=Rank.READ, timeout=5) == "reply"


async def test_only_a_few_calls_are_under_way_and_ends_come_first(supervisor: Supervisor) -> None:
    supervisor.gate.set()
    await supervisor_calls.warm_up()
    called: list[str] = []
    until = asyncio.Event()
    waiting = []
    for number in range(4):
        call = recorded(called, f"progress {number}", until)
        waiting.append(asyncio.create_task(call_supervisor(call, rank=Rank.PROGRESS, timeout=5)))
    await passes()
    assert called == ["progress 0", "progress 1", "progress 2"]
    call = recorded(called, "end", until)
    waiting.append(asyncio.create_task(call_supervisor(call, rank=Rank.END, timeout=5)))
    await passes()
    until.set()
    await asyncio.gather(*waiting)
    assert called[3:] == ["end", "progress 3"]


async def test_timeout_begins_with_the_call_and_not_with_the_wait_for_its_turn(
    supervisor: Supervisor,
) -> None:
    supervisor.gate.set()
    await supervisor_calls.warm_up()
    called: list[str] = []
    until = asyncio.Event()
    first = [
        asyncio.create_task(call_supervisor(recorded(called, "first", until), rank=Rank.READ, timeout=60))
        for _ in range(3)
    ]
    later = asyncio.create_task(
        call_supervisor(recorded(called, "later", until), rank=Rank.READ, timeout=0.05)
    )
    await asyncio.wait([later], timeout=0.2)
    assert not later.done()
    until.set()
    await asyncio.gather(later, *first)
    with pytest.raises(TimeoutError):
        await call_supervisor(recorded(called, "slow", asyncio.Event()), rank=Rank.READ, timeout=0.01)
