"""A fake supervisord, and the trigger that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unit.high_availability.support import facts
from unit.supervisord.support import START, config, info

from deferrable_ops.exceptions import SupervisordRefused
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.upstreams.machine.local import LocalMachine
from deferrable_ops.upstreams.supervisord.poller import ProcessPoller, ProcessSubscription

INTERVAL = 0.03


class FakeSupervisord:
    """A supervisord with the running programs a and b."""

    def __init__(self) -> None:
        self.programs = {"a": info(name="a", group="a"), "b": info(name="b", group="b")}
        self.failing: Exception | None = None
        self.readings = 0
        self.calls: list[tuple[Any, ...]] = []
        self.refusals: dict[str, SupervisordRefused] = {}
        self.differences: tuple[list[str], list[str], list[str]] = ([], [], [])
        self.previous: Any = None
        self._feed = ProcessPoller(self._read)

    def set(self, name: str, state: ProcessState, exit_code: int = 0, **changes: Any) -> None:
        pid = {} if state in (ProcessState.RUNNING, ProcessState.STARTING) else {"pid": 0}
        self.programs[name] |= {"state": int(state), "exitstatus": exit_code} | pid | changes

    def restart(self, name: str, seconds: int = 1) -> None:
        """Simulate a restart of a program since the last poll."""
        now = self.programs[name]["now"] + seconds
        self.set(name, ProcessState.RUNNING, start=now, pid=now - START + 100)
        self.pass_time(seconds)

    def pass_time(self, seconds: int) -> None:
        for process in self.programs.values():
            process["now"] += seconds

    async def looked(self) -> None:
        """Wait until the current state has been read."""
        seen = self.readings
        async with asyncio.timeout(30):
            while self.readings < seen + 2:
                await asyncio.sleep(INTERVAL / 3)

    def watch(self, interval: float, understood: Any) -> AbstractContextManager[ProcessSubscription[Any]]:
        self.understood = understood
        return self._feed.watch(interval)

    async def processes(self) -> list[dict[str, Any]]:
        return list(self.programs.values())

    async def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, *arguments))
        if method == "supervisor.reloadConfig":
            return [[*self.differences]]
        raise AssertionError(f"unexpected: {method}")

    async def multicall(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        self.calls += [(method, *arguments) for method, arguments in calls]
        return [self.refusals.get(method, True) for method, _ in calls]

    async def _read(self) -> Any:
        self.readings += 1
        if self.failing is not None:
            raise self.failing
        self.previous = self.understood(list(self.programs.values()), self.previous)
        return self.previous


class FakeHost:
    """Replaces ``open_host``."""

    def __init__(self, daemon: FakeSupervisord) -> None:
        self.daemon = daemon
        self.machine = LocalMachine()
        self.failing: list[Exception] = []

    @asynccontextmanager
    async def open_host(self, cfg: SupervisorAirflowConfiguration, log: Any) -> AsyncIterator[SupervisorHost]:
        if self.failing:
            raise self.failing.pop(0)
        yield SupervisorHost(cfg, self.machine, self.daemon, log)  # type: ignore[arg-type]


def two(folder: Path, **fields: Any) -> SupervisorAirflowConfiguration:
    """Return a configuration of these programs, and write its file."""
    program = fields.pop("program", {"a": {"command": "x"}, "b": {"command": "y"}})
    made = config(working_dir=str(folder), program=program, check_interval=INTERVAL, **fields)
    made.config_path.write_text(made.to_cfg())
    return made


def watching(cfg: SupervisorAirflowConfiguration, **arguments: Any) -> SupervisorCheckTrigger:
    """Return the trigger that watches them, in a run that starts now."""
    limits = Limits.of(arguments.pop("runtime", None), None, arguments.pop("maxretrigger", None))
    run = facts(start_date=datetime.now(UTC))
    return SupervisorCheckTrigger(
        configuration=serialize_configuration(cfg),
        rules=CheckRules(limits, "start_date").as_json(),
        run_facts=run.as_json(),
        **arguments,
    )
