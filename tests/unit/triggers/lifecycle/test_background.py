"""The background work of a triggerer starts with the triggerer."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.jobs.triggerer_job_runner import TriggerRunner

from deferrable_ops.plugin import DeferrableOpsPlugin
from deferrable_ops.triggers.lifecycle import background


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["airflow", "triggerer", "--queues", "feeds"], ["connected", "started"]),
        (["airflow", "scheduler"], ["connected"]),
    ],
)
async def test_background_work_starts_when_a_triggerer_has_connected(
    monkeypatch: pytest.MonkeyPatch, command: list[str], expected: list[str]
) -> None:
    done: list[str] = []

    async def connect(_self: Any) -> None:
        done.append("connected")

    monkeypatch.setattr(TriggerRunner, "init_comms", connect)
    monkeypatch.setattr(background, "start", lambda: done.append("started"))
    monkeypatch.setattr("sys.argv", command)
    # Airflow loads a plugin more than once.
    for _ in range(2):
        DeferrableOpsPlugin.on_load()
    await TriggerRunner.init_comms(None)
    assert done == expected
