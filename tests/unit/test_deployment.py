"""How a process learns to which deployment of Airflow it belongs."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Variable
from airflow.sdk.execution_time import task_runner

from deferrable_ops.deployment import VARIABLE, Deployment, id_in


class Comms:
    """Answers each request for the Variable with the next value."""

    def __init__(self, *values: str | None) -> None:
        self.values = list(values)
        self.asked = 0

    async def asend(self, message: Any) -> Any:
        assert message.key == VARIABLE
        self.asked += 1
        value = self.values.pop(0)
        return SimpleNamespace(error="VARIABLE_NOT_FOUND") if value is None else SimpleNamespace(value=value)


def variable(deployment: Any) -> str:
    return json.dumps({"id": deployment, "made_for": "a hash"})


def answers(monkeypatch: pytest.MonkeyPatch, *values: str | None) -> Comms:
    comms = Comms(*values)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    return comms


async def test_triggerer_reads_the_variable_once(monkeypatch: pytest.MonkeyPatch) -> None:
    comms = answers(monkeypatch, variable("blue"), variable("another"))
    deployment = Deployment()
    assert await deployment.start_reading() == "blue"
    assert await deployment.start_reading() == "blue"
    assert deployment.id == "blue"
    assert comms.asked == 1


async def test_triggerer_that_starts_before_the_api_server_reads_until_there_is_an_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comms = answers(monkeypatch, None, None, variable("blue"))
    deployment = Deployment()
    reading = deployment.start_reading(interval=0.01)
    while comms.asked < 2:
        assert deployment.id is None
        await asyncio.sleep(0)
    assert deployment.is_awaited
    assert await reading == "blue"


async def test_task_that_waits_for_the_id_goes_on_as_soon_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(monkeypatch, None, variable("blue"))
    deployment = Deployment()
    deployment.start_reading(interval=0.01)
    async with asyncio.timeout(10):
        await deployment.pause(60)
    assert deployment.id == "blue"


async def test_setting_is_the_id_and_no_api_server_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, None)
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "production")
    assert Deployment().id == "production"
    assert await Deployment().start_reading() == "production"


async def test_worker_reads_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variable, "get", lambda key, default: variable("blue"))
    deployment = Deployment()
    await deployment.read_elsewhere()
    assert deployment.id == "blue"


async def test_worker_without_the_variable_has_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str, default: None) -> str:
        raise OSError("no API server")

    monkeypatch.setattr(Variable, "get", refuse)
    deployment = Deployment()
    await deployment.read_elsewhere()
    assert deployment.id is None


@pytest.mark.parametrize(
    "value", [None, "", "no JSON", "[]", "{}", variable(None), variable(7), variable("")]
)
def test_value_without_an_id_is_as_good_as_none(value: str | None) -> None:
    assert id_in(value) is None
