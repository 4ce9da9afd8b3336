"""Shared helpers: configurations, and process states as returned by supervisord."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process, ProcessState

START = 1_750_000_000


def info(**changes: Any) -> dict[str, Any]:
    """Return an entry of getAllProcessInfo for a running process."""
    return {
        "name": "test",
        "group": "test",
        "description": "pid 42, uptime 0:01:00",
        "start": START,
        "stop": 0,
        "now": START + 60,
        "state": 20,
        "statename": "RUNNING",
        "spawnerr": "",
        "exitstatus": 0,
        "logfile": "/data/s/test/output.log",
        "stdout_logfile": "/data/s/test/output.log",
        "stderr_logfile": "/data/s/test/error.log",
        "pid": 42,
    } | changes


def process(state: ProcessState = ProcessState.RUNNING, exit_code: int = 0, **changes: Any) -> Process:
    pid = {} if state in (ProcessState.RUNNING, ProcessState.STARTING, ProcessState.STOPPING) else {"pid": 0}
    return Process.from_info(info(state=int(state), exitstatus=exit_code) | pid | changes)


def config(**fields: Any) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(
        **{"working_dir": "/data/s", "program": {"test": {"command": "sleep 9"}}} | fields
    )


def two_programs(folder: Path, **programs: dict[str, Any]) -> SupervisorAirflowConfiguration:
    """Return a configuration of the programs a and b with the given fields."""
    fields = {name: {"command": "x"} | programs.get(name, {}) for name in ("a", "b")}
    return config(working_dir=str(folder), program=fields)
