"""Checks that a triggerer can import. What they say is in a file that the run's conf names."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deferrable_ops.high_availability import CheckResult


def scripted(dag_run: Any, ti: Any) -> CheckResult:
    """Say what the file has for this run of the chain, its last line for later ones, and note that it was asked."""
    file = Path(dag_run.conf["file"])
    lines = json.loads(file.read_text())
    count = int(dag_run.conf.get(f"{ti.task_id}-retrigger", 0))
    with file.with_suffix(".asked").open("a") as asked:
        asked.write(f"{dag_run.run_id}\n")
    said = lines[min(count, len(lines) - 1)]
    return tuple(said)  # type: ignore[return-value]


def raises() -> CheckResult:
    """Raise an error each time."""
    raise ConnectionError("no such host")


async def scripted_on_the_loop(dag_run: Any, ti: Any) -> CheckResult:
    """Say the same as a coroutine."""
    return scripted(dag_run, ti)


def troubled(dag_run: Any, **context: Any) -> Any:
    """Do what no check should."""
    match dag_run.conf["trouble"]:
        case "exits":
            sys.exit("that is all")
        case "hangs":
            threading.Event().wait()
        case "raises":
            raise ConnectionError("no such host")
        case "nonsense":
            return SimpleNamespace(well="who knows")
    raise AssertionError("no such trouble")


async def troubled_on_the_loop(dag_run: Any, **context: Any) -> Any:
    """Do what no coroutine should."""
    if dag_run.conf["trouble"] == "blocks":
        time.sleep(3)  # noqa: ASYNC251
        return "pass", "stop"
    return troubled(dag_run)


def counted(task_instance: Any) -> CheckResult:
    """Read another task's XCom, and a connection, from the thread that a check has."""
    from airflow.sdk import BaseHook

    host = BaseHook.get_connection("ha_service").host
    number = task_instance.xcom_pull(task_ids="number")
    return ("pass", "stop") if (host, number) == ("service.example.com", 7) else ("fail", "stop")  # type: ignore[return-value]


async def reads_a_variable() -> CheckResult:
    """Read a Variable on the event loop."""
    from airflow.sdk import Variable

    return ("pass" if Variable.get("ha_venue") == "LSE" else "fail"), "stop"  # type: ignore[return-value]
