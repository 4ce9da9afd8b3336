"""A program whose log is written by supervisord's code, and a reader that forwards it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.supervisord.support import process, two_programs

from deferrable_ops.supervisord import SupervisorSSHAirflowConfiguration
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.triggers.lifecycle.log_budget import LogBudget
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_forwarding import LogForwarder
from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.local import LocalMachine
from deferrable_ops.upstreams.machine.machine import FileStatus

loggers = pytest.importorskip("supervisor.loggers")


class Machine(LocalMachine):
    """This host, optionally without inodes, or unreachable."""

    def __init__(self, inodes: str) -> None:
        super().__init__()
        self.inodes = inodes
        self.failing: Exception | None = None
        self.asked = list[int]()
        self.commands = 0
        self.bytes_read = 0

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        if self.failing is not None:
            raise self.failing
        self.asked.append(len(paths))
        self.commands += inodes
        found = await super().status(*paths, inodes=True)
        is_known = self.inodes == "always" or (inodes and self.inodes == "when asked")
        return [status if is_known or status is None else replace(status, inode=0) for status in found]

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        found = await super().read(path, offset, length)
        self.bytes_read += len(found or b"")
        return found


class Program:
    """A program whose log is written and rotated by supervisord's code."""

    def __init__(self, folder: Path, name: str = "a", most: int = 0, backups: int = 10) -> None:
        self.path = folder / name / "output.log"
        self.path.parent.mkdir()
        self.config = two_programs(
            folder, **{name: {"stdout_logfile_maxbytes": str(most), "stdout_logfile_backups": backups}}
        )
        self.name = name
        self.state = ProcessState.RUNNING
        self._handler = loggers.RotatingFileHandler(str(self.path), maxBytes=most, backupCount=backups)
        self._handler.setFormat("%(message)s")
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data
        self._handler.emit(loggers.LogRecord(loggers.LevelsByName.INFO, data))

    def clear(self) -> None:
        """Truncate the log, as ``supervisorctl clear`` does."""
        self._handler.remove()
        self._handler.reopen()

    @property
    def found(self) -> dict[str, Sequence[Process]]:
        log = str(self.path)
        return {
            self.name: [process(self.state, group=self.name, name=self.name, start=1, stdout_logfile=log)]
        }


class Reader:
    """Forwards a program's output, and can be restarted."""

    def __init__(
        self,
        program: Program,
        log: logging.Logger,
        inodes: str = "always",
        make: Callable[[SupervisorHost, SavedState], OutputCopier[Any]] | None = None,
    ) -> None:
        self.machine = Machine(inodes)
        budget = LogBudget(1_000_000)
        self._make = make or (lambda host, saved: LogForwarder(host, saved, budget))
        self._program = program
        self._log = log
        self._state: dict[str, Any] = {}
        self.restart()

    def restart(self, *, is_ours: bool = True) -> None:
        remote: dict[str, Any] = {} if self.machine.inodes == "always" else {"ssh_conn_id": "web"}
        config = self._program.config
        if remote:
            config = SupervisorSSHAirflowConfiguration(**config.with_secrets() | remote)
        site = SupervisorHost(config, self.machine, None, self._log)  # type: ignore[arg-type]
        saved = SavedState(output=self._state, is_ours=is_ours)
        self.output = self._make(site, saved)

    async def look(self) -> None:
        await self.output.forward(self._program.found)
        self._state = json.loads(json.dumps(self.output.state))

    async def finish(self) -> None:
        self._program.state = ProcessState.EXITED
        await self.output.finish(self._program.found)
        self._state = json.loads(json.dumps(self.output.state))


def copied(caplog: pytest.LogCaptureFixture, label: str = "a") -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    return [line.removeprefix(f"[{label}] ") for line in lines if line.startswith(f"[{label}] ")]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def lines_of(data: bytes) -> list[str]:
    *lines, rest = data.split(b"\n")
    return [line.decode(errors="replace") for line in [*lines, *([rest] if rest else [])]]
