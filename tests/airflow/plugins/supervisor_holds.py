"""Triggers of a Supervisor that a test can hold; only DAGs of the tests use them.

While the tests' folder contains a file `TASK_ID.hold`, the trigger of that task waits: "before" its work, or "after"
it, before the result is reported. It writes its pid to `TASK_ID.held` when it starts to wait, and to `TASK_ID.over`
when it continues.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.conditional_step import SupervisorDueStepTrigger
from deferrable_ops.triggers.supervisor.gate_triggers import SupervisorTeardownTrigger

T = TypeVar("T")


class HeldStep(SupervisorDueStepTrigger):
    """A step that is held while it has the claim."""

    classpath = "supervisor_holds.HeldStep"

    async def _run_claimed(self, claim: Claim) -> dict[str, Any]:
        return await _held(self, lambda: super(HeldStep, self)._run_claimed(claim))


class HeldCheck(SupervisorCheckTrigger):
    """The check, held before its first poll, or after the programs have ended."""

    classpath = "supervisor_holds.HeldCheck"

    async def poll(self) -> Outcome:
        return await _held(self, super().poll)


class HeldTeardown(SupervisorTeardownTrigger):
    """The gate before the teardown."""

    classpath = "supervisor_holds.HeldTeardown"

    async def wait(self) -> Outcome:
        return await _held(self, super().wait)


async def _held(trigger: TaskTrigger, work: Callable[[], Awaitable[T]]) -> T:
    name = Path(os.environ["SUPERVISOR_FOLDERS"], trigger.current.attempt.task_id)
    was_held = await _hold(name, "before")
    try:
        done = await work()
        was_held |= await _hold(name, "after")
        return done
    finally:
        if was_held:
            _note(name.with_suffix(".over"))


async def _hold(name: Path, moment: str) -> bool:
    file = name.with_suffix(".hold")
    if not file.exists() or file.read_text() != moment:
        return False
    _note(name.with_suffix(".held"))
    try:
        while file.exists():
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        _note(name.with_suffix(".over"))
        raise
    return True


def _note(file: Path) -> None:
    with file.open("a") as noted:
        noted.write(f"{os.getpid()}\n")
