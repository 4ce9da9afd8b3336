"""Notifiers of a Supervisor that the Triggerer could not call are refused when the DAG is parsed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, AsyncCallback

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.operators.supervisor import Supervisor
from deferrable_ops.triggers.supervisor.configuration import load_configuration

CFG = {"working_dir": "/data/sup", "program": {"test": {"command": "sleep 10"}}}
MODULE = """
from airflow.sdk import BaseNotifier

class Pager(BaseNotifier):
    def __init__(self, text):
        super().__init__()
        self.text = text

    async def async_notify(self, context):
        pass

class OnlySync(BaseNotifier):
    def notify(self, context):
        pass

class Other:
    pass

async def page(context, text):
    pass

def page_sync(context, text):
    pass
"""


@pytest.fixture(autouse=True)
def dag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DAG]:
    (tmp_path / "installed_notices.py").write_text(MODULE)
    (tmp_path / "broken_notices.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "installed_notices", raising=False)
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        yield dag


@pytest.mark.parametrize("name", ["Pager", "page"])
def test_argument_replaces_the_field_and_reaches_the_triggers(dag: DAG, name: str) -> None:
    given = AsyncCallback(f"installed_notices.{name}", kwargs={"text": "{{ message }}"})
    supervisor = Supervisor(cfg=CFG | {"on_program_event": "a.b"}, on_program_event=given)
    for task in (supervisor.check_programs, supervisor.start_programs):
        stored = load_configuration(task.start_trigger_args.trigger_kwargs["configuration"])
        assert [one.path for one in stored.on_program_event] == [f"installed_notices.{name}"]


@pytest.mark.parametrize(
    "name, kwargs, reason",
    [
        ("no_such_notices.Pager", {}, "cannot be imported (ModuleNotFoundError: "),
        ("installed_notices.Pagr", {}, "cannot be imported (AttributeError: "),
        ("broken_notices.Pager", {}, "cannot be imported (ZeroDivisionError: "),
        ("installed_notices.OnlySync", {}, "has no async_notify"),
        ("installed_notices.Other", {}, "is neither a subclass of BaseNotifier nor an async function"),
        ("installed_notices.page_sync", {"text": ""}, "is neither a subclass of BaseNotifier nor an async"),
        ("installed_notices.Pager", {}, "does not accept its kwargs (missing a required argument: 'text')"),
        ("installed_notices.page", {"text": "", "x": 1}, "does not accept its kwargs (got an unexpected"),
        (
            f"{__name__}.page_in_dags_folder",
            {},
            "cannot be imported in the Triggerer, because the notifier is in ",
        ),
    ],
)
def test_notifier_that_the_triggerer_cannot_call_is_refused(
    dag: DAG, name: str, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as refused:
        Supervisor(cfg=CFG, on_program_event={"path": name, "kwargs": kwargs})
    assert f"on_program_event='{name}' {reason}" in str(refused.value)
    assert "give AsyncCallback('package.module.Notifier'" in str(refused.value)


async def page_in_dags_folder() -> None: ...


@pytest.mark.parametrize(
    "fields", [{"rolling": True, "drift": "apply"}, {"on_program_event": "installed_notices.page"}]
)
def test_field_without_effect_is_refused_if_a_step_replaces_the_check(
    dag: DAG, fields: dict[str, Any]
) -> None:
    check = HighAvailabilityOperator(task_id="mine", python_callable="a.b")
    with pytest.raises(InputError, match=f"{next(iter(fields))}= has no effect"):
        Supervisor(cfg=CFG | fields, steps={"check-programs": check})
