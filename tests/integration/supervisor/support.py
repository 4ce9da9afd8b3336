"""Support for tests of steps: a supervisord in its own directory, and its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.support import Run, Runs

from deferrable_ops.deployment import Deployment
from deferrable_ops.inbox import Attempt, Inbox
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.requests import Request, RequestKind, arguments_for
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.lifecycle.requests import RequestRunner
from deferrable_ops.triggers.supervisor import host as supervisor_host
from deferrable_ops.triggers.supervisor.configuration import daemon_name, serialize_configuration
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger
from deferrable_ops.upstreams.machine.local import LocalMachine
from deferrable_ops.upstreams.machine.machine import Identity
from deferrable_ops.upstreams.supervisord.client import use_supervisord

SLEEP = f"{sys.executable} -c 'import signal; signal.pause()'"
STUBBORN = f"{sys.executable} -c 'import signal; signal.signal(15, signal.SIG_IGN); signal.pause()'"
BEGIN = ("configure-supervisor", "start-supervisor", "start-programs")
END = ("stop-programs", "stop-supervisor", "unconfigure-supervisor")


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


def alive(pid: int) -> bool:
    return bool(command_of(pid))


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until the condition is true, blocking this process, and return its result."""
    give_up_at = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "the condition did not become true"
        time.sleep(0.01)
    return found


class Place:
    """A supervisord's directory, and the processes that run there."""

    def __init__(self, folder: Path, runs: Runs) -> None:
        self.folder = folder
        self.runs = runs

    def cfg(self, **fields: Any) -> SupervisorAirflowConfiguration:
        """Return a configuration; by default with two programs that run until they are stopped."""
        program = {"a": {"command": SLEEP}, "b": {"command": SLEEP}}
        given = {"program": program, "startsecs": 0, "stopwaitsecs": 5, **fields}
        return SupervisorAirflowConfiguration(working_dir=self.folder / "s", **given)

    def run(
        self, step: str, cfg: SupervisorAirflowConfiguration, attempt: Attempt | None = None, **kwargs: Any
    ) -> Run:
        kwargs = {"timeout": 60.0, **kwargs}
        trigger = SupervisorStepTrigger(step=step, configuration=serialize_configuration(cfg), **kwargs)
        return self.runs.start(trigger, attempt)

    async def run_steps(
        self, cfg: SupervisorAirflowConfiguration, *steps: str, **kwargs: Any
    ) -> dict[str, Any]:
        """Run steps, which must succeed, and return the result of the last one."""
        for step in steps:
            outcome = await self.run(step, cfg, **kwargs).outcome()
            assert isinstance(outcome, Success), outcome
        value: dict[str, Any] = outcome.value
        return value

    async def start_stubborn(self, cfg: SupervisorAirflowConfiguration) -> None:
        """Run the first steps, and wait until each program ignores SIGTERM."""
        result = await self.run_steps(cfg, *BEGIN)
        for process in result["programs"].values():
            until(lambda: ignores_sigterm(process["pid"]))  # noqa: B023

    async def fail_step(self, cfg: SupervisorAirflowConfiguration, step: str, **kwargs: Any) -> Failure:
        """Run a step that must fail."""
        outcome: Outcome = await self.run(step, cfg, **kwargs).outcome()
        assert isinstance(outcome, Failure), outcome
        return outcome

    def daemons(self) -> list[int]:
        """Return the pids of the supervisords of this directory."""
        configs = {str(self.folder / "s" / "supervisord.conf"), str(self.folder / "supervisord.conf")}
        return [
            pid
            for pid in self._pids()
            if configs & set(command := command_of(pid))
            and any(part.endswith("supervisord") for part in command)
        ]

    def processes(self) -> list[int]:
        """Return the pids of all processes started by them, found by their environment."""
        mark = f"SUPERVISOR_SERVER_URL=unix://{self.folder / 's' / 'supervisor.sock'}".encode()
        return [pid for pid in self._pids() if mark in self.environment(pid)]

    def clean(self) -> None:
        """Kill every supervisord below the folder, and all processes that they started."""
        names = ("SUPERVISOR_SERVER_URL=unix://", "DEFERRABLE_OPS_SUPERVISORD=")
        marks = tuple(f"{name}{self.folder}/".encode() for name in names)
        for pid in self._pids():
            is_daemon = any(part.startswith(f"{self.folder}/") for part in command_of(pid))
            if is_daemon or any(variable.startswith(marks) for variable in self.environment(pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _pids() -> list[int]:
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]

    @staticmethod
    def environment(pid: int) -> list[bytes]:
        try:
            return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return []


def owned_inbox(place: Place) -> Inbox:
    """Return the inbox of the runs, which belongs to the Airflow of this process from now on."""
    inbox = place.runs.inbox
    inbox.owner = Owner(inbox.database, deployment=Deployment("production"))
    for part in (inbox.waits, inbox.launches, inbox.cancellations, inbox.requests):
        part._owner = inbox.owner
    return inbox


async def ask(inbox: Inbox, cfg: SupervisorAirflowConfiguration, kind: RequestKind, **more: Any) -> Request:
    """Make a request about a supervisord."""
    daemon = await inbox.daemons.find(daemon_name(cfg))
    assert daemon is not None
    return await inbox.requests.add(kind, daemon.name, arguments_for(daemon) | more, "ann@web-1")


async def answered(inbox: Inbox, request: Request) -> Request:
    """Carry out requests as a triggerer does, until it has tried to carry out this one."""
    runner = asyncio.create_task(RequestRunner(inbox, interval=0.05).run())
    try:
        async with asyncio.timeout(30):
            while True:
                found = await inbox.requests.get(request.id)
                assert found is not None
                if found.attempts or found.done_at:
                    return found
                await asyncio.sleep(0.02)
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)


class OtherHost(LocalMachine):
    """This host under another name."""

    def __init__(self, host: str, boot_id: str) -> None:
        super().__init__()
        self._named = (host, boot_id)

    async def identity(self) -> Identity:
        return replace(await super().identity(), host=self._named[0], boot_id=self._named[1])


@contextmanager
def on_host(monkeypatch: pytest.MonkeyPatch, host: str, boot_id: str = "boot-2") -> Iterator[None]:
    """Let triggers run on another host, or on this one after a reboot."""

    with monkeypatch.context() as patch:
        patch.setattr(supervisor_host, "use_machine", lambda where: nullcontext(OtherHost(host, boot_id)))
        yield


def set_call_timeout(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set how long triggers wait for an answer of supervisord."""
    monkeypatch.setattr(supervisor_host, "use_supervisord", partial(use_supervisord, call_timeout=seconds))


def set_timings(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Set some of the timings of steps; see StepTimings."""
    timings = replace(SupervisorHost.timings, **seconds)
    monkeypatch.setattr(SupervisorHost, "timings", timings)


class Life:
    """The life of a process that is killed after a number of actions: the next action never happens."""

    def __init__(self, actions: int) -> None:
        self._left = actions
        self.is_over = asyncio.Event()

    async def act(self) -> None:
        if self._left == 0:
            self.is_over.set()
            await asyncio.Event().wait()
        self._left -= 1


class Mortal:
    """A machine or a supervisord, used by a process that will be killed."""

    def __init__(self, thing: Any, life: Life) -> None:
        self._thing = thing
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if name == "name":
            return found

        async def act(*arguments: Any, **options: Any) -> Any:
            await self._life.act()
            return await found(*arguments, **options)

        return act


@contextmanager
def until_killed(monkeypatch: pytest.MonkeyPatch, life: Life) -> Iterator[None]:
    """Limit the number of actions of triggers on the machine and with supervisord."""
    real = supervisor_host.use_supervisord

    @asynccontextmanager
    async def use(address: Any) -> AsyncIterator[Mortal]:
        async with real(address) as supervisord:
            yield Mortal(supervisord, life)

    with monkeypatch.context() as patch:
        patch.setattr(supervisor_host, "use_machine", lambda where: nullcontext(Mortal(LocalMachine(), life)))
        patch.setattr(supervisor_host, "use_supervisord", use)
        yield
