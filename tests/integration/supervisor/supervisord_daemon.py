"""A real supervisord for tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from deferrable_ops.exceptions import SupervisordUnavailable
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.evaluation import Evaluation, evaluate
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.upstreams.supervisord.client import Supervisord, SupervisordAddress, use_supervisord


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """Wait until the condition is true, and return its result."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
        return found


class Daemon:
    """A supervisord with a configuration, and its client."""

    def __init__(self, config: SupervisorAirflowConfiguration, client: Supervisord) -> None:
        self.config = config
        self.client = client
        self.histories: dict[str, CrashHistory] = {}

    async def look(self) -> Evaluation:
        found = evaluate(self.config, map(Process.from_info, await self.client.processes()), self.histories)
        self.histories = found.histories
        return found

    async def verdict(self) -> Any:
        """Wait for the verdict, and return it."""
        found = (await self.look()).verdict
        return found if found.action is not None else None

    async def start(self, program: str = "test:test") -> None:
        await self.client.call("supervisor.startProcess", program, False)


@asynccontextmanager
async def daemon(*, address: SupervisordAddress | None = None, **fields: Any) -> AsyncIterator[Daemon]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = SupervisorAirflowConfiguration(working_dir=folder / "100% mine; #1", **fields)
        for directory in config.directories:
            directory.mkdir(mode=0o700)
        config.config_path.touch(mode=0o600)
        config.config_path.write_text(config.to_cfg())
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(config.config_path)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        stack.callback(lambda: print(running.communicate()[0].decode()))
        stack.callback(running.terminate)
        client = await stack.enter_async_context(
            use_supervisord(address or SupervisordAddress(socket=config.socket_path))
        )

        async def answers() -> bool:
            assert running.poll() is None, "supervisord has ended"
            try:
                return bool(await client.call("supervisor.getState"))
            except SupervisordUnavailable:
                return False

        await until(answers)
        yield Daemon(config, client)


def python(code: str) -> str:
    """Return a command that runs this code, which must not contain double quotes."""
    return f'{sys.executable} -c "{code}"'
