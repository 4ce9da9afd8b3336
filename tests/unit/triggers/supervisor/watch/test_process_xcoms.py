"""The XComs with the states of processes, when hundreds of tasks push them at the same time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from unit.supervisord.support import process
from unit.triggers.support import eventually

from deferrable_ops.triggers.supervisor.watch import process_xcoms
from deferrable_ops.triggers.supervisor.watch.process_xcoms import STATUS, ProcessXComs


async def test_few_values_exist_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values, pushes, go_on = 0, list[Any](), asyncio.Event()
    statuses = process_xcoms.statuses

    def counted(found: Any) -> Any:
        nonlocal values
        values += 1
        return statuses(found)

    async def push(key: str, value: Any) -> None:
        await go_on.wait()
        pushes.append((key, [row["name"] for row in value]))

    monkeypatch.setattr(process_xcoms, "statuses", counted)
    for _ in range(50):
        ProcessXComs(push, logging.getLogger("task")).show("facts", {"a": (process(name="a"),)})
    await eventually(lambda: values, "a value")
    for _ in range(10):
        await asyncio.sleep(0)
    assert values <= 3
    go_on.set()
    await eventually(lambda: len(pushes) == 50, "all pushes")
    assert pushes == [(STATUS, ["a"])] * 50
